package virtiotest

import (
	"encoding/binary"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

var le = binary.LittleEndian

const (
	configPorts = 0xcf8
	ecam        = 0xe000_0000
)

// Read reads n bytes of a bus.
func Read(b *bus.Bus, addr uint64, n int) uint64 {
	var p [8]byte
	b.Read(addr, p[:n])
	return le.Uint64(p[:])
}

// Write writes n bytes to a bus.
func Write(b *bus.Bus, addr uint64, n int, v uint64) {
	var p [8]byte
	le.PutUint64(p[:], v)
	b.Write(addr, p[:n])
}

// Config reads n bytes of a slot's configuration space through memory.
func (m *Machine) Config(slot, reg, n int) uint64 {
	return Read(&m.MMIO, uint64(ecam+slot<<15+reg), n)
}

// SetConfig writes there.
func (m *Machine) SetConfig(slot, reg, n int, v uint64) {
	Write(&m.MMIO, uint64(ecam+slot<<15+reg), n, v)
}

// PortConfig reads n bytes of a slot's configuration space through ports.
func (m *Machine) PortConfig(slot, reg, n int) uint64 {
	Write(&m.Ports, configPorts, 4, uint64(1<<31|slot<<11|reg&0xfc))
	return Read(&m.Ports, uint64(configPorts+4+reg&3), n)
}

// SetPortConfig writes there.
func (m *Machine) SetPortConfig(slot, reg, n int, v uint64) {
	Write(&m.Ports, configPorts, 4, uint64(1<<31|slot<<11|reg&0xfc))
	Write(&m.Ports, uint64(configPorts+4+reg&3), n, v)
}

// Capabilities returns where the entries of a slot's list with this ID are.
func (m *Machine) Capabilities(t testing.TB, slot int, id uint64) []int {
	t.Helper()
	if m.Config(slot, 0x06, 2)&0x10 == 0 {
		return nil
	}
	var at []int
	next := int(m.Config(slot, 0x34, 1))
	for n := 0; next != 0; n++ {
		if n == 48 || next < 0x40 || next&3 != 0 {
			t.Fatalf("slot %d: bad list of capabilities, at %#x", slot, next)
		}
		if m.Config(slot, next, 1) == id {
			at = append(at, next)
		}
		next = int(m.Config(slot, next+1, 1))
	}
	return at
}

// BAR returns the address and size of a memory BAR, found as the PCI
// specification has it; decoding must be off.
func (m *Machine) BAR(t testing.TB, slot, i int) (addr, size uint64) {
	t.Helper()
	reg := 0x10 + 4*i
	addr = m.Config(slot, reg, 4)
	if addr&0xf != 0 {
		t.Fatalf("slot %d BAR %d: %#x is not one of 32 bits in memory", slot, i, addr)
	}
	m.SetConfig(slot, reg, 4, 0xffff_ffff)
	size = -(m.Config(slot, reg, 4) &^ 0xf) & 0xffff_ffff
	m.SetConfig(slot, reg, 4, addr)
	return addr, size
}
