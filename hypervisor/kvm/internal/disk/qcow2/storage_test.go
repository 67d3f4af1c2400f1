package qcow2

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

const sector = 512

// memory is storage that knows what a loss of power would leave: what was there
// at the last Sync, and of what came later any of the sectors in any of the
// states they had.
type memory struct {
	mu      sync.Mutex
	now     []byte
	durable []byte
	later   map[uint64][][]byte // by sector: what it was since the last Sync; nil: not noted
	limit   uint64              // of the size; 0: none
	fail    int                 // this many more writes succeed; -1: all
}

func newMemory(image []byte) *memory {
	return &memory{now: slices.Clone(image), durable: slices.Clone(image), later: map[uint64][][]byte{}, fail: -1}
}

func (m *memory) Path() string   { return "memory" }
func (m *memory) Device() bool   { return false }
func (m *memory) Writable() bool { return true }
func (m *memory) Close() error   { return nil }

func (m *memory) Size() (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(len(m.now)), nil
}

func (m *memory) Grow(size uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.grow(size)
}

func (m *memory) grow(size uint64) error {
	if m.limit > 0 && size > m.limit {
		return unix.ENOSPC
	}
	if size > uint64(len(m.now)) {
		m.now = append(m.now, make([]byte, size-uint64(len(m.now)))...)
	}
	return nil
}

func (m *memory) ReadSome(iov [][]byte, off uint64) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= uint64(len(m.now)) {
		return 0, nil
	}
	return uint64(hostfile.CopyOut(iov, m.now[off:])), nil
}

func (m *memory) ReadAt(p []byte, off uint64) error {
	n, err := m.ReadSome([][]byte{p}, off)
	clear(p[n:])
	return err
}

func (m *memory) WriteAt(p []byte, off uint64) error { return m.WriteV([][]byte{p}, off) }

func (m *memory) WriteV(iov [][]byte, off uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := hostfile.Len(iov)
	if m.fail == 0 {
		return unix.EIO
	}
	if m.fail > 0 {
		m.fail--
	}
	if err := m.grow(off + n); err != nil {
		return err
	}
	hostfile.CopyIn(m.now[off:], iov)
	if m.later == nil {
		return nil
	}
	for s := off / sector; s*sector < off+n; s++ {
		m.later[s] = append(m.later[s], slices.Clone(m.now[s*sector:min((s+1)*sector, uint64(len(m.now)))]))
	}
	return nil
}

func (m *memory) WriteZeroes(off, n uint64, _ bool) error { return m.WriteAt(make([]byte, n), off) }

func (m *memory) Punch(off, n uint64) (bool, error) {
	size, _ := m.Size()
	if off >= size {
		return true, nil
	}
	return true, m.WriteAt(make([]byte, min(n, size-off)), off)
}

func (m *memory) Sync() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.later == nil {
		return nil
	}
	m.durable = slices.Clone(m.now)
	m.later = map[uint64][][]byte{}
	return nil
}

// cut returns what the storage may hold after a loss of power.
func (m *memory) cut(rng *rand.Rand) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := slices.Clone(m.durable)
	if len(m.now) > len(out) && rng.IntN(2) == 0 {
		out = append(out, make([]byte, len(m.now)-len(out))...)
	}
	keep := rng.IntN(101)
	for _, s := range slices.Sorted(maps.Keys(m.later)) {
		states := m.later[s]
		if rng.IntN(100) >= keep {
			continue
		}
		state := states[rng.IntN(len(states))]
		if end := s*sector + uint64(len(state)); end > uint64(len(out)) {
			out = append(out, make([]byte, end-uint64(len(out)))...)
		}
		copy(out[s*sector:], state)
	}
	return out
}
