package linux

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// listed is a task and the views that have it.
type listed struct {
	task
	inList, inIndex, inThreads, inSet, inQueue bool
}

// look is one look at all views.
type look struct {
	tasks       []listed
	list, index *record
	others      *viewLook
}

// hidden reports whether t is missing from a view that was walked to its end and
// that must have it. No run queue must: it has those alone that run.
func (l *look) hidden(t *listed) bool {
	if t.passing() {
		return false
	}
	whole := func(v *record) bool { return v.whole && (t.pid == t.tgid || v.threads) }
	return (!t.inList && whole(l.list)) || (!t.inIndex && whole(l.index)) || (!t.inSet && l.others.inSet(&t.task)) ||
		(!t.inThreads && t.inList && t.pid == t.tgid && l.list.led != nil && l.list.threads)
}

// suspects reports whether another look may give a better answer.
func (l *look) suspects() bool {
	if len(l.list.problems)+len(l.index.problems)+len(l.others.problems.problems) > 0 {
		return true
	}
	for i := range l.tasks {
		if l.hidden(&l.tasks[i]) {
			return true
		}
	}
	return false
}

// look walks all views.
func (g *Guest) look(ctx context.Context, s *taskScan, threads bool) (*look, error) {
	l := &look{index: &record{}, others: &viewLook{}}
	var err error
	if l.list, err = g.taskList(ctx, s, threads); err != nil {
		return l, err
	}
	known := make(map[hypervisor.VirtAddr]task, len(l.list.tasks))
	for _, t := range l.list.tasks {
		known[t.addr] = t
	}
	if l.index, err = g.pidIndex(ctx, s, threads, known); err != nil {
		return l, err
	}
	indexed := make(map[hypervisor.VirtAddr]int32, len(l.index.tasks))
	for _, t := range l.index.tasks {
		indexed[t.addr] = t.pid
	}
	l.tasks = make([]listed, 0, len(l.list.tasks))
	var missing []task
	for _, t := range l.list.tasks {
		pid, ok := indexed[t.addr]
		l.tasks = append(l.tasks, listed{task: t, inList: true, inIndex: ok && pid == t.pid})
	}
	for _, t := range l.index.tasks {
		if _, ok := known[t.addr]; !ok {
			l.tasks = append(l.tasks, listed{task: t, inIndex: true})
			known[t.addr] = t
			missing = append(missing, t)
		}
	}
	if l.others, err = g.viewOthers(ctx, s, threads, known); err != nil {
		return l, err
	}
	for _, t := range l.others.extra {
		l.tasks = append(l.tasks, listed{task: t})
		missing = append(missing, t)
	}
	for i := range l.tasks {
		t := &l.tasks[i]
		_, t.inThreads = l.list.led[t.addr]
		if _, ok := l.others.leaders[t.addr]; ok {
			t.inThreads = true
		}
		_, t.inSet = l.others.cgroup[t.addr]
		_, t.inQueue = l.others.queue[t.addr]
	}
	return l, g.hiddenThreads(ctx, s, threads, l, missing)
}

// hiddenThreads walks the thread lists of processes that the list of
// processes has not: their threads are in the index, and would look hidden too.
func (g *Guest) hiddenThreads(ctx context.Context, s *taskScan, threads bool, l *look, missing []task) error {
	if !threads || len(missing) == 0 {
		return nil
	}
	byAddr := make(map[hypervisor.VirtAddr]*listed, len(l.tasks))
	for i := range l.tasks {
		byAddr[l.tasks[i].addr] = &l.tasks[i]
	}
	s.left = threadSteps(maxThreads(g.mem))
	for _, t := range missing {
		if t.pid != t.tgid {
			continue
		}
		var v record
		if err := g.threadsOf(ctx, s, &v, t, map[hypervisor.VirtAddr]struct{}{}); err != nil {
			return err
		}
		for _, u := range v.tasks {
			if p := byAddr[u.addr]; p != nil && u.addr != t.addr {
				p.inList = true
			}
		}
	}
	return nil
}

