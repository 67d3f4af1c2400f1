package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// maxThreads bounds a listing by the guest's memory: a task takes a stack of
// 16 KiB and a task_struct, and the kernel itself allows an eighth of that.
func maxThreads(mem hypervisor.Memory) int {
	const (
		perTask = 16 << 10
		least   = 4096
	)
	return int(min(max(hypervisor.TotalSize(mem.Ranges())/perTask, least), maxPID))
}

// problem is what a view could not read, kept until it is known whether the
// view is the one that counts.
type problem struct {
	what string
	at   hypervisor.VirtAddr
	err  error
}

// record is a view of the guest's tasks, at one moment or nearly so.
type record struct {
	tasks    []task
	whole    bool                             // every process that this view holds is in tasks
	threads  bool                             // … and every thread
	led      map[hypervisor.VirtAddr]struct{} // first threads that their own list of threads has; nil: not looked at
	problems []problem
}

func (v *record) add(what string, at hypervisor.VirtAddr, err error) {
	if len(v.problems) < introspect.MaxProblems {
		v.problems = append(v.problems, problem{what, at, err})
	} else {
		// Counted by the Coverage, not kept by it.
		v.problems[len(v.problems)-1] = problem{what, at, err}
	}
}

// taskList walks the list of processes from init_task on, and each process's
// list of threads if threads is set. The list is walked forward and, where that
// way ends early, backward: whoever breaks one direction leaves the other.
//
// The view is whole when one of the two ways came round: the one that the
// kernel itself goes, or, if that is broken, the other. init_task itself, the
// idle task with pid 0, is left out, as the kernel leaves it out of /proc.
func (g *Guest) taskList(ctx context.Context, s *taskScan, threads bool) (*record, error) {
	f := &g.lay.task
	v := &record{}
	limit := maxThreads(g.mem)
	met := map[hypervisor.VirtAddr]struct{}{}
	head := g.sym.initTask + hypervisor.VirtAddr(f.tasks.off)
	walk := func(d direction) (bool, error) {
		return g.r.walkList(ctx, head, d, limit, func(node, last hypervisor.VirtAddr) (links, error) {
			t, err := s.read(&g.r, f, node-hypervisor.VirtAddr(f.tasks.off))
			if err != nil {
				return links{}, fmt.Errorf("task at %#x, from %#x: %w", uint64(node)-f.tasks.off, uint64(last), err)
			}
			if err := t.coherent(&g.r, f); err != nil {
				if _, behind := d.of(t.tasks); behind != last {
					return links{}, err // neither known by its neighbour nor like a task
				}
				v.add("task", t.addr, err)
			}
			if _, ok := met[t.addr]; !ok {
				met[t.addr] = struct{}{}
				v.tasks = append(v.tasks, t)
			}
			return t.tasks, nil
		})
	}
	for _, d := range []direction{forward, backward} {
		round, err := walk(d)
		if ctx.Err() != nil {
			return v, ctx.Err()
		}
		if err != nil {
			v.add("list of processes, "+d.String(), head, err)
		}
		if v.whole = round; round {
			break
		}
	}
	if threads {
		return v, g.threadLists(ctx, s, v, met, limit)
	}
	return v, nil
}

// threadLists adds the threads of the processes in v.
func (g *Guest) threadLists(ctx context.Context, s *taskScan, v *record, met map[hypervisor.VirtAddr]struct{}, limit int) error {
	v.threads = v.whole
	v.led = make(map[hypervisor.VirtAddr]struct{}, len(v.tasks))
	s.left = threadSteps(limit)
	for _, leader := range v.tasks {
		if err := g.threadsOf(ctx, s, v, leader, met); err != nil {
			return err
		}
	}
	return nil
}

// threadSteps is how many entries of lists of threads are met in one look at a
// guest of at most limit tasks: each of them once, and some. A list that many
// processes share would else be walked once for each.
func threadSteps(limit int) int { return 2*limit + ctxEvery }

// threadsOf adds the threads of one process to v, but not the ones in met. It
// meets at most s.left of them.
func (g *Guest) threadsOf(ctx context.Context, s *taskScan, v *record, leader task, met map[hypervisor.VirtAddr]struct{}) error {
	f := &g.lay.task
	if !f.signal.ok || !f.threadHead.ok || !f.threadNode.ok {
		v.threads = false
		v.add("threads", leader.addr, errors.New("this kernel's type information has no list of threads"))
		return nil
	}
	round := false
	err := g.r.check(leader.addr, leader.signal, 8)
	if err == nil {
		head := leader.signal + hypervisor.VirtAddr(f.threadHead.off)
		round, err = g.r.walkList(ctx, head, forward, max(s.left, 0), func(node, last hypervisor.VirtAddr) (links, error) {
			s.left--
			t, err := s.read(&g.r, f, node-hypervisor.VirtAddr(f.threadNode.off))
			if err != nil {
				return links{}, err
			}
			if t.tgid != leader.tgid {
				return links{}, fmt.Errorf("thread at %#x, from %#x: %w: its process is %d", uint64(t.addr), uint64(last), ErrTorn, t.tgid)
			}
			if t.addr == leader.addr && v.led != nil {
				v.led[t.addr] = struct{}{}
			}
			if _, ok := met[t.addr]; !ok {
				met[t.addr] = struct{}{}
				v.tasks = append(v.tasks, t)
			}
			return t.threadNode, nil
		})
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		v.add("list of threads", leader.addr, err)
	}
	v.threads = v.threads && round
	return nil
}

