package trap

import (
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
)

// Shutdown is core.Hooks': a triple fault. Handlers see the guest as it is then;
// whatever they answer, the core goes on with what it does with a processor that
// has shut down. With TrapPause it does so when the VM is resumed.
func (e *Engine) Shutdown(v *core.VCPU) bool {
	if len(e.shutdown) == 0 {
		return false
	}
	a := e.tell(v, e.shutdown, e.event(v, hypervisor.TrapShutdown, hypervisor.AccessExecute))
	if a.pause && !a.ended {
		e.pause()
		v.Wait(func() {})
	}
	return false
}
