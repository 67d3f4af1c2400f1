package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/node"
)

// watchOptions are the flags of watch as they are written.
type watchOptions struct {
	writes, reads, execs, breaks, hardware, msrs, ports []string

	shutdown          bool
	answer, mechanism string
	rate, count       int
	duration          time.Duration
}

func (a *app) watchCommand() *cobra.Command {
	var o watchOptions
	cmd := &cobra.Command{
		Use:   "watch VM",
		Short: "Print what a guest does to memory, code, MSRs and ports",
		Long: `Set traps on a running guest from outside, and print each event as it comes,
until Ctrl-C, --count or --for. Nothing of the guest is configured for it, and all
traps are gone at the end, however this command ends. It takes a VM of our own core:
one that 'vantage run' has started.

ADDR is a guest-physical address (0x1000), a virtual one of the guest's kernel
(virt:0xffffffff82000000) or a symbol of a Linux guest's kernel (sym:do_exit,
sym:jiffies_64+0x4). The last two are translated once, when the trap is set. SIZE is
in bytes: 8 when not given, and 1 for --exec. --hw takes virtual addresses of any
address space, and each vCPU has four of them.

A line tells the time since the start in seconds, the vCPU, what the guest does and
to what, RIP, and the bytes before and after it. A ~ in front of RIP says that it is
behind the instruction. Every instruction on a page of --exec leaves the guest, so
that --break or --hw x: is far cheaper; docs/TRAPS.md has costs and limits of all.

The guest waits for each answer, which is given at once: continue lets it do what
it does. The others CHANGE WHAT THE GUEST DOES: skip leaves the write, read or
instruction out; deny does as skip, and raises #GP on an MSR; pause does it and
then pauses the whole VM, as does skip or deny where it comes too late (--hw w: and
rw:). A paused VM stays so: 'vantage resume' lets it go on.

More than --rate events a second of one trap are not told, and go on as by
continue; with another answer there is no limit unless --rate gives one. Events that
were not told, or not printed in time, are counted at the end: status 3. To end by
Ctrl-C, or because the VM ends, is status 0.

JSON fields: time vm trap kind access vcpu sequence mechanism phys_addr virt_addr
size old new msr msr_name port value rip rip_exact rip_symbol answer landed lost
dropped registers. Bytes are hexadecimal as they lie in memory; of the last line,
on stderr: vm summary events dropped lost_traps duration_seconds ended paused.`,
		Example: `  vantage watch web --write sym:modprobe_path:256
  vantage watch web --msr w:LSTAR --port rw:0x3f8:8 --for 1m
  vantage watch web --break sym:do_init_module --json | jq -r .registers.rdi
  vantage watch web --write virt:0xffffffff82000000:4096 --answer skip --count 1`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			specs, err := o.specs(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			return a.watch(cmd.Context(), args[0], &o, specs)
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.writes, "write", nil, "writes to ADDR[:SIZE]; can be given again, as all that follow")
	f.StringArrayVar(&o.reads, "read", nil, "reads of ADDR[:SIZE]")
	f.StringArrayVar(&o.execs, "exec", nil, "instructions that begin in ADDR[:SIZE]")
	f.StringArrayVar(&o.breaks, "break", nil, "a breakpoint (INT3) on the instruction at ADDR")
	f.StringArrayVar(&o.hardware, "hw", nil, "a debug register: x|w|rw:VIRT[:SIZE]; VIRT is 0x… or sym:NAME")
	f.StringArrayVar(&o.msrs, "msr", nil, "an MSR: r|w|rw:INDEX, hexadecimal or a name (LSTAR)")
	f.StringArrayVar(&o.ports, "port", nil, "I/O ports: r|w|rw:PORT[:COUNT]")
	f.BoolVar(&o.shutdown, "shutdown", false, "triple faults")
	f.StringVar(&o.answer, "answer", "continue", "continue; skip, deny, pause: these change what the guest does")
	f.StringVar(&o.mechanism, "mechanism", "auto", "how pages are watched: auto, read-only-slot, userfaultfd, no-slot")
	f.IntVar(&o.rate, "rate", 1000, "how many events a second of one trap are told; 0: all")
	f.IntVarP(&o.count, "count", "n", 0, "end after so many events")
	f.DurationVar(&o.duration, "for", 0, "end after this time: 30s, 5m")
	completeFlag(cmd, "answer", watchAnswers...)
	completeFlag(cmd, "mechanism", watchMechanisms...)
	for _, flag := range []string{"write", "read", "exec", "break"} {
		completeFlag(cmd, flag, "0x", "virt:0x", "sym:")
	}
	completeFlag(cmd, "hw", "x:", "w:", "rw:", "x:sym:", "w:sym:", "rw:sym:")
	completeFlag(cmd, "port", "r:0x", "w:0x", "rw:0x")
	var msrs []string
	for _, name := range sortedMSRs() {
		msrs = append(msrs, "r:"+name, "w:"+name, "rw:"+name)
	}
	completeFlag(cmd, "msr", msrs...)
	return cmd
}

// Values of --answer and --mechanism.
var (
	watchAnswers = []string{
		string(hypervisor.TrapContinue), string(hypervisor.TrapSkip), string(hypervisor.TrapDeny), string(hypervisor.TrapPause),
	}
	watchMechanisms = []string{
		"auto", string(hypervisor.MechanismReadOnlySlot), string(hypervisor.MechanismUserfault), string(hypervisor.MechanismNoSlot),
	}
)

// specs reads the flags.
func (o *watchOptions) specs(given func(flag string) bool) ([]watchSpec, error) {
	switch {
	case !slices.Contains(watchAnswers, o.answer):
		return nil, fmt.Errorf("--answer %q: want %s", o.answer, strings.Join(watchAnswers, ", "))
	case !slices.Contains(watchMechanisms, o.mechanism):
		return nil, fmt.Errorf("--mechanism %q: want %s", o.mechanism, strings.Join(watchMechanisms, ", "))
	case given("mechanism") && len(o.writes)+len(o.reads)+len(o.execs) == 0:
		return nil, errors.New("--mechanism is how pages are watched: give --write, --read or --exec with it")
	case o.rate < 0:
		return nil, fmt.Errorf("--rate %d: want a number of events a second, or 0 for all", o.rate)
	case given("count") && o.count <= 0:
		return nil, fmt.Errorf("--count %d: want a number of events, from 1 on", o.count)
	case given("for") && o.duration <= 0:
		return nil, fmt.Errorf("--for %v: want a time, as in 30s", o.duration)
	}
	rate := o.rate
	if o.answer != string(hypervisor.TrapContinue) && !given("rate") {
		rate = 0 // a guest must not get through a veto by being quick
	}
	mechanism := hypervisor.Mechanism(o.mechanism)
	if o.mechanism == "auto" {
		mechanism = hypervisor.MechanismAuto
	}
	page := func(access hypervisor.Access, size uint64) func(string) (watchSpec, error) {
		return func(s string) (watchSpec, error) { return parsePage(s, access, size, mechanism) }
	}
	var out []watchSpec
	for _, f := range []struct {
		flag  string
		texts []string
		parse func(string) (watchSpec, error)
	}{
		{"write", o.writes, page(hypervisor.AccessWrite, 8)},
		{"read", o.reads, page(hypervisor.AccessRead, 8)},
		{"exec", o.execs, page(hypervisor.AccessExecute, 1)},
		{"break", o.breaks, parseBreak},
		{"hw", o.hardware, parseHardware},
		{"msr", o.msrs, parseMSR},
		{"port", o.ports, parsePort},
	} {
		for _, text := range f.texts {
			s, err := f.parse(text)
			s.flag, s.text, s.trap.MaxRate = f.flag, text, rate
			if err != nil {
				return nil, s.fail(err)
			}
			out = append(out, s)
		}
	}
	if o.shutdown {
		out = append(out, watchSpec{flag: "shutdown", trap: hypervisor.Trap{Kind: hypervisor.TrapShutdown, MaxRate: rate}})
	}
	if len(out) == 0 {
		return nil, errors.New("nothing to watch: give --write, --read, --exec, --break, --hw, --msr, --port or --shutdown (see 'vantage watch --help')")
	}
	return out, nil
}

// watch opens the VM that name means, and watches it.
func (a *app) watch(ctx context.Context, name string, o *watchOptions, specs []watchSpec) (err error) {
	n, err := a.node()
	if err != nil {
		return err
	}
	vm, err := n.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := vm.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("close %s: %w", name, cerr))
		}
	}()
	t, ok := vm.(hypervisor.Trapper)
	if !ok {
		return fmt.Errorf("watch %s: %w", name, &hypervisor.NotSupportedError{
			What: "traps", Driver: vm.Info().Driver,
			Remedy: "VMs of our own core have them, those that 'vantage run' has started ('vantage vms' lists them as kvm:NAME)",
		})
	}
	traps, symbols, err := watchTraps(ctx, n, vm, specs)
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	w := newWatcher(vm.Info().Name, hypervisor.TrapVerb(o.answer), o.count)
	w.symbol = symbols
	end, err := w.run(ctx, a, vm, t, traps, o.duration)
	if err != nil {
		return fmt.Errorf("watch %s: %w", name, err)
	}
	return a.watchSummary(w, end)
}

