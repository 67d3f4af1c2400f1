package pci

import (
	"errors"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

func TestConfigPorts(t *testing.T) {
	m := newMachine(t)
	m.add(t, Spec{Vendor: 0x1234, Device: 0x5678, Class: 0x010203, Revision: 4, SubVendor: 0xaaaa, SubDevice: 0xbbbb})
	address := func(v uint64) { write(&m.ports, 0xcf8, 4, v) }
	address(1<<31 | 1<<11)
	for _, c := range []struct {
		port uint64
		n    int
		want uint64
	}{{0xcfc, 4, 0x56781234}, {0xcfe, 2, 0x5678}, {0xcfd, 1, 0x12}, {0xcf8, 4, 1<<31 | 1<<11}, {0xcf8, 2, 0xffff}} {
		if v := read(&m.ports, c.port, c.n); v != c.want {
			t.Errorf("port %#x: %#x, want %#x", c.port, v, c.want)
		}
	}
	address(1<<31 | 1<<11 | 8)
	if v := read(&m.ports, 0xcfc, 4); v != 0x01020304 {
		t.Errorf("class and revision %#x", v)
	}
	// No one is there: another slot, function or bus, or the enable bit is off.
	for _, a := range []uint64{1<<31 | 5<<11, 1<<31 | 1<<11 | 1<<8, 1<<31 | 1<<16 | 1<<11, 1 << 11} {
		address(a)
		if v := read(&m.ports, 0xcfc, 4); v != 0xffff_ffff {
			t.Errorf("address %#x: %#x", a, v)
		}
		write(&m.ports, 0xcfc, 4, 0) // goes nowhere
	}
	// The reset register is a byte in the middle, which dword accesses miss.
	write(&m.ports, 0xcf9, 1, 6)
	if m.reset.b[0] != 6 || read(&m.ports, 0xcf9, 1) != 6 {
		t.Error("the reset port does not answer")
	}
	address(0x0600)
	if m.reset.b[0] != 6 {
		t.Error("the address register resets")
	}
}

func TestECAM(t *testing.T) {
	m := newMachine(t)
	m.add(t, Spec{Vendor: 0x1234, Device: 0x5678})
	if v := m.get(0, 0, 4); v != 0x00081b36 {
		t.Errorf("bridge %#x", v)
	}
	if v := m.get(1, 0, 8); v != 0x56781234 {
		t.Errorf("ID and command %#x", v)
	}
	if v := m.get(1, 0xff, 1); v != 0 {
		t.Errorf("last byte %#x", v)
	}
	// What is behind 256 bytes is zeros, also what reaches over the end.
	for _, reg := range []int{0x100, 0xffc} {
		m.set(1, reg, 4, 0xffff_ffff)
		if v := m.get(1, reg, 4); v != 0 {
			t.Errorf("register %#x: %#x", reg, v)
		}
	}
	if v := m.get(1, 0xfc, 8); v != 0 {
		t.Errorf("across 256 bytes: %#x", v)
	}
	if v := m.get(1, 0x1000, 4); v != 0xffff_ffff { // function 1
		t.Errorf("function 1: %#x", v)
	}
	if v := m.get(31, 0, 4); v != 0xffff_ffff {
		t.Errorf("slot 31: %#x", v)
	}
	// The identity is no one's to write.
	before := m.get(1, 0, 8)
	m.set(1, 0, 4, 0)
	m.set(1, 8, 8, ^uint64(0))
	m.set(1, 4, 2, 0xffff)
	if v := m.get(1, 0, 8); v != before|0x406<<32 {
		t.Errorf("after writes: %#x", v)
	}
}

func TestBAR(t *testing.T) {
	m := newMachine(t)
	big, small := &regs{}, &regs{}
	var access []Access
	m.add(t, Spec{Vendor: 1, Device: 2, BARs: []BAR{{0x1000, small}, {0x10000, big}}, Changed: func(a Access) { access = append(access, a) }})
	first, second := m.get(1, 0x10, 4), m.get(1, 0x14, 4)
	if first < 0xc000_0000 || second < 0xc000_0000 || first%0x1000 != 0 || second%0x10000 != 0 || first == second {
		t.Fatalf("BARs at %#x and %#x", first, second)
	}
	m.set(1, 0x10, 4, 0xffff_ffff)
	m.set(1, 0x14, 4, 0xffff_ffff)
	if a, b := m.get(1, 0x10, 4), m.get(1, 0x14, 4); a != 0xffff_f000 || b != 0xffff_0000 {
		t.Errorf("sizes %#x and %#x", a, b)
	}
	m.set(1, 0x10, 4, first)
	m.set(1, 0x14, 4, second)
	reaches := func(addr uint64, r *regs) bool {
		r.b[0] = 0x5a
		defer func() { r.b[0] = 0 }()
		return read(&m.mmio, addr, 1) == 0x5a
	}
	if reaches(first, small) {
		t.Error("a BAR answers with memory decoding off")
	}
	m.set(1, 4, 2, 6)
	if !reaches(first, small) || !reaches(second, big) {
		t.Error("a BAR does not answer")
	}
	if n := len(access); n != 1 || access[0].Bases[0] != first || access[0].Bases[1] != second || !access[0].Master {
		t.Errorf("told of %+v", access)
	}
	// Moved while decoding is on.
	m.set(1, 0x10, 4, 0xd123_4000)
	if reaches(first, small) || !reaches(0xd123_4000, small) {
		t.Error("a BAR does not move")
	}
	// Out of the window, over RAM, over the configuration space, over another.
	for _, to := range []uint64{0, 0x1000, 0xbfff_f000, 0xe000_0000, 0xfee0_0000, second, second + 0xf000} {
		m.set(1, 0x10, 4, to)
		if reaches(to, small) {
			t.Errorf("a BAR answers at %#x", to)
		}
	}
	if !reaches(second, big) || m.get(0, 0, 2) != 0x1b36 {
		t.Error("what a BAR was put over does not answer any more")
	}
	m.set(1, 0x10, 4, first)
	if !reaches(first, small) {
		t.Error("a BAR does not come back")
	}
	m.set(1, 4, 2, 0)
	if reaches(first, small) || reaches(second, big) {
		t.Error("a BAR answers with memory decoding off")
	}
	if a := access[len(access)-1]; a.Master || a.Bases[0] != 0 || a.Bases[1] != 0 {
		t.Errorf("told of %+v at last", a)
	}
}

func TestFull(t *testing.T) {
	m := newMachine(t)
	for _, bad := range []Spec{
		{BARs: []BAR{{0x1800, &regs{}}}}, {BARs: []BAR{{0x800, &regs{}}}}, {BARs: []BAR{{0, &regs{}}}},
		{BARs: make([]BAR, 7)}, {Vectors: MaxVectors + 1}, {BARs: []BAR{{1 << 30, &regs{}}}},
		{Capabilities: []Capability{{ID: 9, Data: make([]byte, 250)}}},
	} {
		if _, err := m.host.Add(bad); err == nil {
			t.Errorf("function of %+v is taken", bad)
		}
	}
	for range MaxFunctions {
		m.add(t, Spec{Vendor: 1, Device: 2})
	}
	if _, err := m.host.Add(Spec{Vendor: 1}); !errors.Is(err, hypervisor.ErrNoResources) {
		t.Errorf("a function too many: %v", err)
	}
	n := newMachine(t)
	n.limit = 3
	if _, err := n.host.Add(Spec{Vectors: 4}); err == nil {
		t.Error("vectors that are not there")
	}
	if v := n.get(1, 0, 4); v != 0xffff_ffff {
		t.Errorf("a function that was refused answers: %#x", v)
	}
}

func TestINTx(t *testing.T) {
	m := newMachine(t)
	var fs []*Function
	for range 5 {
		fs = append(fs, m.add(t, Spec{Vendor: 1, Device: 2, Pin: true, Vectors: 1}))
	}
	a, b := fs[0], fs[4] // slots 1 and 5 share a line
	if m.get(1, 0x3d, 1) != 1 || m.get(1, 0x3c, 1) != 17 || m.get(5, 0x3c, 1) != 17 {
		t.Errorf("pin %d, lines %d and %d", m.get(1, 0x3d, 1), m.get(1, 0x3c, 1), m.get(5, 0x3c, 1))
	}
	status := func(slot int) bool { return m.get(slot, 4, 4)>>16&8 != 0 }
	a.SetINTx(true)
	b.SetINTx(true)
	a.SetINTx(false)
	if !m.level(1) || status(1) || !status(5) {
		t.Error("the line of two is not the or of them")
	}
	m.set(5, 4, 2, 0x400) // INTx disable
	if m.level(1) || !status(5) {
		t.Error("INTx disable does not lower the line, or hides the status")
	}
	m.set(5, 4, 2, 0)
	if !m.level(1) {
		t.Error("the line does not come back")
	}
	at := int(m.get(5, 0x34, 1))
	m.set(5, at+2, 2, 0x8000)
	if m.level(1) {
		t.Error("the line is raised with MSI-X")
	}
	m.set(5, at+2, 2, 0)
	b.SetINTx(false)
	if m.level(1) {
		t.Error("the line stays")
	}
}

func TestCapabilities(t *testing.T) {
	m := newMachine(t)
	var got []int
	m.add(t, Spec{Vendor: 1, Device: 2, Capabilities: []Capability{
		{ID: 9, Data: []byte{5, 6, 7}, Mask: []byte{0, 0xf0}},
		{ID: 9, Data: make([]byte, 6), Mask: []byte{0, 0, 0xff},
			Read:  func(off, n int, data []byte) { data[5]++; got = append(got, off, n) },
			Write: func(off, n int, data []byte) { got = append(got, -off, -n) }},
	}})
	if m.get(1, 6, 2)&0x10 == 0 {
		t.Error("the status says nothing of a list")
	}
	a := int(m.get(1, 0x34, 1))
	b := int(m.get(1, a+1, 1))
	if a%4 != 0 || b%4 != 0 || m.get(1, a, 1) != 9 || m.get(1, b, 2) != 9 {
		t.Fatalf("capabilities at %#x and %#x", a, b)
	}
	m.set(1, a, 4, 0xffff_ffff)
	m.set(1, a+4, 1, 0xff)
	if v := m.get(1, a, 8); v&^0xff00 != 0x07_f605_0009 {
		t.Errorf("first one after a write: %#x", v)
	}
	got = nil
	if v := m.get(1, b+4, 4); v>>24 != 1 {
		t.Errorf("read by Read: %#x", v)
	}
	m.get(1, b, 2) // not its data
	m.set(1, b+2, 8, 0)
	want := []int{2, 4, 0, -6}
	if len(got) != len(want) || got[0] != 2 || got[1] != 4 || got[2] != 0 || got[3] != -6 {
		t.Errorf("calls %v, want %v", got, want)
	}
}
