package virtiotest

import (
	"testing"
)

// Features that the tests name.
const (
	Indirect   = 1 << 28
	EventIndex = 1 << 29
	Version1   = 1 << 32
)

// Driver is a guest's driver of one virtio device.
type Driver struct {
	M    *Machine
	Slot int
	// Where the structures are.
	Common, Notify, ISR, Device uint64
	DeviceLen                   uint64
	Table                       uint64 // of MSI-X
	multiplier                  uint64
	Features                    uint64
	Queues                      map[int]*Queue
	NoMSIX                      bool
}

// Message is what vector i of a slot sends.
func Message(slot, i int) uint32 { return uint32(slot<<8 | i) }

// Find looks at the device in a slot and switches it on, as an operating system
// does before its driver comes.
func (m *Machine) Find(t testing.TB, slot int) *Driver {
	t.Helper()
	if v := m.Config(slot, 0, 2); v != 0x1af4 {
		t.Fatalf("slot %d: vendor %#x", slot, v)
	}
	d := &Driver{M: m, Slot: slot, Queues: map[int]*Queue{}}
	var bars [6]uint64
	for i := range bars {
		if m.Config(slot, 0x10+4*i, 4) != 0 {
			bars[i], _ = m.BAR(t, slot, i)
		}
	}
	for _, at := range m.Capabilities(t, slot, 9) {
		kind, bar := m.Config(slot, at+3, 1), m.Config(slot, at+4, 1)
		if kind == 5 {
			continue
		}
		where := bars[bar] + m.Config(slot, at+8, 4)
		switch kind {
		case 1:
			d.Common = where
		case 2:
			d.Notify, d.multiplier = where, m.Config(slot, at+16, 4)
		case 3:
			d.ISR = where
		case 4:
			d.Device, d.DeviceLen = where, m.Config(slot, at+12, 4)
		}
	}
	if d.Common == 0 || d.Notify == 0 || d.ISR == 0 {
		t.Fatalf("slot %d: structures are missing: %+v", slot, d)
	}
	if at := m.Capabilities(t, slot, 0x11); len(at) == 1 {
		table := m.Config(slot, at[0]+4, 4)
		d.Table = bars[table&7] + table&^7
	}
	m.SetConfig(slot, 4, 2, 6) // memory, master
	return d
}

// EnableMSIX fills the table and switches MSI-X on.
func (d *Driver) EnableMSIX(t testing.TB) {
	t.Helper()
	at := d.M.Capabilities(t, d.Slot, 0x11)[0]
	n := int(d.M.Config(d.Slot, at+2, 2)&0x7ff) + 1
	d.M.SetConfig(d.Slot, at+2, 2, 0xc000)
	for i := range n {
		e := d.Table + uint64(16*i)
		Write(&d.M.MMIO, e, 4, 0xfee0_0000)
		Write(&d.M.MMIO, e+4, 4, 0)
		Write(&d.M.MMIO, e+8, 4, uint64(Message(d.Slot, i)))
		Write(&d.M.MMIO, e+12, 4, 0)
	}
	d.M.SetConfig(d.Slot, at+2, 2, 0x8000)
}

// Get reads a field of the common configuration.
func (d *Driver) Get(off uint64, n int) uint64 { return Read(&d.M.MMIO, d.Common+off, n) }

// Set writes one.
func (d *Driver) Set(off uint64, n int, v uint64) { Write(&d.M.MMIO, d.Common+off, n, v) }

// Status returns the device status.
func (d *Driver) Status() uint64 { return d.Get(20, 1) }

// Offered returns the device's features.
func (d *Driver) Offered() uint64 {
	d.Set(0, 4, 0)
	low := d.Get(4, 4)
	d.Set(0, 4, 1)
	return low | d.Get(4, 4)<<32
}

// Reset resets the device.
func (d *Driver) Reset(t testing.TB) {
	t.Helper()
	d.Set(20, 1, 0)
	if s := d.Status(); s != 0 {
		t.Fatalf("status after a reset: %#x", s)
	}
	d.Queues = map[int]*Queue{}
}

// Negotiate goes up to FEATURES_OK with those of the wanted features that the
// device has.
func (d *Driver) Negotiate(t testing.TB, want uint64) {
	t.Helper()
	d.Reset(t)
	d.Set(20, 1, 1)
	d.Set(20, 1, 3)
	d.Features = d.Offered() & (want | Version1)
	for i := range uint64(2) {
		d.Set(8, 4, i)
		d.Set(12, 4, d.Features>>(32*i)&0xffff_ffff)
	}
	d.Set(20, 1, 11)
	if s := d.Status(); s != 11 {
		t.Fatalf("status %#x: the device does not take features %#x", s, d.Features)
	}
	if !d.NoMSIX {
		d.EnableMSIX(t)
		d.Set(16, 2, 0)
	}
}

// OK says that the driver is ready.
func (d *Driver) OK(t testing.TB) {
	t.Helper()
	d.Set(20, 1, 15)
	if s := d.Status(); s != 15 {
		t.Fatalf("status %#x: the device is not ready", s)
	}
}

// Start does all of it, with n queues of a size.
func (d *Driver) Start(t testing.TB, want uint64, n, size int) {
	t.Helper()
	d.Negotiate(t, want)
	for i := range n {
		d.AddQueue(t, i, size)
	}
	d.OK(t)
}
