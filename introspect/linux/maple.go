package linux

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Entries of a maple tree (include/linux/maple_tree.h, lib/maple_tree.c). Nodes
// lie on 256-byte boundaries; the low byte of a pointer to one tells its type.
const (
	mapleNodeMask   = 255 // MAPLE_NODE_MASK
	mapleTypeShift  = 3   // MAPLE_NODE_TYPE_SHIFT
	mapleTypeMask   = 15  // MAPLE_NODE_TYPE_MASK
	mapleMaxDepth   = 31  // MAPLE_HEIGHT_MAX
	mapleInternal   = 2   // xa_is_internal
	mapleMaxPrivate = 4096
)

// mapleFields is where the facts of maple nodes lie.
type mapleFields struct {
	pivot64, slot64 field // in struct maple_range_64
	pivotA, slotA   field // in struct maple_arange_64
	slotDense       field // in struct maple_node
	span            span
	// The kinds of nodes, as this kernel numbers them.
	dense, leaf64, range64, arange64 uint64
}

func (m *mapleFields) facts() []fact {
	return []fact{
		{&m.pivot64, 0, may, []string{"maple_range_64.pivot"}},
		{&m.slot64, 0, may, []string{"maple_range_64.slot"}},
		{&m.pivotA, 0, may, []string{"maple_arange_64.pivot"}},
		{&m.slotA, 0, may, []string{"maple_arange_64.slot"}},
		{&m.slotDense, 0, may, []string{"maple_node.slot"}},
	}
}

func (m *mapleFields) finish(t types) {
	m.dense, m.leaf64, m.range64, m.arange64 = 0, 1, 2, 3
	for name, to := range map[string]*uint64{
		"maple_dense": &m.dense, "maple_leaf_64": &m.leaf64, "maple_range_64": &m.range64, "maple_arange_64": &m.arange64,
	} {
		if v, err := t.EnumValue("maple_type", name); err == nil && v >= 0 && v <= mapleTypeMask {
			*to = uint64(v)
		}
	}
	m.span = spanOf(m.pivot64, m.slot64, m.pivotA, m.slotA, m.slotDense)
}

// usable reports whether maple trees can be followed on this kernel.
func (m *mapleFields) usable() bool {
	return m.pivot64.ok && m.slot64.ok && m.pivotA.ok && m.slotA.ok && m.slotDense.ok
}

// walkMaple calls fn for each entry of the maple tree whose ma_root is root, in
// ascending order, with the first and last index that it holds for; fn
// returning false ends the walk.
//
// A child holds exactly the range that its parent gives it, so ranges never
// overlap; no node is met twice and maxNodes bounds those read. A part of the
// tree that does not hold together is told to bad and left out.
func (r *reader) walkMaple(ctx context.Context, f *mapleFields, root uint64, maxNodes int, bad func(at hypervisor.VirtAddr, err error), fn func(first, last uint64, entry hypervisor.VirtAddr) bool) error {
	if root == 0 {
		return nil
	}
	if root&3 != mapleInternal || root <= mapleMaxPrivate {
		fn(0, 0, hypervisor.VirtAddr(root)) // a lone entry, at index 0
		return nil
	}
	w := mapleWalk{r: r, f: f, ctx: ctx, left: maxNodes, bad: bad, fn: fn, seen: map[hypervisor.VirtAddr]struct{}{}}
	_, err := w.node(root, 0, ^uint64(0), 0)
	return err
}

type mapleWalk struct {
	r    *reader
	f    *mapleFields
	ctx  context.Context
	left int
	bad  func(at hypervisor.VirtAddr, err error)
	fn   func(first, last uint64, entry hypervisor.VirtAddr) bool
	seen map[hypervisor.VirtAddr]struct{}
}

// node walks the node that enode points to, which holds [first, last]. more is
// false when the walk is over.
func (w *mapleWalk) node(enode, first, last uint64, depth int) (more bool, err error) {
	if w.ctx.Err() != nil {
		return false, w.ctx.Err()
	}
	addr := hypervisor.VirtAddr(enode &^ mapleNodeMask)
	kind := enode >> mapleTypeShift & mapleTypeMask
	if err := w.r.check(addr, addr, mapleNodeMask+1); err != nil {
		w.bad(addr, err)
		return true, nil
	}
	if _, ok := w.seen[addr]; ok {
		w.bad(addr, fmt.Errorf("maple node: %w", ErrCycle))
		return true, nil
	}
	if w.left--; w.left < 0 || depth > mapleMaxDepth {
		return false, fmt.Errorf("maple tree: %w: too many nodes", ErrLimit)
	}
	w.seen[addr] = struct{}{}
	o, _, err := w.r.object(nil, addr, w.f.span)
	if err != nil {
		w.bad(addr, err)
		return true, nil
	}
	var pivots, slots []byte
	switch kind {
	case w.f.leaf64, w.f.range64:
		pivots, slots = o.bytes(w.f.pivot64), o.bytes(w.f.slot64)
	case w.f.arange64:
		pivots, slots = o.bytes(w.f.pivotA), o.bytes(w.f.slotA)
	case w.f.dense:
		slots = o.bytes(w.f.slotDense)
	default:
		w.bad(addr, fmt.Errorf("maple node of type %d: %w", kind, ErrTorn))
		return true, nil
	}
	leaf := kind == w.f.leaf64 || kind == w.f.dense
	lo := first
	for i := 0; i*8+8 <= len(slots); i++ {
		hi := last
		if kind == w.f.dense {
			hi = lo
		} else if i*8+8 <= len(pivots) {
			// A pivot of 0 behind the first slot says that the node ends here.
			if p := binary.LittleEndian.Uint64(pivots[i*8:]); p != 0 || i == 0 {
				hi = p
			}
		}
		if hi < lo || hi > last {
			w.bad(addr, fmt.Errorf("maple node: %w: pivot %#x outside of %#x-%#x", ErrTorn, hi, lo, last))
			return true, nil
		}
		entry := binary.LittleEndian.Uint64(slots[i*8:])
		internal := entry&3 == mapleInternal
		switch {
		case entry == 0:
		case leaf && !internal && entry&1 == 0:
			if !w.fn(lo, hi, hypervisor.VirtAddr(entry)) {
				return false, nil
			}
		case leaf: // a value, or a reserved entry: no mapping
		case internal || entry > mapleMaxPrivate:
			if more, err := w.node(entry, lo, hi, depth+1); !more {
				return false, err
			}
		}
		if hi >= last {
			break
		}
		lo = hi + 1
	}
	return true, nil
}
