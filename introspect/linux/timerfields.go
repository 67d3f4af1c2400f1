package linux

import (
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// timerFields is where the facts of timers lie.
type timerFields struct {
	wheels, hrBases, perCPU, possible, cpuCount hypervisor.VirtAddr
	delayed, process, wakeup, itReal, posix     hypervisor.VirtAddr
	baseClk, baseCPU, vectors                   field // in struct timer_base
	vectorCount, baseSize, bases                uint64
	entry, expires, fn                          field // in struct timer_list
	span                                        span
	work, workTimer                             field // in struct delayed_work
	procTimer, procTask                         field // in struct process_timer
	cpuBases                                    field // in struct hrtimer_cpu_base
	hrCount, hrSize                             uint64
	active                                      field // in struct hrtimer_clock_base
	hrNode, hrExpires, hrFn                     field // in struct hrtimer
	hrSpan                                      span
	sleeper, sleeperTask                        field // in struct hrtimer_sleeper
	realTimer, pids                             field // in struct signal_struct
	posixTimer, posixSignal                     field // in struct k_itimer
	clocks                                      map[int64]string
}

func (f *timerFields) facts() []fact {
	return []fact{
		{&f.baseClk, 8, must, []string{"timer_base.clk"}},
		{&f.baseCPU, 4, must, []string{"timer_base.cpu"}},
		{&f.vectors, 8, must, []string{"timer_base.vectors"}},
		{&f.entry, 16, must, []string{"timer_list.entry"}},
		{&f.expires, 8, must, []string{"timer_list.expires"}},
		{&f.fn, 8, must, []string{"timer_list.function"}},
		{&f.work, 8, may, []string{"delayed_work.work.func"}},
		{&f.workTimer, 0, may, []string{"delayed_work.timer"}},
		{&f.procTimer, 0, may, []string{"process_timer.timer"}},
		{&f.procTask, 8, may, []string{"process_timer.task"}},
		{&f.cpuBases, 0, must, []string{"hrtimer_cpu_base.clock_base"}},
		// A tree of linked nodes since 7.1, with its root at the same place.
		{&f.active, 8, must, []string{"hrtimer_clock_base.active.rb_root.rb_root.rb_node"}},
		{&f.hrNode, 0, must, []string{"hrtimer.node.node"}},
		{&f.hrExpires, 8, must, []string{"hrtimer.node.expires"}},
		{&f.hrFn, 8, must, []string{"hrtimer.function"}},
		{&f.sleeper, 0, may, []string{"hrtimer_sleeper.timer"}},
		{&f.sleeperTask, 8, may, []string{"hrtimer_sleeper.task"}},
		{&f.realTimer, 0, may, []string{"signal_struct.real_timer"}},
		{&f.pids, 0, may, []string{"signal_struct.pids"}},
		{&f.posixTimer, 0, may, []string{"k_itimer.it.real.timer"}},
		{&f.posixSignal, 8, may, []string{"k_itimer.it_signal"}},
	}
}

func (f *timerFields) symbols() []symbol {
	return []symbol{
		{&f.wheels, want, []string{"timer_bases"}},
		{&f.hrBases, want, []string{"hrtimer_bases"}},
		{&f.perCPU, must, []string{"__per_cpu_offset"}},
		{&f.possible, must, []string{"__cpu_possible_mask"}},
		{&f.cpuCount, must, []string{"nr_cpu_ids"}},
		{&f.delayed, may, []string{"delayed_work_timer_fn"}},
		{&f.process, may, []string{"process_timeout"}},
		{&f.wakeup, may, []string{"hrtimer_wakeup"}},
		{&f.itReal, may, []string{"it_real_fn"}},
		{&f.posix, may, []string{"posix_timer_fn"}},
	}
}

func (f *timerFields) finish(t types) {
	if v, err := t.Field("timer_base.vectors"); err == nil && v.Elem == 8 && v.Len <= 1024 {
		f.vectorCount = v.Len
	}
	if n, err := t.Size("timer_base"); err == nil && n < maxOffset {
		f.baseSize = n
	}
	// One base for timers that may wait longer, and since 6.9, with the
	// hierarchy that timers migrate in, one more for those of any CPU.
	if f.bases = 2; hasType(t, "tmigr_cpu") {
		f.bases = 3
	}
	if v, err := t.Field("hrtimer_cpu_base.clock_base"); err == nil && v.Len <= 64 {
		f.hrCount, f.hrSize = v.Len, v.Elem
	}
	f.span = spanOf(f.entry, f.expires, f.fn)
	f.hrSpan = spanOf(f.hrExpires, f.hrFn)
	f.clocks = map[int64]string{}
	for name, clock := range bpfNames(t, "hrtimer_base_type", "HRTIMER_BASE_") {
		f.clocks[name] = strings.TrimSuffix(clock, "_soft")
	}
}

func hasType(t types, name string) bool {
	n, err := t.Size(name)
	return err == nil && n > 0
}

// timerMaxCPUs is NR_CPUS of the largest kernels (arch/x86/Kconfig:
// NR_CPUS_RANGE_END).
const timerMaxCPUs = 8192

// cpuOffsets returns what is added to the address of a per-CPU variable, for each
// CPU that the kernel may have, by number.
func (f *timerFields) cpuOffsets(r *reader) (map[int]hypervisor.VirtAddr, error) {
	n, err := r.u32(f.cpuCount)
	if err != nil {
		return nil, err
	}
	if n == 0 || n > timerMaxCPUs {
		return nil, fmt.Errorf("%w: %d CPUs", ErrTorn, n)
	}
	mask, offsets := make([]byte, (n+63)/64*8), make([]byte, 8*n)
	if err := r.full(mask, f.possible); err != nil {
		return nil, fmt.Errorf("CPUs: %w", err)
	}
	if err := r.full(offsets, f.perCPU); err != nil {
		return nil, fmt.Errorf("per-CPU offsets: %w", err)
	}
	out := map[int]hypervisor.VirtAddr{}
	for cpu, off := range pointers(offsets) {
		if mask[cpu/8]&(1<<(cpu%8)) != 0 {
			out[cpu] = off
		}
	}
	return out, nil
}

// pid returns the number of the process whose struct signal_struct lies at sig.
func (g *Guest) signalPID(f *timerFields, sig hypervisor.VirtAddr) (int, error) {
	if !f.pids.ok || !g.lay.pid.numbers.ok || f.pids.size < 8*(g.lay.task.typeTGID+1) {
		return 0, profile.ErrNoType
	}
	pid, err := g.r.follow(sig, field{off: f.pids.off + 8*g.lay.task.typeTGID, size: 8, ok: true})
	if err != nil {
		return 0, err
	}
	n, err := g.r.u32(pid + hypervisor.VirtAddr(g.lay.pid.numbers.off+g.lay.pid.nr.off))
	if err == nil && n > maxPID {
		err = fmt.Errorf("%w: pid %d", ErrTorn, n)
	}
	return int(n), err
}
