package linux

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// Options say how a guest is opened. The zero value is ready for use.
type Options struct {
	// Registers of the vCPUs, where the driver has them: the kernel is then
	// found without a search through all of memory.
	Registers []hypervisor.Registers
	// CacheDir is where profiles are kept between runs. Empty: no cache.
	CacheDir string
	// Logger gets what was tried. Nil: nothing is logged.
	Logger *slog.Logger
}

// Guest is a Linux guest seen from outside. It is safe for concurrent use.
type Guest struct {
	mem    hypervisor.Memory
	kernel *profile.Kernel
	r      reader
	lay    *layout
	sym    symbols
	log    *slog.Logger
	types  types
	symbol func(name string) (hypervisor.VirtAddr, error) // profile.Kernel.Symbol
	tables sync.Map                                       // reflect.Type of a factTable → *lookedUp
}

// symbols are the addresses of the kernel's variables; 0 for those that this
// kernel has not.
type symbols struct {
	initTask, initPIDNS, initUTSNS, commandLine hypervisor.VirtAddr
	modules, modTree, moduleKset                hypervisor.VirtAddr
	timekeeper                                  hypervisor.VirtAddr // the structure that holds it
	onlineCPUs, specialMapping                  hypervisor.VirtAddr
}

// Open finds the Linux kernel in mem and learns where its facts lie.
//
// Its errors are those of profile.Find (profile.ErrNoKernel,
// profile.ErrNoBTF, …), and one that wraps profile.ErrNoType or
// profile.ErrNoSymbol when the kernel lacks what a list of processes needs.
func Open(ctx context.Context, mem hypervisor.Memory, opt Options) (*Guest, error) {
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	k, err := profile.Find(ctx, mem, opt.Registers, profile.Options{CacheDir: opt.CacheDir, Logger: opt.Logger})
	if err != nil {
		return nil, fmt.Errorf("open Linux guest: %w", err)
	}
	g, err := newGuest(mem, k, opt.Logger)
	if err != nil {
		return nil, fmt.Errorf("open Linux guest: %w", err)
	}
	return g, nil
}

func newGuest(mem hypervisor.Memory, k *profile.Kernel, log *slog.Logger) (*Guest, error) {
	lay, err := newLayout(k.Types)
	if err != nil {
		return nil, err
	}
	for _, m := range lay.missing {
		log.Debug("kernel lacks a member", "member", m)
	}
	g := &Guest{mem: mem, kernel: k, lay: lay, log: log, types: k.Types, symbol: k.Symbol}
	g.r = reader{virtReader: k.Space, lowest: lowestKernel(k.Root.Mode)}
	if err := g.sym.find(k.Symbol); err != nil {
		return nil, err
	}
	return g, nil
}

func lowestKernel(m paging.Mode) hypervisor.VirtAddr {
	if m == paging.Mode5Level {
		return kernelHalf5Level
	}
	return kernelHalf4Level
}

// find looks the variables up. Only init_task must be there.
func (s *symbols) find(lookup func(string) (hypervisor.VirtAddr, error)) error {
	var err error
	if s.initTask, err = lookup("init_task"); err != nil {
		return fmt.Errorf("symbol init_task: %w", err)
	}
	for _, v := range []symbol{
		{&s.initPIDNS, want, []string{"init_pid_ns"}},
		{&s.initUTSNS, want, []string{"init_uts_ns"}},
		{&s.commandLine, want, []string{"saved_command_line"}},
		{&s.modules, want, []string{"modules"}},
		{&s.modTree, want, []string{"mod_tree"}},
		{&s.moduleKset, want, []string{"module_kset"}},
		// An array of them since 6.17, with the core one first.
		{&s.timekeeper, want, []string{"timekeeper_data", "tk_core"}},
		{&s.onlineCPUs, want, []string{"__num_online_cpus"}},
		{&s.specialMapping, may, []string{"special_mapping_vmops"}},
	} {
		if _, err := findSymbol(lookup, v); err != nil {
			return err
		}
	}
	return nil
}

// Kernel returns the guest's kernel: its symbols, types and address space.
func (g *Guest) Kernel() *profile.Kernel { return g.kernel }

