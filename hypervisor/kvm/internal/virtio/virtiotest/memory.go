package virtiotest

import (
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// RAM of a test's machine: two pieces, with a hole between them.
const (
	LowSize  = 32 << 20
	High     = 1 << 32
	HighSize = 8 << 20
)

// Memory is bus.Memory. It lies outside of Go's heap, as a guest's does: the race
// detector does not look at what a guest and a device do to each other.
type Memory struct {
	raw  []byte
	file int

	mu    sync.Mutex
	next  uint64 // what Alloc gives next
	dirty map[uint64]bool
}

// NewMemory returns memory for one test.
func NewMemory(t testing.TB) *Memory {
	fd, err := unix.MemfdCreate("virtiotest", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(fd, LowSize+HighSize); err != nil {
		t.Fatal(err)
	}
	raw, err := unix.Mmap(fd, 0, LowSize+HighSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Munmap(raw)
		_ = unix.Close(fd)
	})
	return &Memory{raw: raw, file: fd, next: 0x10_0000, dirty: map[uint64]bool{}}
}

// View is bus.Memory's.
func (m *Memory) View(gpa hypervisor.PhysAddr, size uint64) ([]byte, error) {
	a := uint64(gpa)
	switch {
	case a < LowSize && size <= LowSize-a:
		return m.raw[a : a+size : a+size], nil
	case a >= High && a-High < HighSize && size <= HighSize-(a-High):
		a = a - High + LowSize
		return m.raw[a : a+size : a+size], nil
	}
	return nil, &hypervisor.AddressError{Op: "view", Addr: gpa, Err: hypervisor.ErrNotRAM}
}

// Dirtied is bus.Memory's.
func (m *Memory) Dirtied(gpa hypervisor.PhysAddr, size uint64) {
	if size == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := uint64(gpa) >> 12; p <= (uint64(gpa)+size-1)>>12; p++ {
		m.dirty[p] = true
	}
}

// TakeDirty returns whether the page of gpa was named by Dirtied since the last
// call for it.
func (m *Memory) TakeDirty(gpa uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.dirty[gpa>>12]
	delete(m.dirty, gpa>>12)
	return was
}

// File returns the memfd in which both pieces lie one behind the other.
func (m *Memory) File() int { return m.file }

// Ranges returns the two pieces.
func (m *Memory) Ranges() []hypervisor.Range {
	return []hypervisor.Range{{Start: 0, Size: LowSize}, {Start: High, Size: HighSize}}
}

// Alloc returns the address of n bytes that no one else has, in whole pages.
func (m *Memory) Alloc(t testing.TB, n int) uint64 {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.next
	m.next += (uint64(n) + 4095) &^ 4095
	if m.next > LowSize {
		t.Fatal("the test's guest is out of memory")
	}
	return at
}

// Mark returns a mark for Release.
func (m *Memory) Mark() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.next
}

// Release gives back what was allocated since the mark.
func (m *Memory) Release(mark uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next = mark
}

// Bytes returns n bytes at gpa, or ends the test.
func (m *Memory) Bytes(t testing.TB, gpa uint64, n int) []byte {
	t.Helper()
	b, err := m.View(hypervisor.PhysAddr(gpa), uint64(n))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