// looks looks at all views until they agree, on a live guest a few times at
// most: between two walks a process may start or end. What stays in one view
// only, over all looks, is hidden.
func (g *Guest) looks(ctx context.Context, s *taskScan, threads bool) (*look, error) {
	var last *look
	var suspects map[hypervisor.VirtAddr]task // hidden in every look so far
	for range g.rounds() {
		l, err := g.look(ctx, s, threads)
		if err != nil {
			return l, err
		}
		next := map[hypervisor.VirtAddr]task{}
		for i := range l.tasks {
			t := &l.tasks[i]
			if !l.hidden(t) {
				continue
			}
			if before, ok := suspects[t.addr]; suspects == nil || ok && before.sameAs(&t.task) {
				next[t.addr] = t.task
			}
		}
		suspects, last = next, l
		if !l.suspects() {
			break
		}
	}
	for i := range last.tasks {
		t := &last.tasks[i]
		if _, ok := suspects[t.addr]; !ok && last.hidden(t) {
			// It came or went during the looks: nobody hides it.
			t.inList, t.inIndex = true, true
			t.inThreads = t.inThreads || last.list.led != nil
			t.inSet = t.inSet || last.others.inSet(&t.task)
		}
	}
	return last, nil
}

// Processes lists the guest's processes, or all threads, by several views: the
// list that starts at init_task, the pid index, the sets of control groups that
// every task is in, and the CPUs' run queues; of threads, their processes' lists
// too. A process that one of them lacks and should have is marked hidden, unless
// that one could not be walked to its end: SeenIn always says who has it, and the
// coverage what was wrong.
//
// The list is partial when ctx ends, which is then the error. An error that
// wraps ErrNoProcesses means that there is nothing to list at all.
func (g *Guest) Processes(ctx context.Context, opt ProcessOptions) (ProcessList, error) {
	cov := &introspect.Coverage{}
	list := ProcessList{Processes: []Process{}, Coverage: cov}
	var s taskScan
	l, err := g.looks(ctx, &s, opt.Threads)
	for _, v := range []*record{l.list, l.index, &l.others.problems} {
		if v == nil {
			continue
		}
		for _, p := range v.problems {
			cov.Add(p.what, p.at, p.err)
		}
	}
	if err != nil {
		return list, fmt.Errorf("list processes: %w", err)
	}
	if len(l.tasks) == 0 {
		return list, fmt.Errorf("list processes: %w", ErrNoProcesses)
	}
	d := g.newDetails(ctx, cov)
	s.left = threadSteps(maxThreads(g.mem)) // of first threads that have ended
	for i := range l.tasks {
		d.tgids[l.tasks[i].addr] = l.tasks[i].tgid
	}
	list.Processes = make([]Process, 0, len(l.tasks))
	for i := range l.tasks {
		if i%ctxEvery == 0 && ctx.Err() != nil {
			return list, fmt.Errorf("list processes: %w", ctx.Err())
		}
		t := &l.tasks[i]
		p, ok := d.process(&s, t.task)
		if !ok {
			continue // it has ended by now
		}
		p.Hidden = l.hidden(t)
		p.SeenIn = seenIn(t)
		list.Processes = append(list.Processes, p)
	}
	slices.SortFunc(list.Processes, func(a, b Process) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.TGID, b.TGID), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return list, nil
}

func seenIn(t *listed) []View {
	v := make([]View, 0, 4)
	for _, s := range []struct {
		seen bool
		view View
	}{
		{t.inList && t.pid == t.tgid, ViewTasks},
		{t.inIndex, ViewPIDIndex},
		{t.inThreads || t.inList && t.pid != t.tgid, ViewThreads},
		{t.inSet, ViewCgroup},
		{t.inQueue, ViewRunQueue},
	} {
		if s.seen {
			v = append(v, s.view)
		}
	}
	return v
}
