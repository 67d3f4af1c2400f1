package linux

import (
	"context"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// viewLook collects the tasks that records other than the list and the index of
// processes have. It is for one look at the guest and one goroutine.
type viewLook struct {
	g       *Guest
	f       *viewFacts
	s       *taskScan
	known   map[hypervisor.VirtAddr]task // what was read in this look, by address
	threads bool
	left    int // entries that may still be met

	cgroup, queue map[hypervisor.VirtAddr]struct{}
	sets          bool                             // cgroup has every task
	leaders       map[hypervisor.VirtAddr]struct{} // found by a thread of theirs
	extra         []task                           // in none of known
	met           map[hypervisor.VirtAddr]struct{} // of extra, and those that are none
	problems      record
}

// viewOthers walks the sets of control groups and the CPUs' run queues.
func (g *Guest) viewOthers(ctx context.Context, s *taskScan, threads bool, known map[hypervisor.VirtAddr]task) (*viewLook, error) {
	v := &viewLook{
		g: g, s: s, known: known, threads: threads, left: threadSteps(maxThreads(g.mem)),
		cgroup: make(map[hypervisor.VirtAddr]struct{}, len(known)), queue: map[hypervisor.VirtAddr]struct{}{},
		leaders: map[hypervisor.VirtAddr]struct{}{}, met: map[hypervisor.VirtAddr]struct{}{},
	}
	var err error
	if v.f, err = tableOf[viewFacts](g, nil); err != nil {
		return v, err
	}
	f := v.f
	if f.hasSets() {
		if err := v.groups(ctx); err != nil {
			return v, err
		}
	}
	if f.hasQueues() {
		if err := v.queues(ctx); err != nil {
			return v, err
		}
	}
	return v, nil
}

// list calls add for each task in the list at head; off is the offset of its
// list_head in a task. On a live guest a torn walk is made again. heads are
// other lists' heads, which a node that moves leads to. It reports whether the
// walk came round.
func (v *viewLook) list(ctx context.Context, what string, head hypervisor.VirtAddr, off uint64, limit int, heads map[hypervisor.VirtAddr]struct{}, add func(hypervisor.VirtAddr)) (bool, error) {
	tries := 1
	if hypervisor.IsLive(v.g.mem) {
		tries = viewListTries
	}
	r := &v.g.r
	walk := func(d direction) (bool, error) {
		return r.walkList(ctx, head, d, min(limit, max(v.left, 0)), func(node, last hypervisor.VirtAddr) (links, error) {
			v.left--
			if _, ok := heads[node]; ok {
				return links{}, &PointerError{Where: last, Value: node, Err: ErrTorn}
			}
			l, err := r.readLinks(node)
			if err == nil {
				add(node - hypervisor.VirtAddr(off))
			}
			return l, err
		})
	}
	var round bool
	var err error
	for range tries {
		if round, err = walk(forward); err == nil || ctx.Err() != nil {
			return round, ctx.Err()
		}
	}
	v.problems.add(what, head, err)
	if !round {
		round, _ = walk(backward)
	}
	return round, ctx.Err()
}

// found notes the task at addr, which the record that there stands for has.
func (v *viewLook) found(what string, addr hypervisor.VirtAddr, there map[hypervisor.VirtAddr]struct{}) {
	there[addr] = struct{}{}
	if _, ok := v.known[addr]; ok {
		return
	}
	if _, ok := v.met[addr]; ok {
		return
	}
	v.met[addr] = struct{}{}
	t, err := v.s.read(&v.g.r, &v.g.lay.task, addr)
	if err != nil {
		v.problems.add(what, addr, err)
		return
	}
	// A CPU's idle task has number 0 and is listed nowhere. One that has ended
	// stays on its CPU, and in its set, for a moment after it has left the lists.
	if t.pid == 0 || t.gone() {
		return
	}
	if v.threads || t.pid == t.tgid {
		v.extra = append(v.extra, t)
		return
	}
	v.leader(&t)
}

// leader adds the process of a thread that was found, if it is not known.
func (v *viewLook) leader(t *task) {
	if _, ok := v.known[t.groupLeader]; ok || t.groupLeader == 0 {
		return
	}
	if _, ok := v.leaders[t.groupLeader]; ok {
		return
	}
	l, err := v.s.read(&v.g.r, &v.g.lay.task, t.groupLeader)
	if err == nil && (l.pid != t.tgid || l.tgid != t.tgid) {
		err = fmt.Errorf("%w: thread %d of %d is led by %d of %d", ErrTorn, t.pid, t.tgid, l.pid, l.tgid)
	}
	if err != nil {
		v.problems.add("thread group", t.addr, err)
		return
	}
	v.leaders[l.addr] = struct{}{}
	if _, ok := v.met[l.addr]; !ok {
		v.met[l.addr] = struct{}{}
		v.extra = append(v.extra, l)
	}
}

// gone reports whether t has ended: it may be in any record or in none. Whoever
// claims that and has memory lies.
func (t *task) gone() bool { return t.exitState != 0 && t.mm == 0 }

// passing reports whether t is on its way into the kernel's records, or out of
// them.
func (t *task) passing() bool {
	return t.state&taskNew != 0 || t.exitState&exitDead != 0 && t.mm == 0
}
