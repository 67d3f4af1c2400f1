package vmm

import (
	"context"
	"errors"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/trap"
)

// hooks are what the core asks before the devices: the trap engine, and the
// machine for what the engine leaves.
type hooks struct {
	*trap.Engine
	m *Machine
}

// Shutdown is a triple fault, which resets a PC.
func (h *hooks) Shutdown(v *core.VCPU) bool {
	if !h.Engine.Shutdown(v) {
		h.m.stopFor(doReset, EventTripleFault)
	}
	return true
}

// newTraps makes the engine; attachTraps ties it to the machine's VM.
func (m *Machine) newTraps() *hooks {
	m.traps = trap.New(trap.Config{
		Memory: m.mem, Userfault: m.res.Userfault, NestedPaging: !m.cfg.NoNestedPaging, Pause: m.pauseSoon, Logger: m.log,
	})
	return &hooks{Engine: m.traps, m: m}
}

func (m *Machine) closeTraps() error {
	if m.traps == nil || m.vm == nil {
		return nil
	}
	return m.traps.Close()
}

// SetTrap is hypervisor.Trapper's.
func (m *Machine) SetTrap(ctx context.Context, t hypervisor.Trap, h hypervisor.TrapHandler) (hypervisor.TrapID, error) {
	if m.ended() {
		return 0, hypervisor.ErrGone
	}
	return m.traps.SetTrap(ctx, t, h)
}

// RemoveTrap is hypervisor.Trapper's. The traps of a machine that has ended are
// gone: removing one is no error.
func (m *Machine) RemoveTrap(ctx context.Context, id hypervisor.TrapID) error {
	err := m.traps.RemoveTrap(ctx, id)
	if m.ended() && errors.Is(err, hypervisor.ErrNotFound) {
		return nil
	}
	return err
}