// KernelSpace returns the address space of the kernel.
func (g *Guest) KernelSpace() *paging.AddressSpace { return g.kernel.Space }

// Flush forgets every translation of the kernel's address space that was kept.
// Each listing of a live guest does so by itself.
func (g *Guest) Flush() { g.kernel.Space.Flush() }

// liveRounds is how often a walk of a live guest is made at most.
const liveRounds = 4

// rounds returns how often a walk that found the structures torn may be made:
// once where nothing changes. It begins a new look at the guest.
func (g *Guest) rounds() int {
	if !hypervisor.IsLive(g.mem) {
		return 1
	}
	g.kernel.Space.Flush()
	return liveRounds
}

// mmOf checks that p is still where it was listed, and returns its mm_struct.
func (g *Guest) mmOf(ctx context.Context, p Process) (hypervisor.VirtAddr, error) {
	if p.mm == 0 {
		return 0, fmt.Errorf("process %d: %w", p.PID, ErrNoMemory)
	}
	s := taskScan{left: maxThreads(g.mem)}
	t, err := s.read(&g.r, &g.lay.task, p.KernelAddress)
	switch {
	case err != nil:
		return 0, fmt.Errorf("process %d: %w: %w", p.PID, ErrGone, err)
	case int(t.pid) != p.PID || int(t.tgid) != p.TGID:
		return 0, fmt.Errorf("process %d: %w", p.PID, ErrGone)
	}
	mm, err := g.mmOfTask(ctx, &s, &t)
	if err != nil {
		return 0, fmt.Errorf("threads of process %d: %w", p.PID, err)
	}
	if mm == 0 {
		return 0, fmt.Errorf("process %d: %w: it has exited", p.PID, ErrNoMemory)
	}
	if err := g.r.check(p.KernelAddress, mm, 8); err != nil {
		return 0, fmt.Errorf("mm of process %d: %w", p.PID, err)
	}
	return mm, nil
}

// mmOfTask returns t's mm: its own or, when the first thread of a process has
// ended before the others, theirs. 0 when there is none; errors as those of
// livingThread.
func (g *Guest) mmOfTask(ctx context.Context, s *taskScan, t *task) (hypervisor.VirtAddr, error) {
	if t.mm != 0 || t.pid != t.tgid || t.exitState == 0 {
		return t.mm, nil
	}
	return g.livingThread(ctx, s, t)
}

// ProcessSpace returns the address space of p: its user half, and the kernel's
// half as the kernel sees it. Where the kernel isolates page tables (PTI, on
// CPUs that Meltdown concerns) this is the kernel's own table, in which all
// user memory is marked NX; VMAs tell what the process may do.
//
// It returns ErrNoMemory for a kernel thread or zombie, and ErrGone when p is no
// longer where it was listed.
func (g *Guest) ProcessSpace(p Process) (*paging.AddressSpace, error) {
	mm, err := g.mmOf(context.Background(), p)
	if err != nil {
		return nil, err
	}
	if !g.lay.mm.pgd.ok {
		return nil, fmt.Errorf("page table of process %d: %w: mm_struct.pgd", p.PID, profile.ErrNoType)
	}
	pgd, err := g.r.ptr(mm + hypervisor.VirtAddr(g.lay.mm.pgd.off))
	if err != nil {
		return nil, fmt.Errorf("page table of process %d: %w", p.PID, err)
	}
	as, err := g.space(mm, pgd)
	if err != nil {
		return nil, fmt.Errorf("page table of process %d: %w", p.PID, err)
	}
	return as, nil
}

// space returns the address space whose top table lies at pgd, which the
// structure at where holds.
func (g *Guest) space(where, pgd hypervisor.VirtAddr) (*paging.AddressSpace, error) {
	if err := g.r.check(where, pgd, hypervisor.PageSize); err != nil {
		return nil, err
	}
	m, err := g.kernel.Space.Translate(pgd)
	if err != nil {
		return nil, err
	}
	root := g.kernel.Root
	root.CR3 = m.At(pgd)
	return paging.New(g.mem, root, paging.WithAbsentPages(protNone)), nil
}
