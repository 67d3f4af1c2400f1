package paging

import (
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Option changes what New makes.
type Option func(*AddressSpace)

// WithMaxTables sets how many page table pages one iteration (Mappings, Runs)
// may visit before it stops with a *LimitError. 0 is the default: twice as many
// as the guest has pages of RAM, and some. In an honest guest each table is met
// once, but a tree that points to itself has 512^4 leaves.
func WithMaxTables(n uint64) Option { return func(as *AddressSpace) { as.maxTables = n } }

// WithMaxMappings sets how many mappings and holes one iteration may yield
// before it stops with a *LimitError. 0 is the default: no limit of its own, so
// 512 per table page.
func WithMaxMappings(n uint64) Option { return func(as *AddressSpace) { as.maxMappings = n } }

// AbsentPage says where an operating system keeps the page behind an entry that
// is not present and not zero; ok is false when it is not in RAM.
type AbsentPage func(entry uint64) (phys hypervisor.PhysAddr, ok bool)

// WithAbsentPages makes pages of such entries part of the address space, with the
// flag Absent: no access is allowed to them, but they are there, and memory that
// a guest hides from its own CPU is not to be hidden from who looks in.
func WithAbsentPages(f AbsentPage) Option { return func(as *AddressSpace) { as.absent = f } }

// WithDirtyBits makes pages Dirty whose entry has any of bits, besides those that
// the CPU itself has marked so: an operating system may keep its mark there.
func WithDirtyBits(bits uint64) Option { return func(as *AddressSpace) { as.dirty = bits } }

// AddressSpace is one guest-virtual address space: the page tables below one
// root. It is safe for concurrent use. See the package's documentation for what
// it keeps and for how long.
type AddressSpace struct {
	mem    hypervisor.Memory
	mapper hypervisor.Mapper // nil when mem is none
	root   Root
	layout *layout // nil when root is none
	tlb    tlb

	mapOnce sync.Once
	views   []ramView // made by mapOnce; sorted

	maxTables, maxMappings uint64
	absent                 AbsentPage
	dirty                  uint64 // see WithDirtyBits
}

// New returns the address space below root in mem. A root whose Mode is
// unknown gives an address space in which every call fails with ErrBadRoot.
func New(mem hypervisor.Memory, root Root, opts ...Option) *AddressSpace {
	as := &AddressSpace{mem: mem, root: root}
	as.mapper, _ = mem.(hypervisor.Mapper)
	for _, o := range opts {
		o(as)
	}
	if as.maxTables == 0 {
		const some = 4096
		as.maxTables = 2*(hypervisor.TotalSize(mem.Ranges())/hypervisor.PageSize) + some
	}
	if l, err := newLayout(root); err == nil {
		as.root.CR3 &= root.Mode.cr3Mask() &^ hypervisor.PhysAddr(l.keyMask)
		l.absent = as.absent
		for i := range l.levels {
			l.levels[i].dirty |= as.dirty
		}
		as.layout = l
		as.tlb.init(l)
	}
	return as
}

// Root returns what the address space was made with.
func (as *AddressSpace) Root() Root { return as.root }

// Memory returns the physical memory that the address space lies in.
func (as *AddressSpace) Memory() hypervisor.Memory { return as.mem }

// Flush forgets every translation that was kept.
func (as *AddressSpace) Flush() { as.tlb.epoch.Add(1) }

// Translate returns the page that va lies in: its start, size and flags. An
// address without a page gives a *NotMappedError.
func (as *AddressSpace) Translate(va hypervisor.VirtAddr) (Mapping, error) {
	e, err := as.lookup(va)
	if err != nil {
		return Mapping{}, err
	}
	return e.Mapping, nil
}

// PhysOf returns the physical address of va. Errors as those of Translate.
func (as *AddressSpace) PhysOf(va hypervisor.VirtAddr) (hypervisor.PhysAddr, error) {
	e, err := as.lookup(va)
	if err != nil {
		return 0, err
	}
	return e.At(va), nil
}

// lookup returns the kept translation of va, or walks for it.
func (as *AddressSpace) lookup(va hypervisor.VirtAddr) (*tlbEntry, error) {
	if e := as.tlb.lookup(va); e != nil {
		return e, nil
	}
	if as.layout == nil {
		return nil, fmt.Errorf("translate gva %#x: %w: %v", uint64(va), ErrBadRoot, as.root.Mode)
	}
	return as.walk(va)
}
