package trap

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/slots"
)

// maxTraps is how many traps a VM can have: a client must not fill our memory.
const maxTraps = 1 << 16

// Config says what an Engine works on.
type Config struct {
	Memory *guestmem.Memory
	// Userfault is an open /dev/userfaultfd. Without it the process's own rights
	// must do; where they do not, page writes are trapped by memory slots alone.
	Userfault *os.File
	// NestedPaging says that KVM has EPT or NPT. Without it a vCPU that waits in a
	// userfaultfd was seen to go on before it was told of, so that is not used.
	NestedPaging bool
	// Pause pauses the VM soon. It is called on a vCPU's thread and must not wait;
	// nil is core.VM.StopSoon.
	Pause  func()
	Logger *slog.Logger // nil: nothing is logged
}

// Engine is the traps and the dirty tracking of one VM. New makes it before the
// VM, whose Hooks (and core.Blocker) it is; Attach ties the two.
type Engine struct {
	mem   *guestmem.Memory
	log   *slog.Logger
	pause func()
	dev   *os.File
	npt   bool // or EPT

	vm  *core.VM
	kvm *kvmapi.VM
	can Abilities

	// change serialises SetTrap, RemoveTraps and the like. No hook takes it.
	change sync.Mutex
	nextID hypervisor.TrapID
	closed bool

	// What follows changes while all vCPUs stand, with change held or alone.
	traps       map[hypervisor.TrapID]*trap
	areas       []area // by address
	msrs        []*trap
	ports       []*trap
	shutdown    []*trap
	breakpoints bool    // there are some
	vcpus       []*vcpu // by index

	sites    atomic.Pointer[siteMap]
	table    table
	faults   faults
	dirty    dirty
	later    later
	leaks    leaks
	sequence atomic.Uint64
	repeats  atomic.Uint64 // atomic instructions done over: see redo
}

var (
	_ core.Hooks              = (*Engine)(nil)
	_ core.Blocker            = (*Engine)(nil)
	_ hypervisor.Trapper      = (*Engine)(nil)
	_ hypervisor.DirtyTracker = (*Engine)(nil)
)

// table is the memory slots. Its lock is for who looks at the slots while the
// guest runs; it is held for short.
type table struct {
	sync.Mutex
	*slots.Table
}

// vcpu is what the engine knows of a vCPU; its own thread's, or everyone's while
// all stand.
type vcpu struct {
	core     *core.VCPU
	hardware []*trap // at most 4: debug registers in order
	steps    []*trap // that are told of every instruction
	once     []*trap // that are told of the next one
	swallow  hypervisor.VirtAddr
	theirs   [4]int               // the guest's own debug register that ours behind hardware stands for; -1: none
	armed    kvmapi.GuestDebug    // what KVM was told last
	again    uint64               // linear address of an instruction that was told and is not over
	opened   []hypervisor.Frame   // protected pages that its step has turned out to write
	ev       hypervisor.TrapEvent // that is being told
	spare    *stop                // see take
	writes   writes               // of instructions that were looked at
	limit    *limit               // of a step; nil: a new one is made
	stray    time.Time            // until then the trap flag of a removed trap may come back
}

// Abilities are what this host's KVM can do for traps.
type Abilities struct {
	ReadOnly   bool // read-only memory slots
	Breakpoint bool // INT3 exits
	MSRFilter  bool
	BlockIRQ   bool  // no interrupt comes between a step
	Userfault  error // nil: write-protection works
	Slots      int
}

// New makes an engine.
func New(c Config) *Engine {
	e := &Engine{mem: c.Memory, log: c.Logger, pause: c.Pause, dev: c.Userfault, npt: c.NestedPaging, traps: map[hypervisor.TrapID]*trap{}}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.sites.Store(&siteMap{})
	return e
}

// Attach gives the guest's RAM to KVM and finds out what this host can do. The VM
// must have been made with the engine as its Hooks, and not run yet.
func (e *Engine) Attach(vm *core.VM, sys *kvmapi.System) error {
	e.vm, e.kvm = vm, vm.KVM()
	if e.pause == nil {
		e.pause = vm.StopSoon
	}
	for _, v := range vm.VCPUs() {
		e.vcpus = append(e.vcpus, &vcpu{core: v})
	}
	var ram []slots.RAMRange
	for _, r := range e.mem.Ranges() {
		addr, _ := e.mem.KVMAddr(r.Start)
		ram = append(ram, slots.RAMRange{Range: r, Addr: addr})
	}
	if err := e.probe(sys); err != nil {
		return err
	}
	e.table.Table = slots.New(e.kvm, ram, e.can.Slots)
	e.table.Going = e.keepLog
	if err := e.table.Apply(nil); err != nil {
		return err
	}
	e.mem.OnDirtied(e.deviceWrote)
	e.startLater()
	return e.openFaults()
}

// Abilities returns what Attach found.
func (e *Engine) Abilities() Abilities { return e.can }

// Close takes all traps away, so that the guest's memory is as if there had been
// none, and ends the engine. Handlers that run are not waited for. The VM may be
// halted already or run on; it must not be closed yet.
func (e *Engine) Close() error {
	if e.vm == nil {
		return nil
	}
	e.change.Lock()
	defer e.change.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	var err error
	for _, t := range e.traps {
		t.end()
	}
	e.vm.Still(func() {
		clear(e.traps)
		err = e.rebuild()
	})
	e.mem.OnDirtied(nil)
	e.stopLater()
	return errors.Join(err, e.closeFaults())
}

// still runs f while all vCPUs stand.
func (e *Engine) still(f func() error) (err error) {
	e.vm.Still(func() { err = f() })
	return err
}

func unsupported(what, remedy string) error {
	return &hypervisor.NotSupportedError{What: what, Driver: "kvm", Remedy: remedy}
}

// broken ends the VM when its memory slots cannot be put right: parts of its RAM
// would be missing.
func (e *Engine) broken(err error) error {
	if errors.Is(err, slots.ErrBroken) {
		e.log.Error("memory slots are incomplete: the VM stands still", "err", err)
		e.pause()
	}
	return fmt.Errorf("memory slots: %w", err)
}
