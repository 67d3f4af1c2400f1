package linux

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Entries of an XArray (include/linux/xarray.h). The two low bits tell them
// apart: 00 a pointer, x1 a value, 10 an internal entry.
const (
	xaInternalMask = 3
	xaInternal     = 2
	xaValueBit     = 1
	// xaMaxInternal: an internal entry up to here is a sibling, a retry or a
	// zero entry; above it, a node (xa_is_node).
	xaMaxInternal = 4096
	// xaMaxDepth: a node's shift is a multiple of its width and below 64, so
	// no tree of 16 slots a node is deeper.
	xaMaxDepth = 16
)

// xaFields is where the facts of an xa_node lie.
type xaFields struct {
	shift, offset, slots field
	slotLen              uint64 // slots of a node: 64, or 16 on small kernels
	span                 span
}

// walkXArray calls fn for each pointer in the XArray whose xa_head is head, in
// ascending order of index, up to maxIndex. fn returning false ends the walk.
//
// The tree is believed only as far as it holds together: shifts fall by one
// level a step, a node knows its slot, and no node is met twice. A part that
// does not is told to bad and left out. maxNodes bounds the nodes read.
func (r *reader) walkXArray(ctx context.Context, f *xaFields, head hypervisor.VirtAddr, maxIndex uint64, maxNodes int, bad func(at hypervisor.VirtAddr, err error), fn func(index uint64, entry hypervisor.VirtAddr) bool) error {
	w := xaWalk{r: r, f: f, ctx: ctx, maxIndex: maxIndex, left: maxNodes, bad: bad, fn: fn, seen: map[hypervisor.VirtAddr]struct{}{}}
	for b := f.slotLen; b > 1; b >>= 1 {
		w.bits++
	}
	if w.bits == 0 || f.slotLen != 1<<w.bits {
		return fmt.Errorf("xarray nodes of %d slots: %w", f.slotLen, ErrTorn)
	}
	entry := uint64(head)
	switch {
	case entry == 0:
		return nil
	case entry&xaInternalMask == 0:
		fn(0, head) // a lone entry at index 0 needs no node
		return nil
	case entry&xaInternalMask != xaInternal || entry <= xaMaxInternal:
		return nil // a value, or a reserved entry
	}
	_, err := w.node(hypervisor.VirtAddr(entry-xaInternal), 0, -1, 0)
	return err
}

// lookupXArray returns the pointer at index, 0 when there is none.
func (r *reader) lookupXArray(f *xaFields, head hypervisor.VirtAddr, index uint64) (hypervisor.VirtAddr, error) {
	entry, err := r.lookupXAEntry(f, head, index)
	if err != nil || entry&xaInternalMask != 0 {
		return 0, err
	}
	return hypervisor.VirtAddr(entry), nil
}

// lookupXAEntry returns the pointer or value at index, 0 when there is none.
// The one entry of several indices is returned for each of them.
func (r *reader) lookupXAEntry(f *xaFields, head hypervisor.VirtAddr, index uint64) (uint64, error) {
	var bits uint
	for b := f.slotLen; b > 1; b >>= 1 {
		bits++
	}
	entry := uint64(head)
	var buf []byte
	for depth := range xaMaxDepth + 1 {
		switch {
		case entry&xaInternalMask != xaInternal:
			if depth == 0 && index != 0 {
				return 0, nil
			}
			return entry, nil
		case entry <= xaMaxInternal:
			return 0, nil
		}
		at := hypervisor.VirtAddr(entry - xaInternal)
		if err := r.check(at, at, 8); err != nil {
			return 0, err
		}
		o, b, err := r.object(buf, at, f.span)
		if err != nil {
			return 0, err
		}
		buf = b
		shift := uint(o.uint(f.shift))
		if shift >= 64 || (depth == 0 && shift+bits < 64 && index>>(shift+bits) != 0) {
			return 0, nil
		}
		slots := o.bytes(f.slots)
		i := (index >> shift & (f.slotLen - 1)) * 8
		if i+8 > uint64(len(slots)) {
			return 0, fmt.Errorf("xarray node at %#x: %w", uint64(at), ErrTorn)
		}
		entry = binary.LittleEndian.Uint64(slots[i:])
		if first, ok := f.sibling(entry); ok && first*8 < i {
			entry = binary.LittleEndian.Uint64(slots[first*8:])
		}
		if shift == 0 && entry&xaInternalMask == xaInternal {
			return 0, nil
		}
	}
	return 0, fmt.Errorf("xarray: %w: %d levels", ErrLimit, xaMaxDepth)
}

// sibling returns the slot that holds the entry of several indices to which
// entry belongs (xa_is_sibling). ok is false when it is another kind of entry.
func (f *xaFields) sibling(entry uint64) (slot uint64, ok bool) {
	slot = entry >> 2
	return slot, entry&xaInternalMask == xaInternal && slot < f.slotLen-1
}

type xaWalk struct {
	r        *reader
	f        *xaFields
	ctx      context.Context
	bits     uint
	maxIndex uint64
	left     int
	bad      func(at hypervisor.VirtAddr, err error)
	fn       func(index uint64, entry hypervisor.VirtAddr) bool
	seen     map[hypervisor.VirtAddr]struct{}
}

// node walks the node at addr, which covers the indices from base on. above is
// the parent's shift, -1 for the root, and slot its place in the parent. more
// is false when the walk is over.
func (w *xaWalk) node(addr hypervisor.VirtAddr, base uint64, above int, slot uint64) (more bool, err error) {
	if w.ctx.Err() != nil {
		return false, w.ctx.Err()
	}
	if w.left--; w.left < 0 {
		return false, fmt.Errorf("xarray: %w: too many nodes", ErrLimit)
	}
	if err := w.r.check(addr, addr, 8); err != nil {
		w.bad(addr, err)
		return true, nil
	}
	if _, ok := w.seen[addr]; ok {
		w.bad(addr, fmt.Errorf("xarray node: %w", ErrCycle))
		return true, nil
	}
	w.seen[addr] = struct{}{}
	o, _, err := w.r.object(nil, addr, w.f.span)
	if err != nil {
		w.bad(addr, err)
		return true, nil
	}
	shift := int(o.uint(w.f.shift))
	wellFormed := shift < 64 && shift%int(w.bits) == 0
	if above >= 0 {
		wellFormed = wellFormed && shift == above-int(w.bits) && o.uint(w.f.offset) == slot
	}
	if !wellFormed {
		w.bad(addr, fmt.Errorf("xarray node: %w: shift %d", ErrTorn, shift))
		return true, nil
	}
	slots := o.bytes(w.f.slots)
	for i := uint64(0); i < w.f.slotLen && i*8+8 <= uint64(len(slots)); i++ {
		index := base + i<<uint(shift)
		if index > w.maxIndex || index < base || i<<uint(shift)>>uint(shift) != i {
			return false, nil
		}
		entry := binary.LittleEndian.Uint64(slots[i*8:])
		switch {
		case entry == 0, entry&xaValueBit != 0:
		case entry&xaInternalMask == 0:
			// Above the last level this is an entry of several indices,
			// which the kernel's idr has not.
			if shift == 0 && !w.fn(index, hypervisor.VirtAddr(entry)) {
				return false, nil
			}
		case entry > xaMaxInternal:
			if shift == 0 {
				w.bad(addr, fmt.Errorf("xarray node: %w: a node below the last level", ErrTorn))
				continue
			}
			if more, err := w.node(hypervisor.VirtAddr(entry-xaInternal), index, shift, i); !more {
				return false, err
			}
		}
	}
	return true, nil
}