// pidIndex walks the pid index of the first PID namespace. Tasks that known
// holds are taken from there, so that each is read once.
func (g *Guest) pidIndex(ctx context.Context, s *taskScan, threads bool, known map[hypervisor.VirtAddr]task) (*record, error) {
	v := &record{whole: true, threads: threads}
	f := &g.lay.pid
	l := &g.lay.task
	if g.sym.initPIDNS == 0 || !f.idrHead.ok || !f.tasks.ok || !f.numbers.ok || !f.nr.ok || !l.pidLinks.ok || !g.lay.xa.slots.ok || !g.lay.xa.shift.ok {
		v.whole, v.threads = false, false
		v.add("pid index", g.sym.initPIDNS, errors.New("this kernel's symbols and types do not tell where it is"))
		return v, nil
	}
	head, err := g.r.ptr(g.sym.initPIDNS + hypervisor.VirtAddr(f.idrHead.off))
	var base uint32
	if err == nil && f.idrBase.ok {
		base, err = g.r.u32(g.sym.initPIDNS + hypervisor.VirtAddr(f.idrBase.off))
	}
	if err != nil {
		v.whole, v.threads = false, false
		v.add("pid index", g.sym.initPIDNS, err)
		return v, nil
	}
	bad := func(what string) func(at hypervisor.VirtAddr, err error) {
		return func(at hypervisor.VirtAddr, err error) {
			v.whole, v.threads = false, false
			v.add(what, at, err)
		}
	}
	lost := bad("pid")
	sp := spanOf(f.level, f.tasks, field{off: f.numbers.off, size: g.lay.pid.upidSize, ok: true})
	var buf []byte
	n, limit := 0, maxThreads(g.mem)
	err = g.r.walkXArray(ctx, &g.lay.xa, head, maxPID, limit, bad("pid index"), func(index uint64, at hypervisor.VirtAddr) bool {
		n++
		if err := g.r.check(at, at, 8); err != nil {
			lost(at, err)
			return n < limit
		}
		o, b, err := g.r.object(buf, at, sp)
		buf = b
		if err != nil {
			lost(at, err)
			return n < limit
		}
		nr := o.uint(field{off: f.numbers.off + f.nr.off, size: 4, ok: true})
		if nr != index+uint64(base) {
			lost(at, fmt.Errorf("%w: number %d stands at %d", ErrTorn, nr, index+uint64(base)))
			return n < limit
		}
		kind := l.typeTGID
		if threads {
			kind = l.typePID
		}
		links := o.bytes(f.tasks)
		if kind*8+8 > uint64(len(links)) {
			lost(at, fmt.Errorf("%w: %d kinds of tasks", ErrTorn, len(links)/8))
			return n < limit
		}
		first := hypervisor.VirtAddr(binary.LittleEndian.Uint64(links[kind*8:]))
		if first == 0 {
			return n < limit // the number of a group or session whose leader has gone
		}
		addr := first - hypervisor.VirtAddr(l.pidLinks.off+kind*l.linkSize)
		t, ok := known[addr]
		if !ok {
			if t, err = s.read(&g.r, l, addr); err != nil {
				lost(addr, err)
				return n < limit
			}
		}
		if uint64(t.pid) != nr || (l.threadPID.ok && t.threadPID != at) {
			lost(addr, fmt.Errorf("%w: pid %d stands at number %d", ErrTorn, t.pid, nr))
			if uint64(t.pid) != nr {
				return n < limit
			}
		}
		v.tasks = append(v.tasks, t)
		return n < limit
	})
	if ctx.Err() != nil {
		return v, ctx.Err()
	}
	if err == nil && n >= limit {
		err = fmt.Errorf("%w: %d entries", ErrLimit, limit)
	}
	if err != nil {
		bad("pid index")(g.sym.initPIDNS, err)
	}
	return v, nil
}

// livingThread returns the mm of a thread of t, which has none itself: the
// first thread of a process may end before the others. 0 when there is none,
// with an error when the list of threads could not be walked to its end: there
// may be memory that is not seen.
func (g *Guest) livingThread(ctx context.Context, s *taskScan, t *task) (hypervisor.VirtAddr, error) {
	v := record{threads: true}
	if t.signal == 0 {
		return 0, nil // it is gone, but for its task_struct
	}
	if err := g.threadsOf(ctx, s, &v, *t, map[hypervisor.VirtAddr]struct{}{}); err != nil {
		return 0, err
	}
	for i := range v.tasks {
		if v.tasks[i].mm != 0 {
			return v.tasks[i].mm, nil
		}
	}
	if !v.threads && len(v.problems) > 0 {
		return 0, v.problems[0].err
	}
	return 0, nil
}
