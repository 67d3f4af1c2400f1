package trap

import (
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	kvmslots "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/slots"
)

// InternalError is core.Hooks': an instruction that KVM could not emulate. It is
// on a page without a slot, or it writes to a page that is watched and is more
// than KVM knows (wide stores, CMPXCHG16B).
func (e *Engine) InternalError(v *core.VCPU) bool {
	e.late(v)
	if sub, _ := v.Run().InternalError(); sub != kvmapi.InternalErrorEmulation {
		return false
	}
	if e.faults.stepping.Load() == v {
		return false // the processor was to do it, and that is the way out
	}
	r, err := v.Registers()
	if err != nil {
		return false
	}
	s := e.at(v, &r)
	gpa, ok := e.translate(v, &r, insn.PC(&r))
	var code *area
	if ok {
		code = e.find(gpa.Frame())
	}
	executes := code != nil && code.mode == kvmslots.None
	uses := slices.DeleteFunc(e.uses(s), func(u use) bool {
		return u.area == nil || u.area.mode == kvmslots.RAM || u.area.mode == kvmslots.ReadOnly && !u.write && u.size != 0
	})
	if !executes && len(uses) == 0 {
		if _, err := e.mem.View(gpa, 1); !ok || err != nil {
			return false
		}
		// Something that is not understood, with traps about: the processor does
		// it, with all that is watched let be. Without traps it is not ours.
		if len(e.areas) == 0 {
			return false
		}
	}
	e.clearUndefined(v)
	told := []hypervisor.Frame{gpa.Frame()}
	var a answer
	a.verb = hypervisor.TrapContinue
	if executes {
		if a = e.tellExecute(s, gpa, code); a.ended {
			return true
		}
	}
	for _, u := range uses {
		if a.verb != hypervisor.TrapContinue {
			break
		}
		b := e.tellUse(s, u)
		if b.ended {
			return true
		}
		told = append(told, u.gpa.Frame())
		a.verb, a.value = b.verb, b.value
		a.pause = a.pause || b.pause
		a.once = append(a.once, b.once...)
		if b.regs != nil {
			a.regs = b.regs
		}
		if b.told {
			u := u
			s.change = &change{use: u, value: a.value}
		}
	}
	e.carryOut(s, &a, told)
	e.behind(v, a)
	return true
}

// change is what the instruction's write to a place is to become.
type change struct {
	use
	value []byte // of emulate
	old   []byte
}

func (e *Engine) tellExecute(s *stop, gpa hypervisor.PhysAddr, code *area) answer {
	n := min(max(s.in.Len, 1), int(hypervisor.PageSize-gpa.Offset()))
	ts := watchers(code.traps, hypervisor.AccessExecute, gpa, n)
	if len(ts) == 0 {
		return answer{verb: hypervisor.TrapContinue}
	}
	ev := &hypervisor.TrapEvent{
		Kind: hypervisor.TrapPage, VCPU: s.v.Index(), Access: hypervisor.AccessExecute,
		Addr: gpa, Virt: hypervisor.VirtAddr(insn.PC(&s.regs)), Size: s.in.Len,
		Known:     hypervisor.KnownAddr | hypervisor.KnownVirt | hypervisor.KnownRIP,
		Registers: s.regs, Mechanism: hypervisor.MechanismNoSlot,
	}
	a := e.tell(s.v, ts, ev)
	if a.verb == hypervisor.TrapEmulate || a.verb != hypervisor.TrapContinue && !s.known {
		a.verb, a.pause = hypervisor.TrapContinue, true
	}
	return a
}

