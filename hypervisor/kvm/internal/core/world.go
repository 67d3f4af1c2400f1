package core

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// world stops the vCPUs and lets them go on. A vCPU is busy while it is in the
// guest or deals with an exit, and stands otherwise: it waits for an answer, to
// be alone, or for the world to go on.
//
// Who stops raises halt first and looks at the vCPUs' busy afterwards; a vCPU
// sets busy first and looks at halt afterwards. One of the two sees the other
// (both are sequentially consistent), so no vCPU slips into the guest, and the
// way in costs two atomic operations.
type world struct {
	blocker Blocker      // may be nil
	halt    atomic.Int32 // >0: no vCPU may become busy (but the one that is alone)
	closing atomic.Bool

	mu       sync.Mutex
	cond     sync.Cond
	settling int                  // calls of Settle
	stills   int                  // calls of Still that wait to be alone
	still    VCPU                 // what alone is during Still: no vCPU
	stops    int                  // of halt, those by Stop
	alone    atomic.Pointer[VCPU] // in Exclusive; changed with mu held
}

func (w *world) init() { w.cond.L = &w.mu }

func (w *world) wake() {
	w.mu.Lock()
	w.cond.Broadcast()
	w.mu.Unlock()
}

// Blocker is implemented by Hooks under which a vCPU's thread may wait in the
// kernel, in KVM_RUN, for a page of guest memory (userfaultfd), so that a signal
// does not bring it out.
type Blocker interface {
	// Blocked reports whether v waits so. It is called with a lock of the VM held:
	// it must not call the VM. Who makes it true calls VM.Look.
	Blocked(v *VCPU) bool
	// Release lets those that wait come out; Blocked is false for them then. It is
	// called when no vCPU runs guest code, and a signal is pending for each that
	// waits: they leave KVM_RUN before they run the guest. Locks as for Blocked.
	Release()
	// Restore is called when they have, and undoes what Release did to the pages.
	Restore()
}

// Look lets whoever waits for vCPUs to stand look at Blocker.Blocked again.
func (vm *VM) Look() { vm.wake() }

// stand waits, with mu held, until no vCPU but v is busy.
func (w *world) stand(vcpus []*VCPU, v *VCPU) {
	for _, o := range vcpus {
		if o != v && o.busy.Load() {
			o.kick()
		}
	}
	released := false
	for {
		busy, blocked := 0, 0
		for _, o := range vcpus {
			if o != v && o.busy.Load() {
				busy++
				if w.blocker != nil && w.blocker.Blocked(o) {
					blocked++
				}
			}
		}
		switch {
		case busy == 0:
			if released {
				w.blocker.Restore()
			}
			return
		case busy == blocked:
			w.blocker.Release()
			released = true
		default:
			w.cond.Wait()
		}
	}
}

func (w *world) close(vcpus []*VCPU) {
	w.closing.Store(true)
	w.halt.Add(1)
	for _, v := range vcpus {
		v.kick()
	}
	w.wake()
}

// Stop returns when no vCPU is busy; none will be until Start was called as
// often. It must not be called on a vCPU's thread: see StopSoon. A vCPU that
// waits for a trap's answer counts as standing: see Settle.
func (vm *VM) Stop() {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.stops++
	vm.halt.Add(1)
	for vm.alone.Load() != nil {
		vm.cond.Wait()
	}
	vm.stand(vm.vcpus, nil)
}

// StopSoon is Stop for a vCPU's own thread: it does not wait.
func (vm *VM) StopSoon() {
	vm.mu.Lock()
	vm.stops++
	vm.halt.Add(1)
	vm.mu.Unlock()
	for _, v := range vm.vcpus {
		v.kick()
	}
}

// Go undoes one Stop or StopSoon.
func (vm *VM) Go() {
	vm.mu.Lock()
	vm.stops--
	vm.halt.Add(-1)
	vm.cond.Broadcast()
	vm.mu.Unlock()
}

// Settle returns, after Stop, when every vCPU has finished its last exit, so that
// its registers are those between two instructions. It waits for the answers to
// traps; the error is ctx's.
func (vm *VM) Settle(ctx context.Context) error {
	stop := context.AfterFunc(ctx, vm.wake)
	defer stop()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	// A vCPU whose trap is answered meanwhile finishes that, though the VM stands.
	vm.settling++
	defer func() { vm.settling-- }()
	vm.cond.Broadcast()
	for !vm.closing.Load() && slices.ContainsFunc(vm.vcpus, func(v *VCPU) bool { return v.started.Load() && !v.parked }) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		vm.cond.Wait()
	}
	return nil
}

