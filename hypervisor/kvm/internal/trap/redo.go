package trap

import (
	"bytes"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/slots"
)

const readOnly = slots.ReadOnly

// written is the instruction of a write that KVM has emulated. KVM moves RIP
// before it hands out the write, so the instruction is looked for backwards: one
// that ends at RIP and writes there. There may be more than one that does
// (prefixes), or none that is understood.
type written struct {
	found     bool
	in        insn.Inst
	before    hypervisor.Registers // RIP and what the instruction has changed, undone as far as it can be
	addr      uint64               // linear
	addrKnown bool                 // all that were found write there
	ripKnown  bool                 // there is but one
	same      bool                 // all that were found are one, but for prefixes
}

// tell puts what is certain of the instruction into ev.
func (w written) tell(ev *hypervisor.TrapEvent) {
	if w.addrKnown {
		ev.Virt = hypervisor.VirtAddr(w.addr)
		ev.Known |= hypervisor.KnownVirt
	}
	if w.ripKnown {
		ev.Registers.RIP = w.before.RIP
		ev.Known |= hypervisor.KnownRIP
	}
}

// lastWrite finds the instruction that wrote data at gpa. r is the state behind
// it.
func (e *Engine) lastWrite(v *core.VCPU, r *hypervisor.Registers, gpa hypervisor.PhysAddr, data []byte) (w written) {
	pc := insn.PC(r)
	var code window
	front, n := e.fetchAround(v, r, pc, &code)
	for _, c := range e.vcpus[v.Index()].writes.at(pc, &code, front, n, insn.ModeOf(r)) {
		before, ok := undo(&c.in, r, data, !c.stays)
		if ok {
			e.tryWrite(&w, v, r, &c.in, &before, gpa, len(data))
		}
	}
	return w
}

// tryWrite makes in, which began with the registers before, what w is, when it can
// have written n bytes at gpa.
func (e *Engine) tryWrite(w *written, v *core.VCPU, r *hypervisor.Registers, in *insn.Inst, before *hypervisor.Registers, gpa hypervisor.PhysAddr, n int) {
	for _, ref := range in.Refs(before) {
		if !ref.Write || ref.Size != 0 && ref.Size < n {
			continue
		}
		// Wide stores are handed out in pieces, and one may begin a page earlier.
		at, ok := e.translate(v, r, ref.Addr)
		if !ok || gpa < at || int(gpa-at)+n > max(ref.Size, n) {
			continue
		}
		addr := ref.Addr + uint64(gpa-at)
		if w.found {
			w.ripKnown = false
			w.addrKnown = w.addrKnown && w.addr == addr
			w.same = w.same && w.in.Map == in.Map && w.in.Opcode == in.Opcode && w.in.ModRM == in.ModRM
		} else {
			w.addr, w.addrKnown, w.ripKnown, w.same = addr, true, true, true
		}
		// The longest has all prefixes.
		w.found, w.in, w.before = true, *in, *before
		return
	}
}

// fetchAround reads what is in front of a linear address and from it on, and
// returns how many bytes of each it could.
func (e *Engine) fetchAround(v *core.VCPU, r *hypervisor.Registers, pc uint64, code *window) (front, n int) {
	if off := pc % hypervisor.PageSize; off >= insn.MaxLen && off <= hypervisor.PageSize-insn.MaxLen {
		if e.fetch(v, r, pc-insn.MaxLen, code[:]) == len(code) {
			return insn.MaxLen, insn.MaxLen
		}
	}
	// What is in front may be on a page of its own, which need not be there.
	return e.fetchBack(v, r, pc, code[:insn.MaxLen]), e.fetch(v, r, pc, code[insn.MaxLen:])
}

