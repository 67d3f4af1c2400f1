package linux

import (
	"context"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// walkHList visits the nodes of the list (struct hlist_node) whose struct
// hlist_head lies at head. An error of visit ends the walk, and so does all that
// shows the list to be torn: a wild pointer, a node that does not point back, one
// that was met before, and the limit.
func (r *reader) walkHList(ctx context.Context, head hypervisor.VirtAddr, limit int, visit func(node hypervisor.VirtAddr) error) error {
	last := head // where the pointer to cur lies
	cur, err := r.ptr(head)
	if err != nil {
		return err
	}
	seen := map[hypervisor.VirtAddr]struct{}{}
	for n := 0; cur != 0; n++ {
		if n%ctxEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if err := r.check(last, cur, 8); err != nil {
			return err
		}
		if _, ok := seen[cur]; ok {
			return &PointerError{Where: last, Value: cur, Err: ErrCycle}
		}
		if n >= limit {
			return fmt.Errorf("list at %#x: %w: %d entries", uint64(head), ErrLimit, limit)
		}
		seen[cur] = struct{}{}
		l, err := r.readLinks(cur)
		if err != nil {
			return err
		}
		if l.prev != last {
			return &PointerError{Where: cur, Value: l.prev, Err: ErrTorn}
		}
		if err := visit(cur); err != nil {
			return err
		}
		last, cur = cur, l.next // next is the first member
	}
	return nil
}
