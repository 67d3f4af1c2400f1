package pci

import (
	"encoding/json"
	"testing"
)

// msix is a function with a table, ready for use.
func newTable(t *testing.T, n int) (m *machine, f *Function, capability int, table uint64) {
	m = newMachine(t)
	f = m.add(t, Spec{Vendor: 1, Device: 2, Vectors: n, BARs: []BAR{{0x1000, &regs{}}}})
	capability = int(m.get(1, 0x34, 1))
	if v := m.get(1, capability, 4); v&0xff != 0x11 || v>>16 != uint64(n-1) {
		t.Fatalf("capability %#x", v)
	}
	word := m.get(1, capability+4, 4)
	if word != 1 || m.get(1, capability+8, 4) != 0x801 {
		t.Fatalf("table at %#x, pending bits at %#x", word, m.get(1, capability+8, 4))
	}
	m.set(1, 4, 2, 6)
	return m, f, capability, m.get(1, 0x14, 4)
}

func TestMSIX(t *testing.T) {
	m, f, c, table := newTable(t, 3)
	v := m.vectors[1]
	entry := table + 16
	pending := func() uint64 { return read(&m.mmio, table+0x800, 8) }
	if f.MSIX().Signal(1) {
		t.Error("a message with MSI-X off")
	}
	if read(&m.mmio, entry+12, 4) != 1 {
		t.Error("an entry is not masked after a reset")
	}
	m.set(1, c+2, 2, 0x8000)
	f.MSIX().Signal(1)
	if v.signals != 0 || pending() != 2 {
		t.Errorf("masked: %d signals, pending %#x", v.signals, pending())
	}
	write(&m.mmio, entry, 8, 0xfee0_1000)
	write(&m.mmio, entry+8, 4, 0x4041)
	if v.routes != 0 {
		t.Error("routed while it is masked")
	}
	write(&m.mmio, entry+12, 4, 0)
	if v.routes != 1 || v.addr != 0xfee0_1000 || v.data != 0x4041 || v.masked || v.signals != 1 || pending() != 0 {
		t.Errorf("unmasked: %+v, pending %#x", v, pending())
	}
	f.MSIX().Signal(1)
	if v.signals != 2 {
		t.Error("no signal")
	}
	// Masked and unmasked again the vector keeps its message: KVM is not bothered.
	m.set(1, c+2, 2, 0xc000)
	f.MSIX().Signal(1)
	f.MSIX().Signal(1)
	if v.signals != 2 || pending() != 2 {
		t.Error("a signal in spite of the mask of all")
	}
	m.set(1, c+2, 2, 0x8000)
	if v.signals != 3 || v.routes != 1 || pending() != 0 {
		t.Errorf("the mask of all taken back: %+v", v)
	}
	// Another message.
	write(&m.mmio, entry+8, 4, 0x4042)
	if v.routes != 2 || v.data != 0x4042 {
		t.Errorf("another message: %+v", v)
	}
	// A message that KVM does not take stays pending until there is a better one.
	v.refuse = true
	write(&m.mmio, entry+8, 4, 0x4043)
	f.MSIX().Signal(1)
	if v.signals != 3 || pending() != 2 {
		t.Error("a signal with a message that was refused")
	}
	v.refuse = false
	write(&m.mmio, entry+8, 4, 0x4044)
	if v.signals != 4 || pending() != 0 {
		t.Error("a pending signal is lost")
	}
	f.MSIX().Signal(-1)
	f.MSIX().Signal(3)
	f.MSIX().Signal(0xffff)
}

// What is no aligned word is not written, and nothing beyond the table.
func TestMSIXTableAccess(t *testing.T) {
	m, _, _, table := newTable(t, 3)
	for _, w := range []struct {
		off uint64
		n   int
	}{{0, 1}, {2, 2}, {1, 4}, {4, 8}, {14, 4}, {0x800, 8}, {0x800, 4}, {48, 4}, {0x7f8, 8}, {0xff8, 8}} {
		before := [2]uint64{read(&m.mmio, table, 8), read(&m.mmio, table+8, 8)}
		write(&m.mmio, table+w.off, w.n, ^uint64(0))
		if after := [2]uint64{read(&m.mmio, table, 8), read(&m.mmio, table+8, 8)}; after != before {
			t.Errorf("%d bytes at %#x: %#x", w.n, w.off, after)
		}
		if v := read(&m.mmio, table+w.off, w.n); w.off >= 48 && v != 0 {
			t.Errorf("%d bytes at %#x read as %#x", w.n, w.off, v)
		}
	}
	write(&m.mmio, table, 8, 0x1_fee0_0fff)
	write(&m.mmio, table+8, 8, 0xffff_fffe_1234_5678)
	if a, b := read(&m.mmio, table, 8), read(&m.mmio, table+8, 8); a != 0x1_fee0_0ffc || b != 0x1234_5678 {
		t.Errorf("entry %#x %#x", a, b)
	}
	if v := read(&m.mmio, table+6, 2); v != 0 {
		t.Errorf("two bytes read as %#x", v)
	}
	if v := read(&m.mmio, table+4, 1); v != 1 {
		t.Errorf("a byte reads as %#x", v)
	}
}