// fetchBack reads the bytes in front of a linear address to the end of p, and
// returns how many it could.
func (e *Engine) fetchBack(v *core.VCPU, r *hypervisor.Registers, pc uint64, p []byte) int {
	if n := len(p); e.fetch(v, r, pc-uint64(n), p) == n {
		return n
	}
	n := int(pc % hypervisor.PageSize)
	if n >= len(p) {
		return 0
	}
	return e.fetch(v, r, pc-uint64(n), p[len(p)-n:])
}

// undo returns r as it was before in, which wrote data; what cannot be known (the
// flags, for instance) stays.
func undo(in *insn.Inst, r *hypervisor.Registers, data []byte, over bool) (before hypervisor.Registers, ok bool) {
	before = *r
	if over {
		before.RIP -= hypervisor.VirtAddr(in.Len)
	}
	if in.Encoding != insn.Legacy {
		return before, true
	}
	size := in.OpSize
	if in.Opcode&1 == 0 {
		size = 1
	}
	if in.Map == insn.Map0F {
		if in.Opcode&0xfe == 0xc0 { // XADD left in the register what was there
			old := number(data) - register(in, r, size)
			setRegister(in, &before, size, old)
		}
		return before, true
	}
	if in.Map != insn.MapOne {
		return before, true
	}
	op := in.Opcode
	switch {
	case op >= 0xa4 && op <= 0xa5, op >= 0xaa && op <= 0xab, op >= 0x6c && op <= 0x6d:
		step := uint64(size)
		if r.RFLAGS&insn.FlagDF != 0 {
			step = -step
		}
		before.RDI -= step
		if op <= 0xa5 && op >= 0xa4 {
			before.RSI -= step
		}
		if in.Rep != 0 {
			before.RCX++
		}
	case op >= 0x50 && op < 0x58, op == 0x68, op == 0x6a, op == 0x9c, op == 0xff && in.ModRM>>3&7 == 6:
		n := in.OpSize
		if in.Mode == insn.Mode64 && n == 4 {
			n = 8
		}
		before.RSP += uint64(n)
	case op&0xfe == 0x86: // XCHG
		setRegister(in, &before, size, number(data))
	case op == 0xe8, op == 0xff && in.ModRM>>3&7 == 2:
		return before, false // CALL has gone somewhere else
	}
	return before, true
}

func register(in *insn.Inst, r *hypervisor.Registers, size int) uint64 {
	if size == 1 && in.REX == 0 && in.Reg() >= 4 {
		return *insn.GPR(r, in.Reg()-4) >> 8 & 0xff
	}
	return *insn.GPR(r, in.Reg())
}

func setRegister(in *insn.Inst, r *hypervisor.Registers, size int, v uint64) {
	p := insn.GPR(r, in.Reg())
	switch {
	case size == 1 && in.REX == 0 && in.Reg() >= 4:
		p = insn.GPR(r, in.Reg()-4)
		*p = *p&^0xff00 | v&0xff<<8
	case size >= 8:
		*p = v
	default:
		mask := uint64(1)<<(8*size) - 1
		*p = *p&^mask | v&mask
	}
}

// maybeAtomic reports whether the bytes in front of RIP may be an instruction
// that changes memory atomically: one with LOCK, or XCHG.
func maybeAtomic(front []byte) bool {
	return bytes.IndexByte(front, 0xf0) >= 0 || bytes.IndexByte(front, 0x86) >= 0 || bytes.IndexByte(front, 0x87) >= 0
}

// finishWrite does a write that KVM has emulated. KVM reads, changes and writes
// on its own when it emulates an atomic instruction ("emulating exchange as
// write"): a change that another vCPU made in between would be lost. Such an
// instruction is done over, on memory as it is now. last is nil when it was not
// looked for.
func (e *Engine) finishWrite(v *core.VCPU, gpa hypervisor.PhysAddr, view, data []byte, last *written) {
	if e.atomic(v, gpa, view, data, last) {
		return
	}
	e.store(v, gpa, view, number(data))
}

