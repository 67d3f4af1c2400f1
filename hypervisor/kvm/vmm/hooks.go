package vmm

import (
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
)

// hooks are what the core asks before the devices: the trap engine, and the
// machine for what ends or resets it.
type hooks Machine

// traps is the machine's trap engine.
type traps struct{}

func (m *Machine) addTraps() error   { return m.vm.MapRAM() }
func (m *Machine) closeTraps() error { return nil }
func (m *Machine) trapsReset()       {}

func (h *hooks) MMIO(v *core.VCPU, gpa hypervisor.PhysAddr, data []byte, write bool) bool {
	return false
}
func (h *hooks) IO(v *core.VCPU, port uint16, data []byte, write bool) bool { return false }
func (h *hooks) Debug(v *core.VCPU) bool                                    { return false }
func (h *hooks) MSR(v *core.VCPU, write bool) bool                          { return false }
func (h *hooks) InternalError(v *core.VCPU) bool                            { return false }
func (h *hooks) Interrupted(v *core.VCPU)                                   {}

// Shutdown is a triple fault, which resets a PC.
func (h *hooks) Shutdown(v *core.VCPU) bool {
	(*Machine)(h).stopFor(doReset, EventTripleFault)
	return true
}