// specTrap is a trap to set, and what it comes from.
type specTrap struct {
	spec *watchSpec
	trap hypervisor.Trap
}

// watchTraps finds what specs mean in this guest.
func watchTraps(ctx context.Context, n *node.Node, vm hypervisor.VM, specs []watchSpec) (out []specTrap, symbols symbolAt, err error) {
	p := newPlaces(ctx, n, vm)
	for i := range specs {
		s := &specs[i]
		ts, err := p.traps(ctx, s)
		if err != nil {
			return nil, nil, s.fail(err)
		}
		for _, t := range ts {
			out = append(out, specTrap{s, t})
		}
	}
	if p.found != nil {
		symbols = p.found.symbolAt
	}
	return out, symbols, nil
}

// watchSummary says on stderr what was seen and what was not, and returns the
// error that ends the program with status 3 when that is something.
func (a *app) watchSummary(w *watcher, end watchEnd) error {
	var err error
	if w.unrated+w.unprinted+w.lost > 0 {
		err = &exitError{code: exitIncomplete}
	}
	took := time.Since(w.start)
	if a.json {
		return errors.Join(a.printJSONErr(struct {
			VM       string  `json:"vm"`
			Summary  bool    `json:"summary"`
			Events   uint64  `json:"events"`
			Dropped  uint64  `json:"dropped"`
			Lost     uint64  `json:"lost_traps"`
			Duration float64 `json:"duration_seconds"`
			Ended    bool    `json:"ended"`
			Paused   bool    `json:"paused"`
		}{w.vm, true, w.printed, w.unrated + w.unprinted, w.lost, took.Seconds(), end.gone, end.paused}), err)
	}
	text := fmt.Sprintf("%s: %d events in %s, %d dropped", w.vm, w.printed, took.Round(time.Millisecond), w.unrated+w.unprinted)
	if w.unrated > 0 {
		text += fmt.Sprintf("; %d were above --rate", w.unrated)
	}
	if w.unprinted > 0 {
		text += fmt.Sprintf("; %d came faster than they were printed", w.unprinted)
	}
	if w.lost > 0 {
		text += fmt.Sprintf("; %d breakpoints were lost", w.lost)
	}
	if end.gone {
		text += "; the VM has ended"
	}
	if end.paused {
		text += "; it is paused: 'vantage resume' lets it go on"
	}
	fmt.Fprintf(a.stderr, "vantage: %s\n", term.Escape(text))
	return err
}
