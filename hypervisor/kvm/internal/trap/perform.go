package trap

import (
	"cmp"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
	kvmslots "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/slots"
)

// stop is one vCPU at one instruction that it may not simply run.
type stop struct {
	v    *core.VCPU
	regs hypervisor.Registers
	code [insn.MaxLen]byte
	n    int       // of code
	in   insn.Inst // valid when known
	// known says that the instruction was understood.
	known bool
	// opened says that during its step all pages that it uses are memory.
	opened bool
	out    []*site // breakpoints that are taken out during its step
	change *change // what a trap's answer makes of its write
}

// at looks at the instruction that v is at.
func (e *Engine) at(v *core.VCPU, r *hypervisor.Registers) *stop {
	s := &stop{}
	e.look(s, v, r)
	return s
}

// look is at into s, which is all zero.
func (e *Engine) look(s *stop, v *core.VCPU, r *hypervisor.Registers) {
	s.v, s.regs = v, *r
	s.n = e.fetch(v, r, insn.PC(r), s.code[:])
	e.decode(s)
}

// lookAt is look where it is known that the instruction is at gpa.
func (e *Engine) lookAt(s *stop, v *core.VCPU, r *hypervisor.Registers, gpa hypervisor.PhysAddr) {
	if gpa.Offset() > hypervisor.PageSize-insn.MaxLen {
		e.look(s, v, r)
		return
	}
	s.v, s.regs = v, *r
	if b, err := e.mem.View(gpa, insn.MaxLen); err == nil {
		s.n = copy(s.code[:], b)
		e.unplant(s.code[:], gpa)
	}
	e.decode(s)
}

func (e *Engine) decode(s *stop) {
	in, err := insn.Decode(s.code[:s.n], insn.ModeOf(&s.regs))
	s.in, s.known = in, err == nil
}

// take returns a stop to be filled in; who is done with it makes it spare again.
func (c *vcpu) take() *stop {
	s := c.spare
	if c.spare = nil; s == nil {
		return &stop{}
	}
	*s = stop{out: s.out[:0]}
	return s
}

// use is a part of guest memory that an instruction uses, in one page.
type use struct {
	gpa   hypervisor.PhysAddr
	virt  uint64
	size  int // 0: not known
	write bool
	area  *area // nil: no trap is near
}

// uses returns what s's instruction uses besides its own bytes, by page.
func (e *Engine) uses(s *stop) []use {
	if !s.known {
		return nil
	}
	var out []use
	for _, ref := range s.in.Refs(&s.regs) {
		for at, left := ref.Addr, max(ref.Size, 1); left > 0; {
			n := min(left, int(hypervisor.PageSize-at%hypervisor.PageSize))
			gpa, ok := e.translate(s.v, &s.regs, at)
			if !ok {
				break
			}
			u := use{gpa: gpa, virt: at, size: n, write: ref.Write, area: e.find(gpa.Frame())}
			if ref.Size == 0 {
				u.size = 0
			}
			out = append(out, u)
			at, left = at+uint64(n), left-n
		}
	}
	return out
}

// perform does s's instruction as if there were no traps on the pages in told
// (their traps have been told). The engine does it itself where it can; else the
// processor does, while all other vCPUs stand. around, when not nil, is called
// before and after the processor does. false: the VM ends.
func (e *Engine) perform(s *stop, told []hypervisor.Frame, around func(before bool)) bool {
	if around == nil && e.exec(s, told) {
		return true
	}
	ok := false
	e.vm.Exclusive(s.v, func() { ok = e.native(s, told, around) })
	return ok
}