// A vector that the kernel signals is masked for real.
func TestMSIXExternal(t *testing.T) {
	m, f, c, table := newTable(t, 2)
	v := m.vectors[0]
	m.set(1, c+2, 2, 0x8000)
	if fd, err := f.MSIX().External(0, true); fd != 7 || err != nil {
		t.Fatalf("External: %d, %v", fd, err)
	}
	write(&m.mmio, table, 8, 0xfee0_0000)
	write(&m.mmio, table+8, 8, 0x41)
	if v.masked {
		t.Error("masked with an entry that is not")
	}
	write(&m.mmio, table+12, 4, 1)
	if !v.masked {
		t.Error("not masked")
	}
	write(&m.mmio, table+12, 4, 0)
	m.set(1, c+2, 2, 0xc000)
	if !v.masked {
		t.Error("not masked with all")
	}
	m.set(1, c+2, 2, 0x8000)
	if v.masked {
		t.Error("masked for good")
	}
	if _, err := f.MSIX().External(0, false); err != nil {
		t.Error(err)
	}
	routes := v.routes
	m.set(1, c+2, 2, 0)
	if v.masked || v.routes != routes {
		t.Error("masked for real after it was given back")
	}
	if _, err := f.MSIX().External(2, true); err == nil {
		t.Error("a vector that is not there")
	}
}

func TestState(t *testing.T) {
	m, f, c, table := newTable(t, 3)
	m.set(1, 0x10, 4, 0xd000_0000)
	m.set(1, 0x3c, 1, 99)
	m.set(1, c+2, 2, 0xc000)
	write(&m.mmio, table, 8, 0xfee0_0000)
	write(&m.mmio, table+8, 8, 0x55)
	f.MSIX().Signal(0)
	write(&m.ports, 0xcf8, 4, 0x8000_0810)
	raw, err := json.Marshal(f.State())
	if err != nil {
		t.Fatal(err)
	}
	hostState, err := m.host.SaveState()
	if err != nil {
		t.Fatal(err)
	}

	n, g, _, _ := newTable(t, 3)
	n.set(1, 4, 2, 0)
	var s FunctionState
	if err := json.Unmarshal(raw, &s); err != nil {
		t.Fatal(err)
	}
	if err := g.SetState(s); err != nil {
		t.Fatal(err)
	}
	if err := n.host.RestoreState(hostState); err != nil {
		t.Fatal(err)
	}
	for reg := 0; reg < 256; reg += 4 {
		if a, b := m.get(1, reg, 4), n.get(1, reg, 4); a != b {
			t.Errorf("register %#x: %#x, was %#x", reg, b, a)
		}
	}
	if v := read(&n.ports, 0xcf8, 4); v != 0x8000_0810 {
		t.Errorf("address %#x", v)
	}
	if read(&n.mmio, table+8, 4) != 0x55 || read(&n.mmio, table+0x800, 8) != 1 {
		t.Error("the table is another")
	}
	n.set(1, c+2, 2, 0x8000)
	if n.vectors[0].signals != 1 || n.vectors[0].data != 0x55 {
		t.Errorf("what was pending is lost: %+v", n.vectors[0])
	}
	for what, bad := range map[string]func(s *FunctionState){
		"short":          func(s *FunctionState) { s.Config = s.Config[:255] },
		"another device": func(s *FunctionState) { s.Config[0] ^= 1 },
		"fewer vectors":  func(s *FunctionState) { s.MSIX = s.MSIX[:2] },
		"a BAR's size":   func(s *FunctionState) { s.Config[0x11] ^= 1 },
	} {
		b := g.State()
		bad(&b)
		if g.SetState(b) == nil {
			t.Errorf("a state that is %s is taken", what)
		}
	}
	for _, bad := range []string{"", "{}", `{"version":2}`, `{"version":1}`} {
		if n.host.RestoreState([]byte(bad)) == nil {
			t.Errorf("host state %q is taken", bad)
		}
	}
}
