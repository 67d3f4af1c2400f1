package core

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// VCPU is one vCPU: a locked thread that enters the guest and deals with its
// exits. Unless said otherwise its methods are for that thread, or for any while
// the VM is stopped.
type VCPU struct {
	vm    *VM
	index int
	kvm   *kvmapi.VCPU
	run   *kvmapi.Run

	busy    atomic.Bool
	started atomic.Bool
	tid     atomic.Int32 // of the thread, while it runs; else 0
	parked  bool         // in enter, with its last exit finished; under world.mu
	pending bool         // the last exit is one that KVM finishes at the next KVM_RUN
	synced  uint64       // which registers in run are the vCPU's own

	exits atomic.Uint64
}

// Index returns the vCPU's index, which is its APIC ID.
func (v *VCPU) Index() int { return v.index }

// VM returns the VM that it is of.
func (v *VCPU) VM() *VM { return v.vm }

// KVM returns the vCPU's file descriptor.
func (v *VCPU) KVM() *kvmapi.VCPU { return v.kvm }

// Run returns the page that is shared with the kernel.
func (v *VCPU) Run() *kvmapi.Run { return v.run }

// Exits returns how often the vCPU has left the guest. It may be called by any
// goroutine.
func (v *VCPU) Exits() uint64 { return v.exits.Load() }

// ThreadID returns the vCPU's thread, 0 when it does not run. It may be called by
// any goroutine.
func (v *VCPU) ThreadID() int { return int(v.tid.Load()) }

// kick makes the vCPU leave the guest soon, or not enter it. Go's runtime uses
// SIGURG to interrupt its own threads and ignores one that it did not ask for, so
// the signal needs no handler and does no harm to a thread that is elsewhere.
func (v *VCPU) kick() {
	v.run.SetImmediateExit(true)
	if tid := v.tid.Load(); tid != 0 {
		// The thread can only end after the VM has: an error has no one to be told.
		_ = unix.Tgkill(os.Getpid(), int(tid), unix.SIGURG)
	}
}

// Kick makes the vCPU's KVM_RUN end once; Hooks.Interrupted is called then. It
// may be called by any goroutine.
func (v *VCPU) Kick() { v.kick() }

func (v *VCPU) loop() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.tid.Store(int32(unix.Gettid()))
	v.started.Store(true)
	defer func() {
		v.started.Store(false)
		v.tid.Store(0)
		v.leave()
		v.vm.wake()
	}()
	for v.enter() {
		if err := v.once(); err != nil {
			v.vm.end(Reason{Kind: ReasonError, VCPU: v.index, Err: err})
		}
	}
}

// once enters the guest and deals with the exit.
func (v *VCPU) once() error {
	switch err := v.Enter(); {
	case err == nil:
		return v.dispatch()
	case errors.Is(err, unix.EINTR):
		v.run.SetImmediateExit(false) // halt is looked at before the next entry
		if h := v.vm.hooks; h != nil {
			h.Interrupted(v)
		}
		return nil
	case errors.Is(err, unix.EAGAIN): // woken by INIT or SIPI
		return nil
	default:
		return fmt.Errorf("vCPU %d: KVM_RUN: %w", v.index, err)
	}
}

// Enter is one KVM_RUN, without dealing with its exit: for a single step within
// Exclusive. unix.EINTR says that it was interrupted, before or in the guest.
func (v *VCPU) Enter() error {
	err := v.kvm.Enter()
	v.exits.Add(1)
	if err == nil {
		v.synced = v.run.Sync()
		switch v.run.ExitReason() {
		case kvmapi.ExitIO, kvmapi.ExitMMIO, kvmapi.ExitRDMSR, kvmapi.ExitWRMSR:
			v.pending = true
		default:
			v.pending = false
		}
		return nil
	}
	v.pending = false
	// KVM stores the registers on this way out too, but not in every version.
	v.synced = 0
	return err
}

// Complete finishes an exit that KVM has left half-done (the value of an IN on
// its way to RAX, RIP still at the instruction): after it registers may be set.
// Where the access has a second part (it crossed a page) that part's exit is
// dealt with too.
func (v *VCPU) Complete() error {
	if !v.pending {
		return nil
	}
	return v.finish()
}

