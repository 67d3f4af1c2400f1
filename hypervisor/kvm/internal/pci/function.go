package pci

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// Spec says what a function is.
type Spec struct {
	Vendor, Device       uint16
	SubVendor, SubDevice uint16
	Class                uint32 // base class<<16 | subclass<<8 | interface
	Revision             uint8
	BARs                 []BAR // at most five when there are Vectors
	Capabilities         []Capability
	// Vectors is how many MSI-X vectors there are, at most MaxVectors. Their
	// table is in the BAR behind the last of BARs. 0: no MSI-X.
	Vectors int
	// Pin gives it INTA.
	Pin bool
	// Changed is called, with the function's configuration locked, when what it
	// says has changed.
	Changed func(Access)
}

// MaxVectors is how long an MSI-X table can be here.
const MaxVectors = maxMSIXVector

// BAR is a window of registers in memory, 32 bits, not prefetchable.
type BAR struct {
	Size    uint64 // a power of two, at least 4096: BARs share no page
	Handler bus.Handler
}

// Access is what the guest has switched on.
type Access struct {
	// Bases are where the Spec's BARs are; 0: nowhere.
	Bases []uint64
	// Master says that the function may use memory and send messages.
	Master bool
}

// Capability is an entry of the list of capabilities.
type Capability struct {
	ID uint8
	// Data is what follows ID and the next entry's address.
	Data []byte
	// Mask has the bits of Data that the guest may set; it may be shorter.
	Mask []byte
	// Read and Write, when not nil, are called before a read and after a write
	// of bytes of Data. off is in Data, and data is Data as it is then: Read may
	// change it. They are called with the function's configuration locked.
	Read  func(off, n int, data []byte)
	Write func(off, n int, data []byte)
}

// Function is one device's configuration space.
type Function struct {
	host *Host
	slot int
	spec Spec
	msix *MSIX // nil: none

	// mu guards the configuration space and the places of the BARs. Who holds it
	// may call a device's handlers, never the other way round.
	mu     sync.Mutex
	config [configLen]byte
	mask   [configLen]byte // bits that the guest may set
	bars   []bar
	caps   []placed
	last   Access

	intx struct {
		sync.Mutex
		raised bool // by the device
		off    bool // by the guest, or because it uses MSI-X
	}
}

type placed struct {
	Capability
	at int // of Data
}

func newFunction(h *Host, slot int, spec Spec) (*Function, error) {
	f := &Function{host: h, slot: slot, spec: spec}
	c := f.config[:]
	le.PutUint16(c[regVendor:], spec.Vendor)
	le.PutUint16(c[regDevice:], spec.Device)
	le.PutUint16(c[regSubVendor:], spec.SubVendor)
	le.PutUint16(c[regSubDevice:], spec.SubDevice)
	c[regRevision] = spec.Revision
	c[regClass], c[regClass+1], c[regClass+2] = byte(spec.Class), byte(spec.Class>>8), byte(spec.Class>>16)
	le.PutUint16(f.mask[regCommand:], commandMemory|commandMaster|commandINTxDisable)
	f.mask[regInterruptLine] = 0xff
	if spec.Pin && h.lines[slot%pins] != nil {
		c[regInterruptPin] = 1
		c[regInterruptLine] = byte(h.lineNumber(slot))
	}
	bars, caps := slices.Clone(spec.BARs), slices.Clone(spec.Capabilities)
	if spec.Vectors != 0 {
		var err error
		if f.msix, err = newMSIX(h, spec.Vectors); err != nil {
			return nil, err
		}
		caps = append(caps, f.msix.capability(uint32(len(bars))))
		bars = append(bars, BAR{Size: msixBARSize, Handler: f.msix})
	}
	err := f.placeBARs(bars)
	if err == nil {
		err = f.placeCapabilities(caps)
	}
	if err != nil {
		return nil, errors.Join(err, f.msix.close())
	}
	f.last = f.access()
	return f, nil
}

// placeCapabilities makes the list; the first is the first.
func (f *Function) placeCapabilities(caps []Capability) error {
	at, link := regFree, regCapabilities
	for _, c := range caps {
		n := 2 + len(c.Data)
		if at+n > configLen {
			return fmt.Errorf("capability %#x: no room in the configuration space", c.ID)
		}
		f.config[link], f.config[at] = byte(at), c.ID
		copy(f.config[at+2:], c.Data)
		copy(f.mask[at+2:at+n], c.Mask)
		f.caps = append(f.caps, placed{c, at + 2})
		link, at = at+1, (at+n+3)&^3
	}
	if len(caps) != 0 {
		f.config[regStatus] |= statusCapabilities
	}
	return nil
}

// Slot returns the slot, which is the device number.
func (f *Function) Slot() int { return f.slot }

// MSIX returns the MSI-X table; nil when it has none.
func (f *Function) MSIX() *MSIX { return f.msix }

// readConfig fills p, which may reach beyond the end.
func (f *Function) readConfig(reg int, p []byte) {
	clear(p)
	if reg >= configLen || reg+len(p) > configLen {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.caps {
		if off, n := c.overlap(reg, len(p)); n > 0 && c.Read != nil {
			c.Read(off, n, f.config[c.at:c.at+len(c.Data)])
		}
	}
	copy(p, f.config[reg:])
	if reg <= regStatus && regStatus < reg+len(p) && f.pending() {
		p[regStatus-reg] |= statusInterrupt
	}
}

func (f *Function) writeConfig(reg int, p []byte) {
	if reg >= configLen || reg+len(p) > configLen {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, b := range p {
		m := f.mask[reg+i]
		f.config[reg+i] = f.config[reg+i]&^m | b&m
	}
	for _, c := range f.caps {
		if off, n := c.overlap(reg, len(p)); n > 0 && c.Write != nil {
			c.Write(off, n, f.config[c.at:c.at+len(c.Data)])
		}
	}
	if reg < regBAR+4*maxBARs {
		f.apply()
	} else if f.msix != nil {
		f.updateINTx()
	}
}

// overlap returns which part of the capability's data n bytes at reg are.
func (c *placed) overlap(reg, n int) (off, count int) {
	begin, end := max(reg, c.at), min(reg+n, c.at+len(c.Data))
	return begin - c.at, end - begin
}

// apply does what the command register and the BARs say. Called with mu held.
func (f *Function) apply() {
	f.updateINTx()
	f.moveBARs()
	a := f.access()
	if f.spec.Changed != nil && (a.Master != f.last.Master || !slices.Equal(a.Bases, f.last.Bases)) {
		f.spec.Changed(a)
	}
	f.last = a
}

func (f *Function) access() Access {
	a := Access{Master: le.Uint16(f.config[regCommand:])&commandMaster != 0}
	for _, b := range f.bars[:len(f.spec.BARs)] {
		a.Bases = append(a.Bases, b.mapped)
	}
	return a
}

func (f *Function) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.bars {
		f.unmap(&f.bars[i])
	}
	return f.msix.close()
}

func powerOfTwo(n uint64) bool { return bits.OnesCount64(n) == 1 }
