package trap

import (
	"bytes"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
)

// MMIO is core.Hooks': an access to a page whose slot is read-only or not there.
func (e *Engine) MMIO(v *core.VCPU, gpa hypervisor.PhysAddr, data []byte, write bool) bool {
	e.late(v)
	view, err := e.mem.View(gpa, uint64(len(data)))
	if err != nil {
		return false // a device
	}
	if !write {
		e.mmioRead(v, gpa, view, data)
		return true
	}
	// KVM is behind a write when it hands it out, and tells of no step then.
	c := e.vcpus[v.Index()]
	earlier := c.once
	c.once = nil
	e.mmioWrite(v, gpa, view, data)
	asked := c.once
	c.once = earlier
	if len(c.steps)+len(c.once) > 0 && !e.vm.Closing() {
		e.stepHit(v)
	}
	if len(asked) > 0 {
		c.once = append(c.once, asked...)
		e.arm(v)
	}
	return true
}

// watching returns the traps of page kind that watch any of n bytes at gpa.
func (e *Engine) watching(access hypervisor.Access, gpa hypervisor.PhysAddr, n int) []*trap {
	a := e.find(gpa.Frame())
	if a == nil {
		return nil
	}
	return watchers(a.traps, access, gpa, n)
}

func watchers(all []*trap, access hypervisor.Access, gpa hypervisor.PhysAddr, n int) []*trap {
	for i, t := range all {
		if t.covers(access, gpa, n) {
			continue
		}
		// Not all of them: a list of its own.
		out := append([]*trap(nil), all[:i]...)
		for _, t := range all[i+1:] {
			if t.covers(access, gpa, n) {
				out = append(out, t)
			}
		}
		return out
	}
	return all
}

func (e *Engine) mmioRead(v *core.VCPU, gpa hypervisor.PhysAddr, view, data []byte) {
	copy(data, le(loadBytes(view), len(data)))
	e.unplant(data, gpa)
	ts := e.watching(hypervisor.AccessRead, gpa, len(data))
	if len(ts) == 0 {
		return
	}
	ev := e.event(v, hypervisor.TrapPage, hypervisor.AccessRead)
	ev.Addr, ev.Size, ev.Mechanism = gpa, len(data), hypervisor.MechanismNoSlot
	ev.Old = bytes.Clone(data)
	ev.Known = hypervisor.KnownAddr | hypervisor.KnownOld | hypervisor.KnownRIP
	if virt, ok := e.virtOf(v, &ev.Registers, gpa, len(data), false); ok {
		ev.Virt = virt
		ev.Known |= hypervisor.KnownVirt
	}
	a := e.tell(v, ts, ev)
	switch a.verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny: // as on a bus where no one answers
		for i := range data {
			data[i] = 0xff
		}
	case hypervisor.TrapEmulate:
		clear(data)
		copy(data, a.value)
	}
	e.swallowEnd(v, &a)
	e.behind(v, a)
}

func (e *Engine) mmioWrite(v *core.VCPU, gpa hypervisor.PhysAddr, view, data []byte) {
	ts := e.watching(hypervisor.AccessWrite, gpa, len(data))
	lost := e.overwritten(gpa, len(data))
	if len(ts) == 0 && len(lost) == 0 {
		e.finishWrite(v, gpa, view, data, nil)
		return
	}
	ev := e.event(v, hypervisor.TrapPage, hypervisor.AccessWrite)
	last := e.lastWrite(v, &ev.Registers, gpa, data)
	ev.Addr, ev.Size = gpa, len(data)
	ev.Mechanism = hypervisor.MechanismReadOnlySlot
	if a := e.find(gpa.Frame()); a != nil && a.mode != readOnly {
		ev.Mechanism = hypervisor.MechanismNoSlot
	}
	ev.Old, ev.New = le(loadBytes(view), len(data)), bytes.Clone(data)
	e.unplant(ev.Old, gpa)
	ev.Known = hypervisor.KnownAddr | hypervisor.KnownOld | hypervisor.KnownNew
	last.tell(ev)
	a := e.tell(v, append(lost, ts...), ev)
	if a.ended {
		return
	}
	switch a.verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny:
	case hypervisor.TrapEmulate:
		value := make([]byte, len(data))
		copy(value, a.value)
		e.store(v, gpa, view, number(value))
	default:
		e.finishWrite(v, gpa, view, data, &last)
	}
	e.behind(v, a)
}

// store writes guest memory for the guest.
func (e *Engine) store(v *core.VCPU, gpa hypervisor.PhysAddr, view []byte, value uint64) {
	e.breakpointsWritten(v, gpa, len(view))
	storeBytes(view, value)
	e.mem.Dirtied(gpa, uint64(len(view)))
}
