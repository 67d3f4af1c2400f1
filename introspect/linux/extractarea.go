package linux

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// areaSpace is what is needed of a process's address space.
type areaSpace interface {
	Mappings(ctx context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[paging.Mapping, error]
}

// areaKind is where a piece of an area comes from.
type areaKind uint8

const (
	areaMapped  areaKind = iota // in the page tables, or in the page cache: at phys
	areaZero                    // never touched: zeros, and that is what the process sees
	areaSwapped                 // in swap
	areaLost                    // not in RAM, or what is there cannot be believed
)

// areaPiece is a piece of an area, in one piece of physical memory if it is in
// RAM.
type areaPiece struct {
	kind       areaKind
	start, end hypervisor.VirtAddr
	phys       hypervisor.PhysAddr
	swap       uint64 // of a swapped page: the kernel's swp_entry_t
}

// pieces calls fn for the pieces of the part lo to hi of v, in ascending order,
// without a gap. What cannot be believed is told to bad.
func (a *areasLook) pieces(ctx context.Context, v *VMA, lo, hi hypervisor.VirtAddr, bad func(at hypervisor.VirtAddr, err error), fn func(areaPiece) error) error {
	at := lo
	give := func(p areaPiece) error {
		p.start = at
		at = p.end
		if a.left == 0 {
			return fmt.Errorf("pieces of memory areas: %w", ErrLimit)
		}
		a.left--
		return fn(p)
	}
	for m, err := range a.space.Mappings(ctx, lo, hi) {
		if err != nil && m.Size == 0 {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			bad(at, err) // a limit
			return give(areaPiece{kind: areaLost, end: hi})
		}
		end := min(hi, m.Virt+hypervisor.VirtAddr(m.Size))
		if end <= at {
			continue
		}
		if m.Virt > at {
			if err := a.untouched(ctx, v, at, m.Virt, bad, give); err != nil {
				return err
			}
		}
		p := areaPiece{kind: areaMapped, end: end, phys: m.Phys}
		var hole *paging.NotMappedError
		switch {
		case err == nil:
			p.phys = m.At(at)
		case errors.As(err, &hole) && hole.Kind == paging.KindSwapped:
			p.kind, p.swap = areaSwapped, swapEntryOfPTE(hole.Entry)
			if m.Size != hypervisor.PageSize {
				p.kind = areaLost // a large page on its way elsewhere
			}
		default:
			bad(at, err)
			p.kind = areaLost
		}
		if err := give(p); err != nil {
			return err
		}
	}
	if at < hi {
		return a.untouched(ctx, v, at, hi, bad, give)
	}
	return nil
}

// untouched gives the pieces of a part of v for which the page tables have
// nothing: what a first touch would find there.
func (a *areasLook) untouched(ctx context.Context, v *VMA, lo, hi hypervisor.VirtAddr, bad func(at hypervisor.VirtAddr, err error), give func(areaPiece) error) error {
	if v.file == 0 {
		switch {
		case v.ops == 0:
			return give(areaPiece{kind: areaZero, end: hi})
		case v.Path == "[vdso]":
			return a.vdso(v, lo, hi, give)
		}
		return give(areaPiece{kind: areaLost, end: hi}) // pages of the kernel's own: [vvar]
	}
	i, err := a.inodeOf(v)
	if err != nil {
		bad(v.file, err)
		return give(areaPiece{kind: areaLost, end: hi})
	}
	if i.mode&sIFMT != sIFREG {
		return give(areaPiece{kind: areaLost, end: hi}) // a device
	}
	first := (v.Offset + uint64(lo-v.Start)) / hypervisor.PageSize
	count := uint64(hi-lo) / hypervisor.PageSize
	virt := func(index uint64) hypervisor.VirtAddr {
		return lo + hypervisor.VirtAddr((index-first)*hypervisor.PageSize)
	}
	next := first
	pagesOfFile := (i.size + hypervisor.PageSize - 1) / hypervisor.PageSize
	gap := func(to uint64) error {
		if next >= to {
			return nil
		}
		kind := areaLost
		if i.inMemory() && to <= pagesOfFile {
			kind = areaZero
		}
		next = to
		return give(areaPiece{kind: kind, end: virt(to)})
	}
	var stop error
	err = a.runs(ctx, &i, first, first+count-1, bad, func(r pageRun) error {
		from, to := max(r.index, next), min(r.index+r.count, first+count)
		if from >= to {
			return nil
		}
		if stop = gap(from); stop != nil {
			return stop
		}
		next = to
		p := areaPiece{kind: areaMapped, end: virt(to), phys: r.phys + hypervisor.PhysAddr((from-r.index)*hypervisor.PageSize)}
		if r.swap != 0 {
			p = areaPiece{kind: areaSwapped, end: virt(to), swap: r.swap + from - r.index}
		}
		stop = give(p)
		return stop
	})
	if stop != nil || ctx.Err() != nil {
		return errors.Join(stop, ctx.Err())
	}
	if err != nil {
		bad(i.mapping, err)
		if next < first+count {
			next = first + count
			return give(areaPiece{kind: areaLost, end: hi})
		}
		return nil
	}
	return gap(first + count)
}

// vdso gives the pieces of the code that the kernel maps into every process: all
// have the same, which the kernel's image holds.
func (a *areasLook) vdso(v *VMA, lo, hi hypervisor.VirtAddr, give func(areaPiece) error) error {
	var data, size hypervisor.VirtAddr
	if a.f.vdsoImage.ok && a.f.vdsoData.ok && a.f.vdsoSize.ok {
		image, err := a.g.r.ptr(a.mm + hypervisor.VirtAddr(a.f.vdsoImage.off))
		if err == nil && a.g.r.check(a.mm, image, 8) == nil {
			if o, _, err := a.g.r.object(nil, image, spanOf(a.f.vdsoData, a.f.vdsoSize)); err == nil {
				data, size = o.ptr(a.f.vdsoData), o.ptr(a.f.vdsoSize)
			}
		}
	}
	for at := lo; at < hi; at += hypervisor.PageSize {
		p := areaPiece{kind: areaLost, end: at + hypervisor.PageSize}
		if off := at - v.Start; off < size && a.g.r.check(a.mm, data, hypervisor.PageSize) == nil {
			if phys, err := a.g.kernel.Space.PhysOf(data + off); err == nil {
				p.kind, p.phys = areaMapped, phys
			}
		}
		if err := give(p); err != nil {
			return err
		}
	}
	return nil
}

// copy writes the part lo to hi of v.
func (a *areasLook) copy(ctx context.Context, w *contentWriter, v *VMA, lo, hi hypervisor.VirtAddr) error {
	bad := func(at hypervisor.VirtAddr, err error) { w.cov.Problems.Add("memory area", at, err) }
	return a.pieces(ctx, v, lo, hi, bad, func(p areaPiece) error {
		n := uint64(p.end - p.start)
		switch p.kind {
		case areaMapped:
			return w.phys(ctx, a.g.mem, p.phys, n)
		case areaZero:
			w.cov.read(n / hypervisor.PageSize)
			return w.zeros(ctx, n)
		case areaSwapped:
			return a.copySwapped(ctx, w, p.swap, n)
		}
		return w.missing(ctx, n)
	})
}
