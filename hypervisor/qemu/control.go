package qemu

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/kvmrun"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/monitor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/qmp"
)

// withQMP runs f with a connection to a monitor of the VM.
func (vm *VM) withQMP(ctx context.Context, what string, f func(context.Context, *qmp.Client) error) error {
	if err := vm.enter(); err != nil {
		return err
	}
	defer vm.leave()
	if vm.noQMP {
		return &hypervisor.NotSupportedError{What: what, Driver: DriverName, Remedy: "open the VM with a driver that may use QMP (Options.NoQMP)"}
	}
	vm.qmp.Lock()
	defer vm.qmp.Unlock()
	ctx, cancel := context.WithTimeout(ctx, vm.timeout)
	defer cancel()
	err := func() error {
		c, err := dial(ctx, vm.p, vm.cfg)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		return f(ctx, c)
	}()
	if err == nil {
		return nil
	}
	if gone := vm.p.Ended(); gone != nil {
		return gone
	}
	var no *hypervisor.NotSupportedError
	if errors.As(err, &no) {
		return &hypervisor.NotSupportedError{What: what, Driver: DriverName, Remedy: no.Remedy}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// Pause stops the vCPUs (QMP `stop`). The pause outlives this process: see the
// package documentation.
func (vm *VM) Pause(ctx context.Context) error {
	return vm.withQMP(ctx, "pause", func(ctx context.Context, c *qmp.Client) error {
		if err := c.Execute(ctx, "stop", nil, nil); err != nil { // returns when the vCPUs stand still
			return err
		}
		if s, err := queryState(ctx, c); err != nil || s != hypervisor.StatePaused {
			return errors.Join(err, fmt.Errorf("the VM is %s after stop", s))
		}
		return nil
	})
}

// Resume lets the vCPUs run (QMP `cont`).
func (vm *VM) Resume(ctx context.Context) error {
	return vm.withQMP(ctx, "resume", func(ctx context.Context, c *qmp.Client) error {
		return c.Execute(ctx, "cont", nil, nil)
	})
}

// State asks QEMU whether the vCPUs run.
func (vm *VM) State(ctx context.Context) (hypervisor.State, error) {
	s := hypervisor.StateUnknown
	err := vm.withQMP(ctx, "state", func(ctx context.Context, c *qmp.Client) (err error) {
		s, err = queryState(ctx, c)
		return err
	})
	return s, err
}

// Registers returns the vCPUs' registers: over QMP where that is there and
// free, else, under KVM, from the vCPUs' kvm_run pages without stopping them.
// The system-call MSRs come by neither way.
func (vm *VM) Registers(ctx context.Context) ([]hypervisor.Registers, error) {
	var regs []hypervisor.Registers
	err := vm.withQMP(ctx, "vCPU registers", func(ctx context.Context, c *qmp.Client) error {
		text, err := c.HMP(ctx, "info registers -a")
		if err != nil {
			return err
		}
		regs, err = monitor.ParseRegisters(text)
		return err
	})
	if ctx.Err() != nil {
		return nil, fmt.Errorf("vCPU registers: %w", context.Cause(ctx))
	}
	if err == nil || errors.Is(err, hypervisor.ErrGone) || errors.Is(err, hypervisor.ErrClosed) {
		return regs, err
	}
	passive, perr := vm.passiveRegisters(ctx)
	if perr == nil {
		return passive, nil
	}
	if errors.Is(perr, kvmrun.ErrNoKVM) {
		return nil, err // TCG: QMP is the only way, and its remedy the one that helps
	}
	return nil, errors.Join(err, perr)
}

func (vm *VM) passiveRegisters(ctx context.Context) ([]hypervisor.Registers, error) {
	if err := vm.enter(); err != nil {
		return nil, err
	}
	defer vm.leave()
	regs, err := kvmrun.Registers(ctx, vm.p)
	if gone := vm.p.Ended(); gone != nil {
		return nil, gone
	}
	return regs, err
}
