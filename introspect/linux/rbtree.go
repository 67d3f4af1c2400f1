package linux

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// rbFields is where the facts of an rb_node lie.
type rbFields struct {
	left, right, parent field
	span                span
}

func (f *rbFields) facts() []fact {
	return []fact{
		{&f.left, 8, must, []string{"rb_node.rb_left"}},
		{&f.right, 8, must, []string{"rb_node.rb_right"}},
		{&f.parent, 8, may, []string{"rb_node.__rb_parent_color"}},
	}
}

func (f *rbFields) symbols() []symbol { return nil }

func (f *rbFields) finish(types) { f.span = spanOf(f.left, f.right, f.parent) }

// rbColor are the bits of __rb_parent_color that are no part of the parent's
// address (include/linux/rbtree_augmented.h: __rb_parent).
const rbColor = 3

// walkRBTree visits the nodes of the tree whose rb_root lies at root, in the
// tree's order. visit returning false ends the walk.
//
// A subtree that cannot be followed is told to bad and left out: a wild pointer,
// a node that was met before. So is a node whose parent is not the one that leads
// to it, but it is followed. limit bounds the nodes.
func (g *Guest) walkRBTree(ctx context.Context, root hypervisor.VirtAddr, limit int, bad func(at hypervisor.VirtAddr, err error), visit func(node hypervisor.VirtAddr) bool) error {
	f, err := tableOf[rbFields](g, nil)
	if err != nil {
		return err
	}
	type step struct {
		node, from hypervisor.VirtAddr
		right      hypervisor.VirtAddr
		open       bool // its left part is done
	}
	top, err := g.r.ptr(root)
	if err != nil {
		return err
	}
	seen := map[hypervisor.VirtAddr]struct{}{}
	todo := []step{{node: top}}
	for n := 0; len(todo) > 0; n++ {
		if n%ctxEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		switch {
		case s.node == 0:
			continue
		case s.open:
			if !visit(s.node) {
				return nil
			}
			todo = append(todo, step{node: s.right, from: s.node})
			continue
		}
		where := s.from
		if where == 0 {
			where = root
		}
		if err := g.r.check(where, s.node, 8); err != nil {
			bad(where, err)
			continue
		}
		if _, ok := seen[s.node]; ok {
			bad(where, &PointerError{Where: where, Value: s.node, Err: ErrCycle})
			continue
		}
		if len(seen) >= limit {
			return fmt.Errorf("tree at %#x: %w: %d nodes", uint64(root), ErrLimit, limit)
		}
		seen[s.node] = struct{}{}
		var raw [64]byte
		o := object{addr: s.node, lo: f.span.lo}
		if size := f.span.hi - f.span.lo; size > uint64(len(raw)) {
			return fmt.Errorf("rb_node of %d bytes: %w", size, ErrTorn)
		}
		o.data = raw[:f.span.hi-f.span.lo]
		if err := g.r.full(o.data, s.node+hypervisor.VirtAddr(f.span.lo)); err != nil {
			bad(s.node, err)
			continue
		}
		if parent := o.uint(f.parent) &^ rbColor; f.parent.ok && parent != uint64(s.from) {
			bad(s.node, &PointerError{Where: s.node, Value: hypervisor.VirtAddr(parent), Err: ErrTorn})
		}
		todo = append(todo, step{node: s.node, right: o.ptr(f.right), open: true}, step{node: o.ptr(f.left), from: s.node})
	}
	return nil
}

// pointers returns the pointers that b holds.
func pointers(b []byte) []hypervisor.VirtAddr {
	out := make([]hypervisor.VirtAddr, len(b)/8)
	for i := range out {
		out[i] = hypervisor.VirtAddr(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return out
}
