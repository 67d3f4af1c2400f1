package kvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// tokens gives numbers to what this handle sets in a machine.
type tokens struct{ last atomic.Uint64 }

func (t *tokens) next() wire.Token { return wire.Token{Token: t.last.Add(1)} }

// ask sends a request whose answer is nothing but done.
func (vm *VM) ask(ctx context.Context, m wire.Message) error {
	r, err := vm.do(ctx, m, nil)
	r.CloseFiles()
	return err
}

func (vm *VM) do(ctx context.Context, m wire.Message, part func(wire.Message) error) (wire.Message, error) {
	r, err := vm.c.do(ctx, m, part)
	if err != nil {
		return r, fmt.Errorf("VM %s: %w", vm.name, err)
	}
	return r, nil
}

// Pause stops the vCPUs. The pause is the machine's and outlives this process:
// see Hold for one that does not.
func (vm *VM) Pause(ctx context.Context) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodPause})
}

// Resume lets the vCPUs run. Where someone holds the machine it stands on until
// they let go.
func (vm *VM) Resume(ctx context.Context) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodResume})
}

// State asks whether the vCPUs run.
func (vm *VM) State(ctx context.Context) (hypervisor.State, error) {
	r, err := vm.do(ctx, wire.Message{Method: wire.MethodState}, nil)
	if err != nil {
		return hypervisor.StateUnknown, err
	}
	var s hypervisor.State
	if err := r.Into(&s); err != nil {
		return hypervisor.StateUnknown, err
	}
	switch s {
	case hypervisor.StateRunning, hypervisor.StatePaused:
		return s, nil
	}
	return hypervisor.StateUnknown, nil
}

// Hold is hypervisor.Holder's.
func (vm *VM) Hold(ctx context.Context) (release func() error, err error) {
	t := vm.tokens.next()
	if err := vm.ask(ctx, wire.Message{Method: wire.MethodHold}.JSON(t)); err != nil {
		return nil, err
	}
	var released atomic.Bool
	return func() error {
		if released.Swap(true) {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		err := vm.ask(ctx, wire.Message{Method: wire.MethodRelease}.JSON(t))
		if errors.Is(err, hypervisor.ErrClosed) || errors.Is(err, hypervisor.ErrGone) {
			return nil // the hold ended with the handle, or the machine
		}
		return err
	}, nil
}

// Registers returns the vCPUs' registers. A machine that runs is stopped for that
// moment.
func (vm *VM) Registers(ctx context.Context) ([]hypervisor.Registers, error) {
	r, err := vm.do(ctx, wire.Message{Method: wire.MethodRegisters}, nil)
	if err != nil {
		return nil, err
	}
	return wire.ParseRegisters(r.Body)
}

// SetRegisters is hypervisor.RegisterWriter's.
func (vm *VM) SetRegisters(ctx context.Context, r hypervisor.Registers) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodSetRegisters, Body: wire.AppendRegisters(nil, &r)})
}

// WritePhys writes guest memory: see hypervisor.Writer. It asks the machine, whose
// traps do not see it; a breakpoint that is set there stays.
func (vm *VM) WritePhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	if err := vm.enter(); err != nil {
		return 0, err
	}
	defer vm.leave()
	done := 0
	for done < len(p) || len(p) == 0 {
		part := p[done:min(len(p), done+wire.MaxWrite)]
		at := gpa + hypervisor.PhysAddr(done)
		_, err := vm.do(context.Background(), wire.Message{Method: wire.MethodWrite, Body: wire.AppendWrite(nil, at, part)}, nil)
		var some *partlyError
		if errors.As(err, &some) {
			return done + min(some.done, len(part)), some.error
		}
		if err != nil {
			return done, err
		}
		done += len(part)
		if len(p) == 0 {
			break
		}
	}
	return done, nil
}

// PowerButton is hypervisor.Switch's.
func (vm *VM) PowerButton(ctx context.Context) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodPowerButton})
}

// Reset is hypervisor.Switch's.
func (vm *VM) Reset(ctx context.Context) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodReset})
}

// Stop is hypervisor.Switch's. It returns when the machine's process has ended: its
// name, files and memory are free again.
func (vm *VM) Stop(ctx context.Context) error {
	err := vm.ask(ctx, wire.Message{Method: wire.MethodStop})
	if err != nil && !errors.Is(err, hypervisor.ErrGone) {
		return err
	}
	select {
	case <-vm.c.done:
	case <-ctx.Done():
		return fmt.Errorf("VM %s: stop: %w", vm.name, context.Cause(ctx))
	}
	if err := vm.awaitProcess(ctx); err != nil {
		return fmt.Errorf("VM %s: stop: %w", vm.name, err)
	}
	return nil
}

// awaitProcess returns when the machine's process has ended. Where it cannot be
// seen (another namespace) that is at once.
func (vm *VM) awaitProcess(ctx context.Context) error {
	vm.mu.RLock()
	defer vm.mu.RUnlock()
	if vm.closed {
		return hypervisor.ErrClosed
	}
	if vm.process == nil || vm.info.PID == os.Getpid() { // a test's machine
		return nil
	}
	for {
		fds := []unix.PollFd{{Fd: int32(vm.process.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 20) // ms: how late an end of ctx is seen
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for process %d: %w", vm.info.PID, err)
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
}

// SetBalloon is hypervisor.Ballooner's.
func (vm *VM) SetBalloon(ctx context.Context, size uint64) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodBalloon}.JSON(wire.Balloon{Size: size}))
}

// StartDirty is hypervisor.DirtyTracker's. One client of a machine tracks at a
// time; to another the error wraps hypervisor.ErrBusy.
func (vm *VM) StartDirty(ctx context.Context) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodStartDirty})
}

// Dirty is hypervisor.DirtyTracker's.
func (vm *VM) Dirty(ctx context.Context) ([]hypervisor.Range, error) {
	var rs []hypervisor.Range
	_, err := vm.do(ctx, wire.Message{Method: wire.MethodDirty}, func(m wire.Message) (err error) {
		// A machine of 512 GiB has no more than one range for two pages.
		if uint64(len(rs)) > vm.pages() {
			return fmt.Errorf("%w: more dirty ranges than pages", wire.ErrMalformed)
		}
		rs, err = wire.ParseRanges(rs, m.Body)
		return err
	})
	if err != nil {
		return nil, err
	}
	return hypervisor.NormalizeRanges(rs)
}

func (vm *VM) pages() uint64 { return hypervisor.TotalSize(vm.ranges) / hypervisor.PageSize }

// StopDirty is hypervisor.DirtyTracker's.
func (vm *VM) StopDirty(ctx context.Context) error {
	return vm.ask(ctx, wire.Message{Method: wire.MethodStopDirty})
}
