package trap

import (
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
)

// IO is core.Hooks'.
func (e *Engine) IO(v *core.VCPU, port uint16, data []byte, write bool) bool {
	e.late(v)
	if len(e.ports) == 0 {
		return false
	}
	access := hypervisor.AccessRead
	if write {
		access = hypervisor.AccessWrite
	}
	var ts []*trap
	for _, t := range e.ports {
		if t.Access.Has(access) && uint32(port)+uint32(len(data)) > uint32(t.Port) && uint32(port) < uint32(t.Port)+t.count() {
			ts = append(ts, t)
		}
	}
	if len(ts) == 0 {
		return false
	}
	ev := e.event(v, hypervisor.TrapPort, access)
	ev.Port, ev.Size, ev.Known = port, len(data), hypervisor.KnownRIP
	if write {
		ev.Value, ev.New = number(data), le(number(data), len(data))
		ev.Known |= hypervisor.KnownNew
	}
	a := e.tell(v, ts, ev)
	if a.ended {
		return true
	}
	done := false
	switch a.verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny: // as where no device answers
		if !write {
			for i := range data {
				data[i] = 0xff
			}
		}
		done = true
	case hypervisor.TrapEmulate:
		clear(data)
		copy(data, a.value)
		done = !write // the device gets the value
	}
	e.swallowEnd(v, &a)
	if a.regs != nil {
		// They are set when the device has done its part.
		if !done {
			e.device(port, data, write)
			done = true
		}
	}
	e.behind(v, a)
	return done
}

// device does an access to a port.
func (e *Engine) device(port uint16, data []byte, write bool) {
	if write {
		e.vm.Ports().Write(uint64(port), data)
	} else {
		e.vm.Ports().Read(uint64(port), data)
	}
}
