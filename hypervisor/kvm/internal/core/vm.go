package core

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// Hooks see the exits before the devices do. Each is called on the vCPU's own
// thread, and returns true when it has dealt with the exit. The vCPU is neither
// in the guest nor standing meanwhile: a hook that waits calls VCPU.Wait.
type Hooks interface {
	// MMIO is an access to a gpa that is no RAM for KVM, or a write to RAM that is
	// read-only for it. data, of 1 to 8 bytes, is to be filled for a read.
	MMIO(v *VCPU, gpa hypervisor.PhysAddr, data []byte, write bool) bool
	// IO is one IN or OUT of 1, 2 or 4 bytes.
	IO(v *VCPU, port uint16, data []byte, write bool) bool
	// Debug is KVM_EXIT_DEBUG: see kvmapi.Run.Debug.
	Debug(v *VCPU) bool
	// MSR is an access that the filter lets exit, see kvmapi.Run.MSR and AnswerMSR.
	MSR(v *VCPU, write bool) bool
	// InternalError is an instruction that KVM could not emulate.
	InternalError(v *VCPU) bool
	// Shutdown is a triple fault.
	Shutdown(v *VCPU) bool
	// Interrupted is called when KVM_RUN ended for a signal.
	Interrupted(v *VCPU)
}

// Config says what New makes.
type Config struct {
	System *kvmapi.System
	Memory *guestmem.Memory
	VCPUs  int
	Hooks  Hooks        // may be nil
	Ports  *bus.Bus     // I/O ports
	MMIO   *bus.Bus     // memory-mapped registers
	Logger *slog.Logger // nil: nothing is logged
	// NoIRQChip makes a VM without interrupt controllers, for tests of tiny guests:
	// HLT exits then.
	NoIRQChip bool
	// Shutdown is told why the vCPUs end by themselves: a guest that shut down, an
	// error of a vCPU. It is called once, on a vCPU's thread, and must not block.
	Shutdown func(Reason)
}

// Reason is why the vCPUs ended.
type Reason struct {
	Kind ReasonKind
	VCPU int
	Err  error // of ReasonError
}

// ReasonKind says what ended the vCPUs.
type ReasonKind string

// Kinds of reasons.
const (
	ReasonTripleFault ReasonKind = "triple-fault"
	ReasonHalt        ReasonKind = "halt" // HLT without an interrupt controller
	ReasonError       ReasonKind = "error"
)

// VM is a KVM virtual machine with its vCPUs.
type VM struct {
	kvm    *kvmapi.VM
	memory *guestmem.Memory
	vcpus  []*VCPU
	hooks  Hooks
	ports  *bus.Bus
	mmio   *bus.Bus
	log    *slog.Logger
	told   func(Reason)

	world
	ended sync.Once
	wg    sync.WaitGroup

	irq struct {
		sync.Mutex
		vectors []*vector // by GSI - layout.MSIBase; nil: free
		none    bool      // no interrupt controllers
	}
	closed atomic.Bool
}

// New makes a VM and its vCPUs, whose state is that of a reset processor. Guest
// memory is not mapped yet: whoever plans the memory slots does that.
func New(c Config) (_ *VM, err error) {
	if c.VCPUs < 1 {
		return nil, fmt.Errorf("%d vCPUs: want at least 1", c.VCPUs)
	}
	if most := max(c.System.Check(kvmapi.CapMaxVCPUs), c.System.Check(kvmapi.CapNrVCPUs)); c.VCPUs > most {
		return nil, fmt.Errorf("%d vCPUs: this host's KVM can do %d", c.VCPUs, most)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Ports == nil {
		c.Ports = &bus.Bus{}
	}
	if c.MMIO == nil {
		c.MMIO = &bus.Bus{}
	}
	kvm, err := c.System.CreateVM()
	if err != nil {
		return nil, err
	}
	vm := &VM{kvm: kvm, memory: c.Memory, hooks: c.Hooks, ports: c.Ports, mmio: c.MMIO, log: c.Logger, told: c.Shutdown}
	vm.world.init()
	vm.blocker, _ = c.Hooks.(Blocker)
	defer func() {
		if err != nil {
			err = errors.Join(err, vm.Close())
		}
	}()
	// Intel needs these two before a vCPU is made, others take them.
	if err := kvm.SetIdentityMapAddr(uint64(layout.IdentityMap)); err != nil {
		return nil, err
	}
	if err := kvm.SetTSSAddr(uint64(layout.TSS)); err != nil {
		return nil, err
	}
	vm.irq.none = c.NoIRQChip
	if !c.NoIRQChip {
		if err := kvm.CreateIRQChip(); err != nil {
			return nil, err
		}
		if err := kvm.CreatePIT2(); err != nil {
			return nil, err
		}
		vm.irq.vectors = make([]*vector, layout.MSICount)
		if err := vm.route(); err != nil {
			return nil, err
		}
	}
	for i := range c.VCPUs {
		fd, err := kvm.CreateVCPU(i)
		if err != nil {
			return nil, err
		}
		vm.vcpus = append(vm.vcpus, &VCPU{vm: vm, index: i, kvm: fd, run: fd.Run()})
	}
	return vm, nil
}

// KVM returns the VM's file descriptor.
func (vm *VM) KVM() *kvmapi.VM { return vm.kvm }

// Memory returns the guest's RAM.
func (vm *VM) Memory() *guestmem.Memory { return vm.memory }

// Ports returns the bus of the I/O ports.
func (vm *VM) Ports() *bus.Bus { return vm.ports }

// VCPUs returns the vCPUs by index. The caller must not change the slice.
func (vm *VM) VCPUs() []*VCPU { return vm.vcpus }

// MapRAM gives all of the memory to KVM, a slot a range: for a VM without a trap
// engine, which does so itself.
func (vm *VM) MapRAM() error {
	for i, r := range vm.memory.Ranges() {
		addr, _ := vm.memory.KVMAddr(r.Start)
		err := vm.kvm.SetUserMemoryRegion(kvmapi.UserspaceMemoryRegion{
			Slot: uint32(i), GuestPhysAddr: uint64(r.Start), MemorySize: r.Size, UserspaceAddr: uint64(addr),
		})
		if err != nil {
			return fmt.Errorf("memory slot %v: %w", r, err)
		}
	}
	return nil
}

// Start runs the vCPUs, each on a thread of its own. Boot processors run from
// the state that was set, the others wait for the guest to wake them. It is
// called once.
func (vm *VM) Start() {
	for _, v := range vm.vcpus {
		vm.wg.Go(v.loop)
	}
}

// end lets all vCPUs leave the guest for good; the first reason counts.
func (vm *VM) end(r Reason) {
	vm.ended.Do(func() {
		vm.world.close(vm.vcpus)
		if vm.told != nil {
			vm.told(r)
		}
	})
}

// Halt ends the vCPUs and returns when their threads are done. The VM cannot be
// started again.
func (vm *VM) Halt() {
	vm.ended.Do(func() { vm.world.close(vm.vcpus) })
	vm.wg.Wait()
}

// Close ends the vCPUs and closes everything but the memory.
func (vm *VM) Close() error {
	if vm.closed.Swap(true) {
		return nil
	}
	vm.Halt()
	var errs []error
	for _, v := range vm.irq.vectors {
		if v != nil {
			errs = append(errs, v.Close())
		}
	}
	for _, v := range vm.vcpus {
		errs = append(errs, v.kvm.Close())
	}
	return errors.Join(append(errs, vm.kvm.Close())...)
}