func (v *VCPU) finish() error {
	for v.pending {
		v.run.SetImmediateExit(true)
		err := v.Enter()
		v.run.SetImmediateExit(false)
		switch {
		case err == nil:
			if err := v.dispatch(); err != nil {
				v.vm.end(Reason{Kind: ReasonError, VCPU: v.index, Err: err})
				return err
			}
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			return nil
		default:
			err = fmt.Errorf("vCPU %d: KVM_RUN: %w", v.index, err)
			v.vm.end(Reason{Kind: ReasonError, VCPU: v.index, Err: err})
			return err
		}
	}
	return nil
}

// Dispatch deals with the exit in Run as the vCPU's loop does: for who has called
// Enter and got an exit that is not his. An error ends the VM.
func (v *VCPU) Dispatch() error {
	err := v.dispatch()
	if err != nil {
		v.vm.end(Reason{Kind: ReasonError, VCPU: v.index, Err: err})
	}
	return err
}

// dispatch deals with the exit in v.run.
func (v *VCPU) dispatch() error {
	h := v.vm.hooks
	switch reason := v.run.ExitReason(); reason {
	case kvmapi.ExitIO:
		v.io(h)
	case kvmapi.ExitMMIO:
		gpa, data, write := v.run.MMIO()
		if h != nil && h.MMIO(v, hypervisor.PhysAddr(gpa), data, write) {
			return nil
		}
		if write {
			v.vm.mmio.Write(gpa, data)
		} else {
			v.vm.mmio.Read(gpa, data)
		}
	case kvmapi.ExitRDMSR, kvmapi.ExitWRMSR:
		if h == nil || !h.MSR(v, reason == kvmapi.ExitWRMSR) {
			v.run.AnswerMSR(0, true)
		}
	case kvmapi.ExitDebug:
		if h == nil || !h.Debug(v) {
			_, pc, _, _ := v.run.Debug()
			return fmt.Errorf("vCPU %d: debug exit at %#x that no one asked for", v.index, pc)
		}
	case kvmapi.ExitInternalError:
		if h == nil || !h.InternalError(v) {
			return v.internalError()
		}
	case kvmapi.ExitShutdown:
		if h == nil || !h.Shutdown(v) {
			v.vm.end(Reason{Kind: ReasonTripleFault, VCPU: v.index})
		}
	case kvmapi.ExitHLT: // only without the kernel's interrupt controllers
		v.vm.end(Reason{Kind: ReasonHalt, VCPU: v.index})
	case kvmapi.ExitIntr, kvmapi.ExitIRQWindowOpen, kvmapi.ExitDirtyRingFull:
	case kvmapi.ExitFailEntry:
		return fmt.Errorf("vCPU %d: the processor refuses to enter the guest: hardware reason %#x", v.index, v.run.FailEntry())
	default:
		return fmt.Errorf("vCPU %d: exit %d, which is not known", v.index, reason)
	}
	return nil
}

func (v *VCPU) io(h Hooks) {
	port, size, write, data := v.run.IO()
	for ; len(data) >= size && size > 0; data = data[size:] {
		p := data[:size]
		if h != nil && h.IO(v, port, p, write) {
			continue
		}
		if write {
			v.vm.ports.Write(uint64(port), p)
		} else {
			v.vm.ports.Read(uint64(port), p)
		}
	}
}

func (v *VCPU) internalError() error {
	sub, data := v.run.InternalError()
	text := fmt.Sprintf("vCPU %d: KVM could not go on: internal error %d %#x", v.index, sub, data)
	if r, err := v.Registers(); err == nil {
		text += fmt.Sprintf(" at rip %#x", uint64(r.RIP))
	}
	if sub == kvmapi.InternalErrorEmulation {
		text += ": the instruction reaches memory that is no RAM and cannot be emulated"
	}
	return errors.New(text)
}

// Forget says that the vCPU's registers were changed through KVM: what the last
// exit left in the shared page, and an exit that is not finished, no longer
// count.
func (v *VCPU) Forget() { v.synced, v.pending = 0, false }
