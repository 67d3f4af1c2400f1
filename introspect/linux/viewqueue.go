package linux

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// queues walks each CPU's run queue (kernel/sched/sched.h: struct rq): the task
// that runs, and those that wait for their turn, of each class of scheduling.
func (v *viewLook) queues(ctx context.Context) error {
	f, r := v.f, &v.g.r
	n, err := r.u32(f.cpuCount)
	if err == nil && (n == 0 || n > viewMaxCPUs) {
		err = fmt.Errorf("%w: %d CPUs", ErrTorn, n)
	}
	if err != nil {
		v.problems.add("run queues", f.cpuCount, err)
		return nil
	}
	offsets := make([]byte, n*viewPointerLen)
	if err := r.full(offsets, f.perCPU); err != nil {
		v.problems.add("run queues", f.perCPU, err)
		return nil
	}
	for cpu := range n {
		rq := f.runqueues + hypervisor.VirtAddr(binary.LittleEndian.Uint64(offsets[cpu*viewPointerLen:]))
		if err := r.check(f.perCPU, rq, 8); err != nil {
			v.problems.add("run queue", rq, err)
			continue
		}
		if err := v.runQueue(ctx, rq); err != nil {
			return err
		}
	}
	return nil
}

func (v *viewLook) runQueue(ctx context.Context, rq hypervisor.VirtAddr) error {
	f := v.f
	o, _, err := v.g.r.object(nil, rq, f.rqSpan)
	if err != nil {
		v.problems.add("run queue", rq, err)
		return nil
	}
	idle := o.ptr(f.rqIdle)
	add := func(t hypervisor.VirtAddr) {
		if t != idle {
			v.found("run queue", t, v.queue)
		}
	}
	if curr := o.ptr(f.rqCurr); curr != 0 { // 0: a CPU that is not up
		add(curr)
	}
	lists := []struct {
		head, node field
	}{{f.rqCFS, f.cfsNode}, {f.rqSCX, f.scxNode}}
	if mask := o.bytes(f.rqRTBits); f.rqRT.ok && f.rtNode.ok && mask != nil {
		for prio := range viewRTPrios {
			if mask[prio/8]>>(prio%8)&1 != 0 {
				lists = append(lists, struct{ head, node field }{field{off: f.rqRT.off + uint64(prio)*16, size: 16, ok: true}, f.rtNode})
			}
		}
	}
	for _, l := range lists {
		if !l.head.ok || !l.node.ok {
			continue
		}
		if _, err := v.list(ctx, "run queue", o.at(l.head), l.node.off, viewMaxQueued, nil, add); err != nil {
			return err
		}
	}
	if f.rqDL.ok && f.dlNode.ok && f.rbLeft.ok && f.rbRight.ok {
		v.deadlines(rq, o.ptr(f.rqDL), add)
	}
	return nil
}

// deadlines walks the tree of tasks that have deadlines. A tree is as deep as
// twice the logarithm of its size.
func (v *viewLook) deadlines(rq, root hypervisor.VirtAddr, add func(hypervisor.VirtAddr)) {
	f, r := v.f, &v.g.r
	todo := []hypervisor.VirtAddr{root}
	seen := map[hypervisor.VirtAddr]struct{}{}
	for len(todo) > 0 {
		node := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if node == 0 {
			continue
		}
		_, cycle := seen[node]
		err := r.check(rq, node, 8)
		if cycle {
			err = &PointerError{Where: rq, Value: node, Err: ErrCycle}
		}
		if err == nil && (len(seen) >= viewDeadlines || len(todo) > 2*bits.UintSize) {
			err = fmt.Errorf("tasks with deadlines: %w", ErrLimit)
		}
		if err != nil {
			v.problems.add("run queue", rq, err)
			return
		}
		seen[node] = struct{}{}
		right, err := r.ptr(node + hypervisor.VirtAddr(f.rbRight.off))
		if err == nil {
			var left hypervisor.VirtAddr
			left, err = r.ptr(node + hypervisor.VirtAddr(f.rbLeft.off))
			todo = append(todo, right, left)
		}
		if err != nil {
			v.problems.add("run queue", node, err)
			return
		}
		// The queue's own servers of other classes (from 6.8) are no tasks.
		if node < rq || node >= rq+hypervisor.VirtAddr(f.rqSize) {
			add(node - hypervisor.VirtAddr(f.dlNode.off))
		}
	}
}
