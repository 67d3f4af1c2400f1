package paging

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// ReadVirt reads len(p) bytes at va, over page boundaries. It returns the
// number of bytes read and, when that is less than len(p), why: an error that
// wraps a *NotMappedError, or one of hypervisor.Memory's ReadPhys for a page
// that lies in no RAM. The first n bytes of p are valid also with an error.
func (as *AddressSpace) ReadVirt(p []byte, va hypervisor.VirtAddr) (n int, err error) {
	for n < len(p) {
		at := va + hypervisor.VirtAddr(n)
		if n > 0 && at < va {
			return n, fmt.Errorf("read gva %#x: %w", uint64(va), &NotMappedError{Addr: at, Kind: KindNonCanonical})
		}
		if len(p)-n > 2*hypervisor.PageSize {
			if done := as.readSmallPages(p[n:], at); done > 0 {
				n += done
				continue
			}
		}
		e, err := as.lookup(at)
		if err != nil {
			return n, fmt.Errorf("read: %w", err)
		}
		off := uint64(at - e.Virt)
		var done int
		if off < uint64(len(e.view)) {
			done, err = hypervisor.CopyView(p[n:], e.view[off:])
		} else {
			done, err = as.readRun(p[n:], at, e)
		}
		n += done
		if err != nil {
			return n, fmt.Errorf("read gva %#x: %w", uint64(va)+uint64(n), err)
		}
	}
	return n, nil
}

// readSmallPages reads 4 KiB pages from at on straight by the page table that maps them,
// up to its end: many pages for one walk, with nothing to keep. It reads less, or
// nothing, where that does not work, and leaves it to ReadVirt to find out why.
func (as *AddressSpace) readSmallPages(p []byte, at hypervisor.VirtAddr) (n int) {
	t := as.tlb.lookupTable(at)
	if t == nil || t.view == nil {
		return 0
	}
	l := as.layout
	lv := &l.levels[len(l.levels)-1]
	first, off := uint64(at)>>lv.shift&(lv.entries-1), at.Offset()
	_ = hypervisor.Guard(func() {
		for i := first; i < lv.entries && n < len(p); i++ {
			out := l.decode(lv, l.load(t.view, i))
			if !out.page {
				return
			}
			src := as.view(out.phys, hypervisor.PageSize)
			if len(src) < hypervisor.PageSize {
				return
			}
			n += copy(p[n:], src[off:])
			off = 0
		}
	})
	return n
}

// readRun reads from at, which lies in page e, through ReadPhys: as many pages
// as lie one after the other in physical memory, in one call.
func (as *AddressSpace) readRun(p []byte, at hypervisor.VirtAddr, e *tlbEntry) (int, error) {
	phys := e.At(at)
	size := as.extend(at, phys, e.Size-uint64(at-e.Virt), uint64(len(p)))
	return as.mem.ReadPhys(p[:size], phys)
}

// extend returns how many bytes from at on are contiguous in virtual and
// physical memory, at most limit. size is what is known to lie at phys.
func (as *AddressSpace) extend(at hypervisor.VirtAddr, phys hypervisor.PhysAddr, size, limit uint64) uint64 {
	for size < limit {
		next := at + hypervisor.VirtAddr(size)
		if next < at {
			break
		}
		nextPhys, nextSize := as.peek(next)
		if nextSize == 0 || nextPhys != phys+hypervisor.PhysAddr(size) {
			break
		}
		size += nextSize
	}
	return min(size, limit)
}

// peek is lookup that keeps nothing when it can read the page table at hand: it
// returns where the page at va lies, and its size, 0 when there is none.
func (as *AddressSpace) peek(va hypervisor.VirtAddr) (hypervisor.PhysAddr, uint64) {
	if t := as.tlb.lookupTable(va); t != nil && t.view != nil {
		l := as.layout
		lv := &l.levels[len(l.levels)-1]
		entry, err := as.readEntry(0, t.view, uint64(va)>>lv.shift&(lv.entries-1))
		if out := l.decode(lv, entry); err == nil && out.page {
			return out.phys, uint64(1) << lv.shift
		}
		return 0, 0
	}
	e, err := as.lookup(va)
	if err != nil {
		return 0, 0
	}
	return e.Phys, e.Size
}

// View returns guest memory at va without a copy: at most limit bytes, fewer
// where the pages no longer follow each other in physical memory, or the
// mapping ends; never none without an error. The rules of hypervisor.Mapper hold:
// the view is read-only, a live guest may change it at any moment, a torn file
// faults (see hypervisor.Guard), and it ends with the VM. The error wraps
// hypervisor.ErrNotSupported when the memory cannot be mapped.
func (as *AddressSpace) View(va hypervisor.VirtAddr, limit uint64) ([]byte, error) {
	if as.mapper == nil {
		return nil, fmt.Errorf("view gva %#x: zero-copy memory: %w", uint64(va), hypervisor.ErrNotSupported)
	}
	phys, size := as.peek(va)
	if size == 0 {
		e, err := as.lookup(va)
		if err != nil {
			return nil, fmt.Errorf("view: %w", err)
		}
		phys, size = e.Phys, e.Size
	}
	off := uint64(va) & (size - 1)
	phys += hypervisor.PhysAddr(off)
	size = as.extend(va, phys, size-off, limit)
	if view := as.view(phys, size); len(view) > 0 {
		return view, nil
	}
	view, err := as.mapper.MapPhys(phys, size)
	if err != nil {
		return nil, fmt.Errorf("view gva %#x: %w", uint64(va), err)
	}
	return view, nil
}
