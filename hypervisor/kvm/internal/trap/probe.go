package trap

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// probe finds out what this host's KVM can do, and switches on what is for the
// whole VM.
func (e *Engine) probe(sys *kvmapi.System) error {
	e.can.ReadOnly = e.kvm.Check(kvmapi.CapReadonlyMem) > 0
	e.can.Slots = e.kvm.Check(kvmapi.CapNrMemslots)
	e.can.BlockIRQ = e.kvm.Check(kvmapi.CapSetGuestDebug2)&kvmapi.GuestDebugBlockIRQ != 0
	// What the second one answers is 1 or a set of reasons, by version: what is not
	// there is refused.
	if e.kvm.Check(kvmapi.CapX86MSRFilter) > 0 && e.kvm.Check(kvmapi.CapX86UserSpaceMSR) > 0 {
		switch err := e.kvm.EnableCap(kvmapi.CapX86UserSpaceMSR, kvmapi.MSRExitReasonFilter); {
		case err == nil:
			e.can.MSRFilter = true
		case !errors.Is(err, unix.EINVAL):
			return err
		}
	}
	// Without it (Linux < 5.15) an instruction of user space that KVM cannot
	// emulate raises #UD in the guest.
	if e.kvm.Check(kvmapi.CapExitOnEmulFailure) > 0 {
		if err := e.kvm.EnableCap(kvmapi.CapExitOnEmulFailure, 1); err != nil {
			return err
		}
	}
	if e.kvm.Check(kvmapi.CapManualDirtyLog2)&kvmapi.ManualProtectEnable != 0 {
		if err := e.kvm.EnableCap(kvmapi.CapManualDirtyLog2, kvmapi.ManualProtectEnable); err != nil {
			return err
		}
		e.dirty.manual = true
	}
	var err error
	e.can.Breakpoint, err = breakpointExits(sys)
	return err
}

// breakpointExits runs an INT3 in a VM of its own: under KVM without nested
// paging, and in emulations of SVM, it goes to the guest and never exits.
func breakpointExits(sys *kvmapi.System) (exits bool, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("find out whether INT3 exits: %w", err)
		}
	}()
	vm, err := sys.CreateVM()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	mem, err := unix.Mmap(-1, 0, hypervisor.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, unix.Munmap(mem)) }()
	for i := range mem {
		mem[i] = 0xcc
	}
	const at = 0x1000
	if err := errors.Join(vm.SetIdentityMapAddr(0xfffb_c000), vm.SetTSSAddr(0xfffb_d000)); err != nil {
		return false, err
	}
	err = vm.SetUserMemoryRegion(kvmapi.UserspaceMemoryRegion{GuestPhysAddr: at, MemorySize: hypervisor.PageSize, UserspaceAddr: uint64(address(mem))})
	if err != nil {
		return false, err
	}
	v, err := vm.CreateVCPU(0)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	s, err := v.Sregs()
	if err != nil {
		return false, err
	}
	s.CS.Base, s.CS.Selector = 0, 0
	err = errors.Join(v.SetSregs(&s), v.SetRegs(&kvmapi.Regs{RIP: at, RFLAGS: 2}),
		v.SetGuestDebug(&kvmapi.GuestDebug{Control: kvmapi.GuestDebugEnable | kvmapi.GuestDebugUseSWBP}))
	if err != nil {
		return false, err
	}
	for {
		switch err := v.Enter(); {
		case err == nil:
			exception, _, _, _ := v.Run().Debug()
			return v.Run().ExitReason() == kvmapi.ExitDebug && exception == kvmapi.ExceptionBP, nil
		case !errors.Is(err, unix.EINTR):
			// A KVM that cannot even run this is one that cannot exit there.
			return false, nil
		}
	}
}
