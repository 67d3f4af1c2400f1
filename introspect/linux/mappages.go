package linux

import (
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

const (
	// pageMappingAnon is PAGE_MAPPING_ANON, include/linux/page-flags.h
	// (FOLIO_MAPPING_ANON since 6.16): the page belongs to no file.
	pageMappingAnon = 1
	// Of arch/x86/include/asm/pgtable_types.h: _PAGE_DIRTY and, where it is kept
	// since 6.6 while the page may not be written to, _PAGE_SAVED_DIRTY.
	pteDirty      = 1 << 6
	pteSavedDirty = 1 << 58
	// swapTypeShift: from it on an entry that is not present has the number of
	// the swap area (arch/x86/include/asm/pgtable_64.h: SWP_TYPE_BITS).
	swapTypeShift = 59
	// maxSwapTypes: the numbers from here on are no swap areas but pages that
	// move, are broken, or lie in a device (include/linux/swap.h:
	// MAX_SWAPFILES, the least that a configuration has).
	maxSwapTypes = 23
)

// mapPage is what the struct page of a frame says, or that of the first frame
// of a larger page.
type mapPage struct {
	head        hypervisor.VirtAddr
	anon, dirty bool
}

var errNoVmemmap = errors.New("it is not known where this kernel has its array of struct page")

// count sets the counts of pages of areas, which are in ascending order.
func (w *mapWalk) count(areas []Area) {
	if len(areas) == 0 {
		return
	}
	as, err := w.space()
	if err != nil {
		w.cov.Add("page table", w.vmas.mm, err)
		return
	}
	w.zeroFrames()
	i := 0
	for m, err := range as.Mappings(w.ctx, areas[0].Start, areas[len(areas)-1].End) {
		if m.Size == 0 {
			if w.ctx.Err() == nil {
				w.cov.Add("page table", w.vmas.mm, err)
			}
			break
		}
		for i < len(areas) && areas[i].End <= m.Virt {
			i++
		}
		end := m.Virt + hypervisor.VirtAddr(m.Size)
		for j := i; j < len(areas) && areas[j].Start < end; j++ {
			w.mapping(&areas[j], w.vmas.behind[j], m, err)
		}
		if w.left < 0 {
			w.cov.Add("pages of mappings", w.vmas.mm, ErrLimit)
			break
		}
	}
	for i := range areas {
		if w.ctx.Err() != nil {
			return
		}
		if err := w.swappedFile(as, &areas[i], w.vmas.behind[i]); err != nil {
			w.cov.Add("swapped pages of a file", w.vmas.behind[i].file, err)
		}
	}
}

// space returns the user's address space. What is behind entries that are not
// present is looked at here.
func (w *mapWalk) space() (*paging.AddressSpace, error) {
	f := w.g.lay.mm.pgd
	if !f.ok {
		return nil, errNoPageTables
	}
	pgd, err := w.g.r.ptr(w.vmas.mm + hypervisor.VirtAddr(f.off))
	if err != nil {
		return nil, err
	}
	as, err := w.g.space(w.vmas.mm, pgd)
	if err != nil {
		return nil, err
	}
	// A page of RAM is seldom mapped more than a few times in one process.
	const perPage, some = 4, 64 << 10
	w.left = perPage*int(hypervisor.TotalSize(w.g.mem.Ranges())/hypervisor.PageSize) + some
	return paging.New(w.g.mem, as.Root(), paging.WithMaxMappings(uint64(w.left)), paging.WithDirtyBits(pteSavedDirty)), nil
}

// zeroFrames finds the pages that stand for memory that was never written to.
func (w *mapWalk) zeroFrames() {
	const none = ^hypervisor.PhysAddr(0)
	w.zero, w.hugeZero = none, none
	frame := func(at hypervisor.VirtAddr) hypervisor.PhysAddr {
		if at == 0 {
			return none
		}
		if n, err := w.g.r.u64(at); err == nil && n < 1<<(52-hypervisor.PageShift) {
			return hypervisor.PhysAddr(n << hypervisor.PageShift)
		}
		return none
	}
	w.zero, w.hugeZero = frame(w.f.zeroPFN), frame(w.f.hugeZeroPFN)
	if w.f.zeroPage != 0 && w.zero == none {
		if m, err := w.g.kernel.Space.Translate(w.f.zeroPage); err == nil {
			w.zero = m.At(w.f.zeroPage)
		}
	}
	if w.f.hugeZeroPage != 0 && w.hugeZero == none {
		if page, err := w.g.r.ptr(w.f.hugeZeroPage); err == nil && page != 0 {
			if phys, err := w.pages.physOf(page); err == nil {
				w.hugeZero = phys
			}
		}
	}
}

// mapping counts what m, or the hole that why tells of, is of a.
func (w *mapWalk) mapping(a *Area, f mapFile, m paging.Mapping, why error) {
	lo, hi := max(m.Virt, a.Start), min(m.Virt+hypervisor.VirtAddr(m.Size), a.End)
	n := uint64(hi-lo) >> hypervisor.PageShift
	phys, dirty := m.Phys+hypervisor.PhysAddr(lo-m.Virt), m.Flags.Has(paging.Dirty)
	w.left--
	if why != nil {
		var hole *paging.NotMappedError
		if !errors.As(why, &hole) || hole.Kind != paging.KindSwapped {
			w.cov.Add("page table", w.vmas.mm, why)
			return
		}
		at, ok := protNone(hole.Entry)
		if !ok || hole.Level > 2 {
			if hole.Entry>>swapTypeShift < w.swapAreas() {
				a.Swapped += n
				if f.file != 0 {
					w.modified(a, n)
				}
			}
			return
		}
		at &^= hypervisor.PhysAddr(m.Size - 1)
		phys, dirty = at+hypervisor.PhysAddr(lo-m.Virt), hole.Entry&(pteDirty|pteSavedDirty) != 0
	}
	switch {
	case f.flags&vmPFNMap != 0, phys == w.zero, m.Size > hypervisor.PageSize && phys&^hypervisor.PhysAddr(m.Size-1) == w.hugeZero:
		return
	case f.flags&vmHugeTLB != 0:
		a.Resident += n
		return
	}
	a.Resident += n
	private := f.flags&vmMayShare == 0
	p := mapPage{anon: f.file == 0}
	if !dirty || f.file != 0 && private {
		var err error
		if p, err = w.page(phys); err != nil {
			w.cov.Add("page of a mapping", lo, err)
			return
		}
	}
	if dirty || p.dirty {
		a.Dirty += n
	}
	if !p.anon {
		return
	}
	a.Anonymous += n
	if f.file != 0 && private {
		w.compare(a, f, lo, phys, n)
	}
}

func (w *mapWalk) swapAreas() uint64 {
	if w.f.swapTypes != 0 {
		if n, err := w.g.r.u32(w.f.swapTypes); err == nil && n <= maxSwapTypes {
			return uint64(n)
		}
	}
	return maxSwapTypes
}

// page returns what is said of the frame at phys.
func (w *mapWalk) page(phys hypervisor.PhysAddr) (mapPage, error) {
	l, base := w.pages, w.g.kernel.VmemmapBase
	if base == 0 {
		return mapPage{}, errNoVmemmap
	}
	addr := base + hypervisor.VirtAddr(uint64(phys)>>hypervisor.PageShift*l.f.pageSize)
	o, err := l.page(addr)
	if err != nil {
		return mapPage{}, fmt.Errorf("struct page: %w", err)
	}
	if info := o.uint(l.f.compound); info&1 != 0 {
		addr = compoundHead(addr, info)
		if addr == w.last.head {
			return w.last, nil
		}
		if o, err = l.page(addr); err != nil {
			return mapPage{}, fmt.Errorf("first struct page: %w", err)
		}
	}
	w.last = mapPage{
		head: addr, anon: o.uint(l.f.mapping)&pageMappingAnon != 0, dirty: o.uint(l.f.flags)>>l.f.dirty&1 != 0,
	}
	return w.last, nil
}

// compoundHead returns the first struct page of the larger page that the one at
// addr belongs to (_compound_head, include/linux/page-flags.h). info is its
// address and 1 or, from 7.0 on where struct page is of a size that allows it,
// the mask that makes it of addr.
func compoundHead(addr hypervisor.VirtAddr, info uint64) hypervisor.VirtAddr {
	const maskHigh = 0xffff_ffff // no struct page lies that high
	if info>>32 == maskHigh {
		return addr & hypervisor.VirtAddr(info)
	}
	return hypervisor.VirtAddr(info - 1)
}
