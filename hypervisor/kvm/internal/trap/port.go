package trap

import (
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
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
	ev.Port, ev.Size = port, len(data)
	actual := ev.Registers.RIP
	if rip, ok := e.lastIO(v, &ev.Registers, len(data), write); ok {
		ev.Registers.RIP = rip
		ev.Known |= hypervisor.KnownRIP
	}
	if write {
		ev.Value, ev.New = number(data), le(number(data), len(data))
		ev.Known |= hypervisor.KnownNew
	}
	a := e.tell(v, ts, ev)
	if a.ended {
		return true
	}
	if a.regs != nil && a.regs.RIP == ev.Registers.RIP && a.regs.RIP != actual {
		own := *a.regs // the handler has left it alone: the access is over
		own.RIP = actual
		a.regs = &own
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

// lastIO finds the instruction that accesses a port: KVM is at it, or behind it
// when it has emulated an OUT. false: it may be either.
func (e *Engine) lastIO(v *core.VCPU, r *hypervisor.Registers, size int, write bool) (rip hypervisor.VirtAddr, ok bool) {
	mode, pc := insn.ModeOf(r), insn.PC(r)
	var code [2 * insn.MaxLen]byte
	front := e.fetchBack(v, r, pc, code[:insn.MaxLen])
	n := e.fetch(v, r, pc, code[insn.MaxLen:])
	found := 0
	if in, err := insn.Decode(code[insn.MaxLen:insn.MaxLen+n], mode); err == nil && accessesPort(&in, size, write) {
		rip, found = r.RIP, 1
	}
	// Prefixes in front of one that fits make no other of it.
	for back := min(front, insn.MaxLen); write && back > 0; back-- {
		in, err := insn.Decode(code[insn.MaxLen-back:insn.MaxLen], mode)
		if err == nil && in.Len == back && accessesPort(&in, size, write) {
			return r.RIP - hypervisor.VirtAddr(back), found == 0
		}
	}
	return rip, found == 1
}

// accessesPort reports whether in is an IN, OUT, INS or OUTS of size bytes (SDM
// 2A and 2B, of the same names). Of those that repeat, KVM may hand out several
// at once.
func accessesPort(in *insn.Inst, size int, write bool) bool {
	if in.Encoding != insn.Legacy || in.Map != insn.MapOne {
		return false
	}
	width := min(in.OpSize, 4)
	if in.Opcode&1 == 0 {
		width = 1
	}
	switch in.Opcode &^ 1 {
	case 0xe4, 0xec, 0x6c:
		return !write && (width == size || in.Rep != 0)
	case 0xe6, 0xee, 0x6e:
		return write && (width == size || in.Rep != 0)
	}
	return false
}
