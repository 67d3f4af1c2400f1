package linux

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// pagesEntry is one entry of an XArray: a pointer or a value, and the indices
// that it stands at.
type pagesEntry struct {
	index, count uint64
	entry        uint64
	marked       bool // with the first mark; see pagesXArray.marks
}

// pagesXArray walks an XArray whose entries may be values, and may span several
// indices: a mapping's i_pages.
type pagesXArray struct {
	r     *reader
	f     *xaFields
	ctx   context.Context
	bits  uint
	first uint64 // entries that end before it are left out
	last  uint64 // … and those that begin behind it
	left  int    // nodes that may still be read
	marks field  // where a node's marks lie; without it no entry is marked
	buf   [xaMaxDepth + 1][]byte
	bad   func(at hypervisor.VirtAddr, err error)
	fn    func(e pagesEntry) bool
	seen  map[hypervisor.VirtAddr]struct{}
	span  span
}

// walk calls fn for each entry of the tree whose xa_head is head, in ascending
// order of index; fn returning false ends the walk. The tree is believed as far
// as walkXArray believes it.
func (w *pagesXArray) walk(head uint64) error {
	for b := w.f.slotLen; b > 1; b >>= 1 {
		w.bits++
	}
	if w.bits == 0 || w.f.slotLen != 1<<w.bits || !w.f.shift.ok || !w.f.offset.ok {
		return fmt.Errorf("xarray nodes of %d slots: %w", w.f.slotLen, ErrTorn)
	}
	w.span = w.f.span
	if w.marks.ok {
		w.span = spanOf(w.f.shift, w.f.offset, w.f.slots, w.marks)
	}
	w.seen = map[hypervisor.VirtAddr]struct{}{}
	switch {
	case head == 0:
	case head&xaInternalMask != xaInternal:
		if w.first == 0 {
			w.fn(pagesEntry{index: 0, count: 1, entry: head}) // a lone entry at index 0 needs no node
		}
	case head > xaMaxInternal:
		_, err := w.node(hypervisor.VirtAddr(head-xaInternal), 0, -1, 0, 0)
		return err
	}
	return nil
}

func (w *pagesXArray) node(addr hypervisor.VirtAddr, base uint64, above int, slot uint64, depth int) (more bool, err error) {
	if w.ctx.Err() != nil {
		return false, w.ctx.Err()
	}
	if w.left--; w.left < 0 || depth > xaMaxDepth {
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
	o, buf, err := w.r.object(w.buf[depth], addr, w.span)
	w.buf[depth] = buf
	if err != nil {
		w.bad(addr, err)
		return true, nil
	}
	shift := int(o.uint(w.f.shift))
	wellFormed := shift < 64 && shift%int(w.bits) == 0
	if above >= 0 {
		wellFormed = wellFormed && shift == above-int(w.bits) && o.uint(w.f.offset) == slot
	}
	slots := o.bytes(w.f.slots)
	marks := o.uint(w.marks) // the first word: a node has 64 slots
	if !wellFormed || uint64(len(slots)) < w.f.slotLen*8 {
		w.bad(addr, fmt.Errorf("xarray node: %w: shift %d", ErrTorn, shift))
		return true, nil
	}
	step := uint64(1) << uint(shift)
	for i := uint64(0); i < w.f.slotLen; i++ {
		index := base + i*step
		if index > w.last || index < base || i*step>>uint(shift) != i {
			return false, nil // the rest is above all indices
		}
		entry := binary.LittleEndian.Uint64(slots[i*8:])
		switch {
		case entry == 0, index+step-1 < w.first && entry&xaInternalMask == xaInternal:
		case entry&xaInternalMask != xaInternal:
			e := pagesEntry{index: index, count: step, entry: entry, marked: i < 64 && marks>>i&1 != 0}
			for first := i; i+1 < w.f.slotLen; i++ {
				if s, ok := w.f.sibling(binary.LittleEndian.Uint64(slots[(i+1)*8:])); !ok || s != first || e.index+(e.count+step-1) < e.index || e.count+step == 0 {
					break
				}
				e.count += step
			}
			if e.index+e.count-1 >= w.first && !w.fn(e) {
				return false, nil
			}
		case entry > xaMaxInternal:
			if shift == 0 {
				w.bad(addr, fmt.Errorf("xarray node: %w: a node below the last level", ErrTorn))
				continue
			}
			if more, err := w.node(hypervisor.VirtAddr(entry-xaInternal), index, shift, i, depth+1); !more {
				return false, err
			}
		}
	}
	return true, nil
}