func (e *Engine) atomic(v *core.VCPU, gpa hypervisor.PhysAddr, view, data []byte, last *written) bool {
	if len(e.vcpus) == 1 {
		return false
	}
	r, err := v.Registers()
	if err != nil {
		return false
	}
	var front [insn.MaxLen]byte
	pc := insn.PC(&r)
	n := e.fetchBack(v, &r, pc, front[:])
	if !maybeAtomic(front[len(front)-n:]) {
		return false
	}
	if last == nil {
		w := e.lastWrite(v, &r, gpa, data)
		last = &w
	}
	if !last.found || !last.addrKnown || !last.same {
		return false
	}
	page, err := e.mem.View(gpa.Frame().Addr(), hypervisor.PageSize)
	if err != nil {
		return false
	}
	before := last.before
	in := &last.in
	if in.Map == insn.Map0F && in.Opcode&0xfe == 0xb0 && r.RFLAGS&insn.FlagZF == 0 {
		// CMPXCHG that found something else: KVM writes back what it read.
		return true
	}
	if in.Map == insn.MapOne && (in.Opcode&^0x1f == 0 && in.Opcode&0x10 != 0 || in.Opcode >= 0x80 && in.Opcode <= 0x83 && in.ModRM>>3&6 == 2) {
		return false // ADC and SBB: the carry that they used is lost
	}
	for {
		after := before
		var old uint64
		st, ok := in.Exec(&after, func(addr uint64, size int) (uint64, bool) {
			if addr == last.addr && size == len(data) {
				old = loadBytes(view)
				return old, true
			}
			return 0, false
		})
		if !ok {
			return false
		}
		if st.Size > 0 && !st.Lock {
			return false // a prefix of a neighbour's; nothing was atomic
		}
		if st.Size > 0 {
			if st.Addr != last.addr || st.Size != len(data) {
				return false
			}
			swapped, aligned := swapBytes(page, int(gpa.Offset()), st.Size, old, st.Value)
			if !aligned {
				return false
			}
			if !swapped {
				continue
			}
		}
		e.breakpointsWritten(v, gpa, len(data))
		e.mem.Dirtied(gpa, uint64(len(data)))
		if st.Value != number(data) || !sameResult(&after, &r) {
			e.repeats.Add(1)
			after.RIP = r.RIP
			err := v.Complete()
			if err == nil {
				after.Valid = hypervisor.GroupGeneral
				err = v.SetGeneral(&after)
			}
			if err != nil {
				e.log.Error("registers of an atomic write that was done over are refused", "err", err)
			}
		}
		return true
	}
}

// sameResult compares what an instruction can have changed.
func sameResult(a, b *hypervisor.Registers) bool {
	const flags = insn.FlagCF | insn.FlagPF | insn.FlagAF | insn.FlagZF | insn.FlagSF | insn.FlagOF
	if (a.RFLAGS^b.RFLAGS)&flags != 0 {
		return false
	}
	for i := range 16 {
		if *insn.GPR(a, i) != *insn.GPR(b, i) {
			return false
		}
	}
	return true
}

// virtOf returns the gva by which the instruction that r is at uses n bytes at
// gpa.
func (e *Engine) virtOf(v *core.VCPU, r *hypervisor.Registers, gpa hypervisor.PhysAddr, n int, write bool) (hypervisor.VirtAddr, bool) {
	var code [insn.MaxLen]byte
	in, err := insn.Decode(code[:e.fetch(v, r, insn.PC(r), code[:])], insn.ModeOf(r))
	if err != nil {
		return 0, false
	}
	for _, ref := range in.Refs(r) {
		if write && !ref.Write {
			continue
		}
		at, ok := e.translate(v, r, ref.Addr)
		if ok && at <= gpa && int(gpa-at)+n <= max(ref.Size, n) {
			return hypervisor.VirtAddr(ref.Addr + uint64(gpa-at)), true
		}
	}
	return 0, false
}
