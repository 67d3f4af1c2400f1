package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// maxTimers bounds the timers of one look at the guest.
const maxTimers = 1 << 20

// Timers lists the timers that are armed in the guest's kernel: those of the
// timer wheel and the high-resolution ones, those of processes among them.
//
// It returns an error that wraps profile.ErrNoType or profile.ErrNoSymbol when
// the kernel has them elsewhere.
func (g *Guest) Timers(ctx context.Context) (TimerList, error) {
	var best TimerList
	for i := range g.rounds() {
		l, err := g.timerLook(ctx)
		if err != nil {
			return TimerList{Coverage: &introspect.Coverage{}}, fmt.Errorf("list timers: %w", err)
		}
		if i == 0 || l.Coverage.Total() < best.Coverage.Total() {
			best = l
		}
		if l.Coverage.Complete() {
			break
		}
	}
	return best, nil
}

// timerLook is one look at the guest's timers.
type timerLook struct {
	g    *Guest
	f    *timerFields
	cov  *introspect.Coverage
	code *codeMap
	out  []Timer
}

func (g *Guest) timerLook(ctx context.Context) (TimerList, error) {
	l := &timerLook{g: g, cov: &introspect.Coverage{}, out: []Timer{}}
	var err error
	if l.f, err = tableOf[timerFields](g, l.cov); err != nil {
		return TimerList{}, err
	}
	if l.code, err = g.codeMap(ctx, l.cov); err != nil {
		return TimerList{}, err
	}
	offsets, err := l.f.cpuOffsets(&g.r)
	if err != nil {
		return TimerList{}, err
	}
	for _, cpu := range slices.Sorted(maps.Keys(offsets)) {
		for _, part := range []struct {
			what string
			at   hypervisor.VirtAddr
			walk func(ctx context.Context, cpu int, at hypervisor.VirtAddr) error
		}{{"timer wheel", l.f.wheels, l.wheel}, {"high-resolution timers", l.f.hrBases, l.hrtimers}} {
			if part.at == 0 {
				continue // told as missing
			}
			at := part.at + offsets[cpu]
			err := g.r.check(g.sym.initTask, at, 8)
			if err == nil {
				err = part.walk(ctx, cpu, at)
			}
			if err != nil {
				if ctx.Err() != nil {
					return TimerList{}, ctx.Err()
				}
				l.cov.Add(fmt.Sprintf("%s of CPU %d", part.what, cpu), at, err)
			}
		}
	}
	slices.SortFunc(l.out, func(a, b Timer) int {
		return cmp.Or(cmp.Compare(a.CPU, b.CPU), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Clock, b.Clock), cmp.Compare(a.Expires, b.Expires),
			cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return TimerList{Timers: l.out, Coverage: l.cov}, nil
}

func (l *timerLook) add(t Timer, fn hypervisor.VirtAddr) error {
	if len(l.out) >= maxTimers {
		return fmt.Errorf("timers: %w: %d", ErrLimit, maxTimers)
	}
	t.Function = l.code.owner(fn)
	t.Suspicious = t.Function.Unknown() || t.Work != nil && t.Work.Unknown()
	l.out = append(l.out, t)
	return nil
}

// wheel walks a CPU's timer wheel: an array of struct timer_base.
func (l *timerLook) wheel(ctx context.Context, cpu int, at hypervisor.VirtAddr) error {
	f, r := l.f, &l.g.r
	if f.baseSize == 0 || f.vectorCount == 0 || f.vectors.off+8*f.vectorCount > f.baseSize {
		return fmt.Errorf("%w: timer_base", profile.ErrNoType)
	}
	heads := make([]byte, 8*f.vectorCount)
	for i := range f.bases {
		base := at + hypervisor.VirtAddr(i*f.baseSize)
		o, _, err := r.object(nil, base, spanOf(f.baseClk, f.baseCPU))
		if err != nil {
			return err
		}
		if got := o.uint(f.baseCPU); got != uint64(cpu) {
			return fmt.Errorf("%w: the timer wheel of CPU %d says %d", ErrTorn, cpu, got)
		}
		clk := o.uint(f.baseClk)
		vectors := base + hypervisor.VirtAddr(f.vectors.off)
		if err := r.full(heads, vectors); err != nil {
			return err
		}
		for v, first := range pointers(heads) {
			if first == 0 {
				continue
			}
			err := r.walkHList(ctx, vectors+hypervisor.VirtAddr(8*v), maxTimers, func(node hypervisor.VirtAddr) error {
				return l.wheelTimer(cpu, v, clk, node-hypervisor.VirtAddr(f.entry.off))
			})
			if err != nil {
				if ctx.Err() != nil || errors.Is(err, ErrLimit) {
					return err
				}
				l.cov.Add("timer wheel", base, err)
			}
		}
	}
	return nil
}

// bucketEnd returns when the wheel fires a timer that is in a bucket: each level of
// 64 of them is eight times as coarse as the one before (kernel/time/timer.c,
// calc_index, LVL_CLK_SHIFT and LVL_BITS).
func bucketEnd(expires uint64, bucket int) uint64 {
	shift := 3 * (bucket / 64)
	return (expires>>shift + 1) << shift
}

func (l *timerLook) wheelTimer(cpu, bucket int, clk uint64, at hypervisor.VirtAddr) error {
	f, r := l.f, &l.g.r
	o, _, err := r.object(nil, at, f.span)
	if err != nil {
		return err
	}
	t := Timer{Kind: TimerWheel, CPU: cpu, Clock: "jiffies", Expires: int64(o.uint(f.expires)), Left: int64(bucketEnd(o.uint(f.expires), bucket) - clk), KernelAddress: at}
	fn := o.ptr(f.fn)
	switch {
	case fn == 0:
		return fmt.Errorf("%w: a timer without a function", ErrTorn)
	case fn == f.delayed && f.work.ok && f.workTimer.ok:
		w, err := r.ptr(at - hypervisor.VirtAddr(f.workTimer.off) + hypervisor.VirtAddr(f.work.off))
		if err != nil {
			return err
		}
		c := l.code.owner(w)
		t.Work = &c
	case fn == f.process && f.procTimer.ok && f.procTask.ok:
		t.PID = l.taskPID(at - hypervisor.VirtAddr(f.procTimer.off) + hypervisor.VirtAddr(f.procTask.off))
	}
	return l.add(t, fn)
}

// taskPID returns the number of the task that the pointer at leads to.
func (l *timerLook) taskPID(at hypervisor.VirtAddr) int {
	task, err := l.g.r.ptr(at)
	if err == nil && task == 0 {
		return 0
	}
	if err == nil {
		err = l.g.r.check(at, task, 8)
	}
	var pid uint32
	if err == nil {
		pid, err = l.g.r.u32(task + hypervisor.VirtAddr(l.g.lay.task.pid.off))
	}
	if err == nil && pid > maxPID {
		err = fmt.Errorf("%w: pid %d", ErrTorn, pid)
	}
	if err != nil {
		l.cov.Add("who waits for a timer", at, err)
		return 0
	}
	return int(pid)
}

// hrtimers walks a CPU's trees of high-resolution timers, one for each clock.
func (l *timerLook) hrtimers(ctx context.Context, cpu int, at hypervisor.VirtAddr) error {
	f := l.f
	if f.hrSize == 0 || f.hrSize < f.active.off+8 {
		return fmt.Errorf("%w: hrtimer_clock_base", profile.ErrNoType)
	}
	for i := range f.hrCount {
		root := at + hypervisor.VirtAddr(f.cpuBases.off+i*f.hrSize+f.active.off)
		bad := func(at hypervisor.VirtAddr, err error) { l.cov.Add("high-resolution timer", at, err) }
		clock, ok := f.clocks[int64(i)]
		if !ok {
			clock = fmt.Sprintf("clock_%d", i)
		}
		err := l.g.walkRBTree(ctx, root, maxTimers, bad, func(node hypervisor.VirtAddr) bool {
			at := node - hypervisor.VirtAddr(f.hrNode.off)
			err := l.hrtimer(cpu, clock, at)
			if err != nil {
				bad(at, err)
			}
			return !errors.Is(err, ErrLimit)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *timerLook) hrtimer(cpu int, clock string, at hypervisor.VirtAddr) error {
	f, r := l.f, &l.g.r
	o, _, err := r.object(nil, at, f.hrSpan)
	if err != nil {
		return err
	}
	t := Timer{Kind: TimerHigh, CPU: cpu, Clock: clock, Expires: int64(o.uint(f.hrExpires)), KernelAddress: at}
	fn := o.ptr(f.hrFn)
	switch {
	case fn == 0:
		return fmt.Errorf("%w: a timer without a function", ErrTorn)
	case fn == f.wakeup && f.sleeper.ok && f.sleeperTask.ok:
		t.PID = l.taskPID(at - hypervisor.VirtAddr(f.sleeper.off) + hypervisor.VirtAddr(f.sleeperTask.off))
	case fn == f.itReal && f.realTimer.ok:
		t.PID, err = l.g.signalPID(f, at-hypervisor.VirtAddr(f.realTimer.off))
	case fn == f.posix && f.posixTimer.ok && f.posixSignal.ok:
		var sig hypervisor.VirtAddr
		// A bit of it says that the timer is being made.
		sig, err = r.ptr(at - hypervisor.VirtAddr(f.posixTimer.off) + hypervisor.VirtAddr(f.posixSignal.off))
		if err == nil {
			t.PID, err = l.g.signalPID(f, sig&^1)
		}
	}
	if err != nil && !errors.Is(err, profile.ErrNoType) {
		l.cov.Add("whose a timer is", at, err)
	}
	return l.add(t, fn)
}
