package pci

import (
	"errors"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// machine is buses and interrupts that are written down.
type machine struct {
	ports, mmio bus.Bus
	host        *Host
	reset       *regs

	mu      sync.Mutex
	levels  [4]bool
	vectors []*vector
	limit   int
}

func newMachine(t testing.TB) *machine {
	m := &machine{reset: &regs{}, limit: 1000}
	var err error
	m.host, err = NewHost(Config{Ports: &m.ports, MMIO: &m.mmio, MSI: m, Line: m.line, ResetPort: m.reset})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.host.Close(); err != nil {
			t.Error(err)
		}
		for _, v := range m.vectors {
			if !v.closed {
				t.Error("a vector was not closed")
			}
		}
	})
	return m
}

type pin struct {
	m *machine
	i uint32
}

func (m *machine) line(gsi uint32) bus.Line { return pin{m, gsi - 16} }

func (p pin) Set(level bool) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	p.m.levels[p.i] = level
}

func (m *machine) level(i int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.levels[i]
}

// vector writes down what happens to it.
type vector struct {
	mu      sync.Mutex
	addr    uint64
	data    uint32
	masked  bool
	routes  int
	signals int
	refuse  bool
	closed  bool
}

func (m *machine) NewVector() (bus.Vector, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.vectors) == m.limit {
		return nil, errors.New("no vector is left")
	}
	v := &vector{masked: true}
	m.vectors = append(m.vectors, v)
	return v, nil
}

func (v *vector) Route(addr uint64, data uint32, masked bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.refuse {
		return errors.New("no such message")
	}
	v.addr, v.data, v.masked = addr, data, masked
	v.routes++
	return nil
}

func (v *vector) Signal() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.signals++
}

func (v *vector) EventFD() int { return 7 }

func (v *vector) Close() error {
	v.closed = true
	return nil
}

// regs is a BAR of bytes.
type regs struct {
	mu sync.Mutex
	b  [4096]byte
}

func (r *regs) Read(off uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(p, r.b[off%4096:])
}

func (r *regs) Write(off uint64, p []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	copy(r.b[off%4096:], p)
}

// Access as the processor does it, by numbers of the specification.

func read(b *bus.Bus, addr uint64, n int) uint64 {
	var p [8]byte
	b.Read(addr, p[:n])
	return le.Uint64(p[:])
}

func write(b *bus.Bus, addr uint64, n int, v uint64) {
	var p [8]byte
	le.PutUint64(p[:], v)
	b.Write(addr, p[:n])
}

func (m *machine) get(slot, reg, n int) uint64 {
	return read(&m.mmio, uint64(0xe000_0000+slot<<15+reg), n)
}

func (m *machine) set(slot, reg, n int, v uint64) {
	write(&m.mmio, uint64(0xe000_0000+slot<<15+reg), n, v)
}

func (m *machine) add(t testing.TB, s Spec) *Function {
	t.Helper()
	f, err := m.host.Add(s)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