// tellUse tells of data that s's instruction reads or writes, before it does.
func (e *Engine) tellUse(s *stop, u use) answer {
	access := hypervisor.AccessRead
	if u.write || u.size == 0 {
		access = hypervisor.AccessWrite
	}
	n := u.size
	if n == 0 {
		n = min(64, int(hypervisor.PageSize-u.gpa.Offset()))
	}
	ts := watchers(u.area.traps, access, u.gpa, n)
	if access == hypervisor.AccessWrite {
		ts = append(e.overwritten(u.gpa, n), ts...)
	}
	if len(ts) == 0 {
		return answer{verb: hypervisor.TrapContinue}
	}
	ev := &hypervisor.TrapEvent{
		Kind: hypervisor.TrapPage, VCPU: s.v.Index(), Access: access,
		Addr: u.gpa, Virt: hypervisor.VirtAddr(u.virt), Size: u.size,
		Known:     hypervisor.KnownAddr | hypervisor.KnownVirt | hypervisor.KnownRIP,
		Registers: s.regs, Mechanism: hypervisor.MechanismReadOnlySlot,
	}
	switch {
	case u.area.mode == kvmslots.None:
		ev.Mechanism = hypervisor.MechanismNoSlot
	case u.area.protect:
		ev.Mechanism = hypervisor.MechanismUserfault
	}
	if u.size > 0 {
		if b, err := e.mem.View(u.gpa, uint64(u.size)); err == nil {
			ev.Old = slices.Clone(b)
			e.unplant(ev.Old, u.gpa)
			ev.Known |= hypervisor.KnownOld
		}
		if access == hypervisor.AccessWrite {
			if value, ok := e.predict(s, u); ok {
				ev.New = value
				ev.Known |= hypervisor.KnownNew
			}
		}
	}
	a := e.tell(s.v, ts, ev)
	if access == hypervisor.AccessRead && (a.verb == hypervisor.TrapEmulate || a.verb == hypervisor.TrapSkip || a.verb == hypervisor.TrapDeny) {
		// The value goes straight into the instruction.
		a.verb, a.pause = hypervisor.TrapContinue, true
	}
	return a
}

// predict returns what s's instruction is going to store at u.
func (e *Engine) predict(s *stop, u use) ([]byte, bool) {
	if !s.known {
		return nil, false
	}
	after := s.regs
	st, ok := s.in.Exec(&after, func(addr uint64, size int) (uint64, bool) {
		gpa, ok := e.translate(s.v, &s.regs, addr)
		if !ok || addr%hypervisor.PageSize+uint64(size) > hypervisor.PageSize {
			return 0, false
		}
		b, err := e.mem.View(gpa, uint64(size))
		if err != nil {
			return 0, false
		}
		v := le(loadBytes(b), size)
		e.unplant(v, gpa)
		return number(v), true
	})
	if !ok || st.Addr != u.virt || st.Size != u.size {
		return nil, false
	}
	return le(st.Value, st.Size), true
}

// carryOut does what an answer says of an instruction that has not been done yet.
func (e *Engine) carryOut(s *stop, a *answer, told []hypervisor.Frame) {
	if a.regs != nil && a.regs.Valid.Has(hypervisor.GroupGeneral) && a.regs.RIP != s.regs.RIP {
		return // it goes on elsewhere; behind sets the registers
	}
	var around func(bool)
	switch a.verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny:
		if s.change == nil {
			s.regs.RIP += hypervisor.VirtAddr(s.in.Len)
			e.commit(s.v, &s.regs)
			return
		}
		around = e.putBack(s, nil)
	case hypervisor.TrapEmulate:
		around = e.putBack(s, a.value)
	}
	if e.perform(s, told, around) {
		e.stepped(s.v)
	}
}

// putBack returns what lets s's instruction happen, but for its write: what was
// there is put back, or value in its place, while no other vCPU runs. Where the
// size of the write is not known, the whole page is as it was.
func (e *Engine) putBack(s *stop, value []byte) func(bool) {
	c := s.change
	gpa, n := c.gpa, uint64(c.size)
	if n == 0 {
		gpa, n = c.gpa.Frame().Addr(), hypervisor.PageSize
		value = nil
	}
	view, err := e.mem.View(gpa, n)
	if err != nil {
		return func(bool) {}
	}
	return func(before bool) {
		if before {
			c.old = slices.Clone(view)
			return
		}
		put := c.old
		if value != nil {
			put = make([]byte, n)
			copy(put, value)
		}
		if n <= 8 {
			storeBytes(view, number(put))
		} else {
			copy(view, put)
		}
		e.mem.Dirtied(gpa, n)
	}
}
