package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/cpustate"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/trap"
)

// Options are what a machine needs of its process.
type Options struct {
	Logger *slog.Logger // nil: nothing is logged
	// Console gets what the guest prints; nil: it is dropped.
	Console io.Writer
	// Events is told what happens, in order, from one goroutine. It must not call
	// the machine. nil: no one is told.
	Events func(Event)
	// NoReboot ends the machine where the guest would reset it.
	NoReboot bool
}

// Machine is a virtual machine of this process. It offers what hypervisor.VM and
// its capabilities promise, and is safe for concurrent use.
type Machine struct {
	cfg  Config
	opt  Options
	res  *Resources
	log  *slog.Logger
	sys  *kvmapi.System
	mem  *guestmem.Memory
	vm   *core.VM
	msrs []uint32

	ports, mmio bus.Bus
	parts       []part // the devices, in the order in which they were made
	devices     devices
	traps       *trap.Engine
	changes     changes

	power struct {
		cpus  *cpustate.State // as when the machine was switched on
		parts [][]byte
	}

	// life serialises what changes the machine as a whole: pause, resume, reset,
	// save. A vCPU's thread never takes it.
	life    sync.Mutex
	paused  atomic.Bool
	started bool

	requests chan request
	events   chan Event
	manager  sync.WaitGroup
	done     chan struct{}
	outcome  Outcome // valid when done is closed
	closed   atomic.Bool
}

// part is a device with a state of its own.
type part struct {
	name  string
	saved bus.Saved
	works bus.Quiescer // nil: it does nothing by itself
}

// New makes a machine out of what Open opened, and takes over res, which it
// closes on an error too. The guest does not run yet: see Start.
func New(cfg Config, res *Resources, opt Options) (_ *Machine, err error) {
	m := &Machine{
		cfg: cfg, opt: opt, res: res, log: opt.Logger,
		requests: make(chan request, 16), events: make(chan Event, 64), done: make(chan struct{}),
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release())
		}
	}()
	if err := m.cfg.Check(); err != nil {
		return nil, err
	}
	// A System of its own: the machine closes what it is given but once.
	if m.sys, err = kvmapi.NewSystem(res.KVM); err != nil {
		return nil, err
	}
	res.KVM = nil
	if m.msrs, err = m.sys.MSRIndexList(); err != nil {
		return nil, err
	}
	memory := res.Memory
	res.Memory = nil // New's, also when it fails
	if m.mem, err = guestmem.New(layout.RAM(m.cfg.Memory), memory); err != nil {
		return nil, err
	}
	m.vm, err = core.New(core.Config{
		System: m.sys, Memory: m.mem, VCPUs: m.cfg.CPUs, Hooks: m.newTraps(),
		Ports: &m.ports, MMIO: &m.mmio, Logger: m.log, Shutdown: m.coreEnded,
	})
	if err != nil {
		return nil, err
	}
	if err := m.setCPUID(); err != nil {
		return nil, err
	}
	if err := m.traps.Attach(m.vm, m.sys); err != nil {
		return nil, err
	}
	if err := m.addDevices(); err != nil {
		return nil, err
	}
	return m, m.notePower()
}

// notePower keeps the state that a reset goes back to.
func (m *Machine) notePower() (err error) {
	if m.power.cpus, err = cpustate.Capture(m.vm, m.msrs); err != nil {
		return err
	}
	for _, p := range m.parts {
		b, err := p.saved.SaveState()
		if err != nil {
			return fmt.Errorf("state of %s: %w", p.name, err)
		}
		m.power.parts = append(m.power.parts, b)
	}
	return nil
}

// Start boots the kernel.
func (m *Machine) Start() error {
	m.life.Lock()
	defer m.life.Unlock()
	if err := m.load(); err != nil {
		return err
	}
	m.run()
	return nil
}

// run lets the vCPUs and devices go.
func (m *Machine) run() {
	m.started = true
	m.manager.Go(m.manage)
	m.manager.Go(m.tell)
	m.unquiesce()
	m.vm.Start()
}

// Wait returns how the machine ended, when it has.
func (m *Machine) Wait() Outcome {
	<-m.done
	return m.outcome
}

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Close ends the machine where it stands and gives back all that it has. Clients
// that have mapped its memory keep that.
func (m *Machine) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	if m.started {
		m.request(request{kind: endStopped})
		<-m.done
		m.manager.Wait()
	}
	return m.release()
}

func (m *Machine) release() error {
	var errs []error
	errs = append(errs, m.closeTraps())
	if m.vm != nil {
		m.vm.Halt()
	}
	errs = append(errs, m.closeDevices())
	if m.vm != nil {
		errs = append(errs, m.vm.Close())
	}
	if m.sys != nil {
		errs = append(errs, m.sys.Close())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	return errors.Join(append(errs, m.res.Close())...)
}

// Config returns what the machine is made of.
func (m *Machine) Config() Config { return m.cfg }

// Info is hypervisor.VM's.
func (m *Machine) Info() hypervisor.Info {
	state := hypervisor.StateRunning
	if m.paused.Load() {
		state = hypervisor.StatePaused
	}
	return hypervisor.Info{
		Name: m.cfg.Name, URI: "kvm:" + m.cfg.Name, Driver: "kvm", State: state,
		MemoryBytes: m.mem.Size(), VCPUs: m.cfg.CPUs, PID: os.Getpid(),
	}
}

// Ranges is hypervisor.Memory's.
func (m *Machine) Ranges() []hypervisor.Range { return m.mem.Ranges() }

// MemoryFile returns the memfd of the guest's RAM, in which Ranges lie one behind
// the other. The caller must not close it.
func (m *Machine) MemoryFile() *os.File { return m.mem.File() }

// ReadPhys is hypervisor.Memory's. It reads what the guest had there before any
// breakpoint.
func (m *Machine) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	n, err := m.mem.ReadPhys(p, gpa)
	m.traps.Original(p[:n], gpa)
	return n, err
}

// WritePhys is hypervisor.Writer's. A breakpoint that is planted there stays.
func (m *Machine) WritePhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	return m.mem.WritePhys(p, gpa)
}

// MapPhys is hypervisor.Mapper's.
func (m *Machine) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	_, room, ok := m.mem.Offset(gpa)
	if !ok {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	return m.mem.View(gpa, min(limit, room))
}

// Registers is hypervisor.RegisterReader's.
func (m *Machine) Registers(context.Context) ([]hypervisor.Registers, error) {
	if m.ended() {
		return nil, hypervisor.ErrGone
	}
	m.vm.Stop()
	defer m.vm.Go()
	var out []hypervisor.Registers
	for _, v := range m.vm.VCPUs() {
		r, err := v.AllRegisters()
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// SetRegisters is hypervisor.RegisterWriter's.
func (m *Machine) SetRegisters(ctx context.Context, r hypervisor.Registers) error {
	if r.VCPU < 0 || r.VCPU >= m.cfg.CPUs {
		return fmt.Errorf("vCPU %d: the VM has %d", r.VCPU, m.cfg.CPUs)
	}
	if m.ended() {
		return hypervisor.ErrGone
	}
	m.vm.Stop()
	defer m.vm.Go()
	if err := m.vm.Settle(ctx); err != nil {
		return err
	}
	return m.vm.VCPUs()[r.VCPU].SetRegisters(&r)
}

func (m *Machine) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return m.closed.Load()
	}
}