// exec does s's instruction in the engine, where it is one that is known for
// certain and all that it touches is mapped, permitted and not watched by a trap
// that has not been told.
func (e *Engine) exec(s *stop, told []hypervisor.Frame) bool {
	if !s.known {
		return false
	}
	place := func(addr uint64, size int, write bool) ([]byte, hypervisor.PhysAddr, bool) {
		if addr%hypervisor.PageSize+uint64(size) > hypervisor.PageSize {
			return nil, 0, false
		}
		w, ok := e.walk(&s.regs, addr)
		if !ok || !w.readable || write && !w.writable {
			return nil, 0, false
		}
		if a := e.find(w.addr.Frame()); a != nil && !slices.Contains(told, w.addr.Frame()) {
			access := hypervisor.AccessRead
			if write {
				access = hypervisor.AccessWrite
			}
			if len(watchers(a.traps, access, w.addr, size)) > 0 || write && len(e.overwritten(w.addr, size)) > 0 {
				return nil, 0, false
			}
		}
		b, err := e.mem.View(w.addr, uint64(size))
		return b, w.addr, err == nil
	}
	after := s.regs
	st, ok := s.in.Exec(&after, func(addr uint64, size int) (uint64, bool) {
		b, gpa, ok := place(addr, size, false)
		if !ok {
			return 0, false
		}
		return e.load(b, gpa), true
	})
	if !ok || st.Lock {
		return false
	}
	if st.Size > 0 {
		b, gpa, ok := place(st.Addr, st.Size, true)
		if !ok {
			return false
		}
		e.store(s.v, gpa, b, st.Value)
	}
	return e.commit(s.v, &after)
}

// load reads up to 8 bytes of guest memory for the guest, which must not see what
// is planted there.
func (e *Engine) load(view []byte, gpa hypervisor.PhysAddr) uint64 {
	v := loadBytes(view)
	if e.breakpoints {
		p := le(v, len(view))
		e.unplant(p, gpa)
		v = number(p)
	}
	return v
}

// commit gives v the general registers of r.
func (e *Engine) commit(v *core.VCPU, r *hypervisor.Registers) bool {
	err := v.Complete()
	if err == nil {
		err = v.SetGeneral(r)
	}
	if err != nil {
		e.log.Error("a vCPU does not take its registers", "vcpu", v.Index(), "err", err)
		return false
	}
	return true
}

// native lets the processor do s's instruction. v is alone. Pages that the
// instruction is seen to use, and its own, are memory like any other meanwhile.
func (e *Engine) native(s *stop, told []hypervisor.Frame, around func(before bool)) bool {
	if err := s.v.Complete(); err != nil {
		return false
	}
	slotPages, protected := e.toOpen(s, told)
	if len(slotPages) > 0 {
		if err := e.applySlots(e.areas, slotPages); err != nil {
			e.log.Error("a page cannot be made memory for one instruction", "err", err)
			return false
		}
	}
	for _, f := range protected {
		e.openPage(f)
	}
	e.withoutBreakpoints(s)
	if around != nil {
		around(true)
	}
	end := e.step(s)
	for _, st := range s.out {
		e.plant(st)
	}
	s.out = s.out[:0]
	if around != nil {
		around(false)
	}
	for _, f := range protected {
		e.closePage(f)
	}
	if e.faults.fd != nil {
		e.closeOpened(s.v)
	}
	if len(slotPages) > 0 || s.opened {
		s.opened = false
		if err := e.applySlots(e.areas, nil); err != nil {
			e.log.Error("memory slots after a step", "err", err)
			return false
		}
	}
	return end != stepEnded
}

// toOpen returns the pages of told that need it to be memory for one instruction,
// and the one that the instruction is on: those without a slot or with a
// read-only one, and those that userfaultfd protects. Both are sorted.
func (e *Engine) toOpen(s *stop, told []hypervisor.Frame) (slotPages, protected []hypervisor.Frame) {
	add := func(f hypervisor.Frame, write bool) {
		a := e.find(f)
		switch {
		case a == nil:
		case a.mode == kvmslots.None, a.mode == kvmslots.ReadOnly && write:
			slotPages = append(slotPages, f)
		case a.protect && write:
			protected = append(protected, f)
		}
	}
	for _, f := range told {
		add(f, true)
	}
	pc := insn.PC(&s.regs)
	for _, at := range []uint64{pc, pc + uint64(max(s.in.Len, 1)) - 1} {
		if gpa, ok := e.translate(s.v, &s.regs, at); ok {
			add(gpa.Frame(), false)
		}
	}
	slices.SortFunc(slotPages, cmp.Compare[hypervisor.Frame])
	slices.SortFunc(protected, cmp.Compare[hypervisor.Frame])
	return slices.Compact(slotPages), slices.Compact(protected)
}
