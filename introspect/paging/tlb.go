package paging

import (
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Slots of the TLB per page size, smallest page first, and of the cache of
// last-level tables. They are pointers, made when first used: an address space
// that is only iterated costs nothing.
const (
	tlbSlots4K   = 8192
	tlbSlots2M   = 1024
	tlbSlots1G   = 128
	tableSlots   = 1024
	tlbSetsCount = 3
)

// tlbEntry is a kept translation. It is never changed once it is visible.
type tlbEntry struct {
	Mapping
	epoch uint64
	view  []byte // zero-copy bytes from the page's start on, maybe fewer than Size; nil without a Mapper
}

// tableEntry is a kept walk down to a last-level table: all that lies above
// the page table entries of [virt, virt+size).
type tableEntry struct {
	virt  hypervisor.VirtAddr
	size  uint64
	epoch uint64
	table hypervisor.PhysAddr
	perms Flags
	view  []byte // of the whole table, or nil
}

// slots is a direct-mapped cache: one candidate per address, replaced without ado.
type slots[T any] struct {
	p     atomic.Pointer[[]atomic.Pointer[T]]
	shift uint // log2 of what one slot's entry covers
	count int  // a power of two
}

func (s *slots[T]) at(table []atomic.Pointer[T], va hypervisor.VirtAddr) *atomic.Pointer[T] {
	n := uint64(va) >> s.shift
	// Fold the upper bits in: a guest's stacks, heaps and libraries tend to
	// start at round addresses and would meet in the same slots.
	n ^= n >> 13
	return &table[n&uint64(len(table)-1)]
}

func (s *slots[T]) load(va hypervisor.VirtAddr) *T {
	t := s.p.Load()
	if t == nil {
		return nil
	}
	return s.at(*t, va).Load()
}

func (s *slots[T]) store(va hypervisor.VirtAddr, e *T) {
	t := s.p.Load()
	if t == nil {
		fresh := make([]atomic.Pointer[T], s.count)
		if s.p.CompareAndSwap(nil, &fresh) {
			t = &fresh
		} else {
			t = s.p.Load()
		}
	}
	s.at(*t, va).Store(e)
}

// tlb is the software TLB: lock-free, every entry immutable.
type tlb struct {
	epoch  atomic.Uint64
	sets   [tlbSetsCount]slots[tlbEntry]
	tables slots[tableEntry]
}

// init sets the page sizes up; shifts of 0 are not used.
func (t *tlb) init(l *layout) {
	counts := [tlbSetsCount]int{tlbSlots4K, tlbSlots2M, tlbSlots1G}
	n := len(l.levels)
	for i := range t.sets {
		if i < n {
			t.sets[i].shift = l.levels[n-1-i].shift
		}
		t.sets[i].count = counts[i]
	}
	t.tables.shift, t.tables.count = l.levels[n-2].shift, tableSlots
}

func (t *tlb) lookup(va hypervisor.VirtAddr) *tlbEntry {
	epoch := t.epoch.Load()
	for i := range t.sets {
		if e := t.sets[i].load(va); e != nil && e.epoch == epoch && e.Contains(va) {
			return e
		}
	}
	return nil
}

// insert keeps e, which was walked for va at a level of the layout counted
// from the last (0: a page table entry). An entry of an older epoch is of no
// harm: no lookup finds it.
func (t *tlb) insert(va hypervisor.VirtAddr, fromLast int, e *tlbEntry) {
	t.sets[fromLast].store(va, e)
}

func (t *tlb) lookupTable(va hypervisor.VirtAddr) *tableEntry {
	e := t.tables.load(va)
	if e == nil || e.epoch != t.epoch.Load() || va < e.virt || uint64(va-e.virt) >= e.size {
		return nil
	}
	return e
}
