package profile

import (
	"sync/atomic"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// identified is memory that says what it is, and counts what is read of it.
type identified struct {
	hypervisor.Memory
	id    string
	bytes atomic.Int64
}

func (m *identified) Identity() string { return m.id }

func (m *identified) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	m.bytes.Add(int64(len(p)))
	return m.Memory.ReadPhys(p, gpa)
}

// Memory that does not change is searched once; another one, one whose kernel is
// no longer there, and one that does not say what it is are searched.
func TestPlace(t *testing.T) {
	dir := t.TempDir()
	g := synth{buildID: 1}.build()
	find := func(g *synthGuest, id string) (*Kernel, int) {
		t.Helper()
		m := &identified{Memory: struct{ hypervisor.Memory }{g.memory()}, id: id}
		k := findCached(t, m, dir)
		checkSynthetic(t, k, g)
		return k, int(m.bytes.Load())
	}
	size := int(hypervisor.TotalSize(g.memory().Ranges()))
	if _, n := find(g, "a"); n < size {
		t.Errorf("%d bytes were read the first time, memory has %d", n, size)
	}
	if _, n := find(g, "a"); n >= size {
		t.Errorf("%d bytes were read the second time, memory has %d", n, size)
	}
	for _, id := range []string{"b", "", ""} {
		if _, n := find(g, id); n < size {
			t.Errorf("identity %q: %d bytes were read, memory has %d", id, n, size)
		}
	}
	// One that lies: its kernel is elsewhere.
	moved := synth{buildID: 1}.build()
	relocate(moved, synthPhys+8<<20)
	clear(moved.ram[synthPhys:][:synthSize])
	m := &identified{Memory: moved.memory(), id: "a"}
	if k := findCached(t, m, dir); k.PhysBase != synthPhys+8<<20 {
		t.Errorf("found at %#x", uint64(k.PhysBase))
	}
}
