package linux

import (
	"context"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// ctxEvery is after how many steps a walk looks at its context.
const ctxEvery = 64

// direction is which way a list is walked.
type direction bool

const (
	forward  direction = false
	backward direction = true
)

func (d direction) String() string {
	if d == backward {
		return "backward"
	}
	return "forward"
}

func (d direction) of(l links) (ahead, behind hypervisor.VirtAddr) {
	if d == backward {
		return l.prev, l.next
	}
	return l.next, l.prev
}

// walkList visits the entries of the circular list (struct list_head) whose
// head lies at head, in direction d. visit gets the address of each entry's
// list_head and that of the one before it in this direction, and returns the
// entry's links; an error of visit ends the walk.
//
// round reports whether the walk came back to head. A neighbour that does not
// point back is told of (ErrTorn) but does not end the walk; a wild pointer, an
// entry that was met before, one that cannot be read, and the limit do.
func (r *reader) walkList(ctx context.Context, head hypervisor.VirtAddr, d direction, limit int, visit func(node, last hypervisor.VirtAddr) (links, error)) (round bool, err error) {
	l, err := r.readLinks(head)
	if err != nil {
		return false, err
	}
	cur, headBehind := d.of(l)
	last := head
	seen := map[hypervisor.VirtAddr]struct{}{}
	var torn error
	for n := 0; cur != head; n++ {
		if n%ctxEvery == 0 && ctx.Err() != nil {
			return false, ctx.Err()
		}
		if err := r.check(last, cur, 8); err != nil {
			return false, err
		}
		if _, ok := seen[cur]; ok {
			return false, &PointerError{Where: last, Value: cur, Err: ErrCycle}
		}
		if n >= limit {
			return false, fmt.Errorf("list at %#x: %w: %d entries", uint64(head), ErrLimit, limit)
		}
		seen[cur] = struct{}{}
		l, err := visit(cur, last)
		if err != nil {
			return false, err
		}
		ahead, behind := d.of(l)
		if behind != last && torn == nil {
			torn = &PointerError{Where: cur, Value: behind, Err: ErrTorn}
		}
		last, cur = cur, ahead
	}
	if headBehind != last && torn == nil {
		torn = &PointerError{Where: head, Value: headBehind, Err: ErrTorn}
	}
	return true, torn
}