// Still runs f while all vCPUs stand, in a VM that is stopped too: for changes of
// what vCPUs and Hooks rely on. It must not be called on a vCPU's thread (there
// it is Exclusive), nor within f.
func (vm *VM) Still(f func()) {
	vm.mu.Lock()
	vm.stills++
	for vm.alone.Load() != nil {
		vm.cond.Wait()
	}
	vm.stills--
	vm.alone.Store(&vm.still)
	vm.halt.Add(1)
	vm.stand(vm.vcpus, nil)
	vm.mu.Unlock()
	defer func() {
		vm.mu.Lock()
		vm.alone.Store(nil)
		vm.halt.Add(-1)
		vm.cond.Broadcast()
		vm.mu.Unlock()
	}()
	f()
}

// Exclusive runs f on v's own thread while all other vCPUs stand. When the VM is
// stopped it waits until it goes on, or until Settle wants v to finish. It returns
// false, without having called f, when the VM ends. A call within f runs at once.
func (vm *VM) Exclusive(v *VCPU, f func()) bool {
	if vm.alone.Load() == v { // only v itself sets it to v
		f()
		return true
	}
	vm.mu.Lock()
	v.busy.Store(false)
	vm.cond.Broadcast()
	for (vm.alone.Load() != nil || vm.stills > 0 || vm.stops > 0 && vm.settling == 0) && !vm.closing.Load() {
		vm.cond.Wait()
	}
	if vm.closing.Load() {
		v.busy.Store(true)
		vm.mu.Unlock()
		return false
	}
	vm.alone.Store(v)
	vm.halt.Add(1)
	vm.stand(vm.vcpus, v)
	v.busy.Store(true)
	vm.mu.Unlock()
	f()
	vm.mu.Lock()
	vm.alone.Store(nil)
	vm.halt.Add(-1)
	vm.cond.Broadcast()
	vm.mu.Unlock()
	return true
}

// enter returns when v may be busy; false: the VM ends.
func (v *VCPU) enter() bool {
	w := &v.vm.world
	for {
		v.busy.Store(true)
		if w.halt.Load() == 0 {
			return true
		}
		if w.closing.Load() {
			v.leave()
			return false
		}
		// Whoever looks at a stopped vCPU finds the exit finished.
		if v.pending {
			_ = v.finish() // an error has ended the VM: closing says so
			continue
		}
		// Whoever looks may ask KVM.
		if err := v.Flush(); err != nil {
			v.vm.end(Reason{Kind: ReasonError, VCPU: v.index, Err: err})
			continue
		}
		v.busy.Store(false)
		w.mu.Lock()
		v.parked = true
		w.cond.Broadcast()
		for w.halt.Load() > 0 && !w.closing.Load() {
			w.cond.Wait()
		}
		v.parked = false
		w.mu.Unlock()
	}
}

// leave lets v stand.
func (v *VCPU) leave() {
	v.busy.Store(false)
	if v.vm.halt.Load() > 0 {
		v.vm.wake()
	}
}

// Wait runs f, which may block, while v counts as standing. It is for v's own
// thread, in a hook; guest memory and registers must not be changed in f. When
// it returns, v is busy again, which may have to wait for the VM to go on; false
// says that the VM ends.
func (v *VCPU) Wait(f func()) bool {
	if v.vm.alone.Load() == v {
		f() // all others stand already, and none may be let in
		return true
	}
	v.leave()
	f()
	w := &v.vm.world
	for {
		v.busy.Store(true)
		if w.halt.Load() == 0 {
			return true
		}
		if w.closing.Load() {
			return false
		}
		w.mu.Lock()
		if w.settling > 0 && w.alone.Load() == nil {
			// v stays busy: Settle waits for it to be parked.
			w.mu.Unlock()
			return true
		}
		v.busy.Store(false)
		w.cond.Broadcast()
		for w.halt.Load() > 0 && !w.closing.Load() && (w.settling == 0 || w.alone.Load() != nil) {
			w.cond.Wait()
		}
		w.mu.Unlock()
	}
}

// Stopped reports whether the VM is stopped, or will be as soon as its vCPUs
// stand. It may be called by any goroutine.
func (vm *VM) Stopped() bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.stops > 0
}

// Closing reports whether the VM ends. It may be called by any goroutine.
func (vm *VM) Closing() bool { return vm.closing.Load() }
