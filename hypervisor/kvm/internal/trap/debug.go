package trap

import (
	"slices"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// Bits of DR6 and DR7 (SDM 3B, 17.2).
const (
	dr6BS     = 1 << 14
	dr6Fixed  = 0xffff_0ff0 // bits that read as one
	dr7Fixed  = 1 << 10
	dr7Global = 2 // of register 0; two bits a register
)

// strayTime is how long after the removal of a step its trap flag may come back
// from a frame that an interrupt has put onto the guest's stack.
const strayTime = 2 * time.Second

// rebuildDebug makes what the processor stops on that of list.
func (e *Engine) rebuildDebug(list []*trap) error {
	type plan struct{ hardware, steps []*trap }
	plans := make([]plan, len(e.vcpus))
	for _, t := range list {
		if t.Kind != hypervisor.TrapHardware && t.Kind != hypervisor.TrapStep {
			continue
		}
		for i := range plans {
			if t.VCPU != hypervisor.AllVCPUs && t.VCPU != i {
				continue
			}
			if t.Kind == hypervisor.TrapStep {
				plans[i].steps = append(plans[i].steps, t)
				continue
			}
			if len(plans[i].hardware) == 4 {
				return hypervisor.ErrNoResources
			}
			plans[i].hardware = append(plans[i].hardware, t)
		}
	}
	e.breakpoints = slices.ContainsFunc(list, func(t *trap) bool { return t.Kind == hypervisor.TrapBreakpoint })
	for i, c := range e.vcpus {
		if len(c.steps) > 0 && len(plans[i].steps) == 0 {
			c.stray = time.Now().Add(strayTime)
			e.disarmLater(c.core, strayTime)
		}
		c.hardware, c.steps = plans[i].hardware, plans[i].steps
		c.once = slices.DeleteFunc(c.once, func(t *trap) bool { return e.traps[t.id] == nil })
		e.arm(c.core)
	}
	return nil
}

// control is what KVM is to stop c on.
func (e *Engine) control(c *vcpu) (d kvmapi.GuestDebug) {
	if e.breakpoints {
		d.Control |= kvmapi.GuestDebugEnable | kvmapi.GuestDebugUseSWBP
	}
	if len(c.steps) > 0 || len(c.once) > 0 {
		d.Control |= kvmapi.GuestDebugEnable | kvmapi.GuestDebugSingleStep
		if len(c.steps) == 0 && e.can.BlockIRQ {
			d.Control |= kvmapi.GuestDebugBlockIRQ
		}
	}
	if len(c.hardware) > 0 || !c.stray.IsZero() && time.Now().Before(c.stray) {
		d.Control |= kvmapi.GuestDebugEnable | kvmapi.GuestDebugUseHWBP
		e.debugRegisters(c, &d)
	}
	return d
}

// debugRegisters fills in our breakpoints, and the guest's own behind them as far
// as there is room.
func (e *Engine) debugRegisters(c *vcpu, d *kvmapi.GuestDebug) {
	dr7 := uint64(dr7Fixed)
	n := 0
	for _, t := range c.hardware {
		d.DebugReg[n] = uint64(t.Virt)
		kind := uint64(0)
		switch {
		case t.Access.Has(hypervisor.AccessRead):
			kind = 3
		case t.Access.Has(hypervisor.AccessWrite):
			kind = 1
		}
		length := map[uint64]uint64{1: 0, 2: 1, 4: 3, 8: 2}[t.Size]
		dr7 |= dr7Global<<(2*n) | (kind|length<<2)<<(16+4*n)
		n++
	}
	c.theirs = [4]int{-1, -1, -1, -1}
	own, err := c.core.KVM().DebugRegs()
	if err != nil {
		own = kvmapi.DebugRegs{}
	}
	for i := 0; i < 4 && n < 4; i++ {
		if own.DR7>>(2*i)&3 == 0 {
			continue
		}
		d.DebugReg[n] = own.DB[i]
		dr7 |= dr7Global<<(2*n) | own.DR7>>(16+4*i)&15<<(16+4*n)
		c.theirs[n] = i
		n++
	}
	d.DebugReg[7] = dr7
}

// arm tells KVM what v is to stop on, when that has changed, and again when v
// steps: KVM arms one step at a time.
func (e *Engine) arm(v *core.VCPU) {
	c := e.vcpus[v.Index()]
	d := e.control(c)
	if d == c.armed && d.Control&kvmapi.GuestDebugSingleStep == 0 {
		return
	}
	err := v.Flush()
	if err == nil {
		err = v.KVM().SetGuestDebug(&d)
	}
	if err != nil {
		e.log.Error("debug state of a vCPU", "vcpu", v.Index(), "err", err)
		return
	}
	c.armed = d
}

// Debug is core.Hooks': INT3, a debug register, a step.
func (e *Engine) Debug(v *core.VCPU) bool {
	e.late(v)
	exception, _, dr6, _ := v.Run().Debug()
	switch exception {
	case kvmapi.ExceptionBP:
		e.breakpointHit(v)
	case kvmapi.ExceptionDB:
		e.debugHit(v, dr6)
	default:
		return false
	}
	return true
}

func (e *Engine) debugHit(v *core.VCPU, dr6 uint64) {
	c := e.vcpus[v.Index()]
	guest := dr6 &^ (0xf | dr6BS) & ^uint64(dr6Fixed) & 0xffff
	var owned uint64
	if dr6&0xf != 0 {
		owned = e.hardwareHit(v, dr6)
	}
	if dr6&dr6BS != 0 {
		if !e.stepHit(v) {
			guest |= dr6BS
		}
	}
	if guest|owned != 0 {
		e.injectDebug(v, guest|owned)
		return
	}
	if len(c.steps) > 0 || len(c.once) > 0 || len(c.hardware) > 0 {
		e.arm(v) // the guest may have changed its own registers too
	}
}

// hardwareHit tells of debug registers, and returns the bits of DR6 that are the
// guest's own to know.
func (e *Engine) hardwareHit(v *core.VCPU, dr6 uint64) (theirs uint64) {
	c := e.vcpus[v.Index()]
	mine := slices.Clone(c.hardware)
	for n := range 4 {
		switch {
		case dr6>>n&1 == 0:
		case n < len(mine):
			e.tellHardware(v, mine[n])
		case c.theirs[n] >= 0:
			theirs |= 1 << c.theirs[n]
		}
	}
	return theirs
}

func (e *Engine) tellHardware(v *core.VCPU, t *trap) {
	access := hypervisor.AccessWrite
	switch {
	case t.Access.Has(hypervisor.AccessExecute):
		access = hypervisor.AccessExecute
	case t.Access.Has(hypervisor.AccessRead):
		access = hypervisor.AccessRead // or a write: the processor does not say
	}
	ev := e.event(v, hypervisor.TrapHardware, access)
	ev.Virt, ev.Known = t.Virt, hypervisor.KnownVirt
	if gpa, ok := e.translate(v, &ev.Registers, uint64(t.Virt)); ok {
		ev.Addr = gpa
		ev.Known |= hypervisor.KnownAddr
		if access != hypervisor.AccessExecute {
			if b, err := e.mem.View(gpa, t.Size); err == nil {
				ev.Size, ev.New = int(t.Size), le(loadBytes(b), int(t.Size))
				ev.Known |= hypervisor.KnownNew
			}
		}
	}
	if access == hypervisor.AccessExecute {
		ev.Known |= hypervisor.KnownRIP
	} else {
		ev.Landed = true // and Registers are behind it
	}
	r := ev.Registers
	a := e.tell(v, []*trap{t}, ev)
	if a.ended {
		return
	}
	if access != hypervisor.AccessExecute {
		if a.verb != hypervisor.TrapContinue {
			a.pause = true // it is done, and what was there is not known
		}
		e.behind(v, a)
		return
	}
	e.resumeAt(v, &r, &a)
	e.behind(v, a)
}

// resumeAt lets the instruction that r is at run after an event that came before
// it, by its debug register: RF keeps that from stopping it again.
func (e *Engine) resumeAt(v *core.VCPU, r *hypervisor.Registers, a *answer) {
	if a.regs != nil && a.regs.RIP != r.RIP {
		return
	}
	switch a.verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny:
		if s := e.at(v, r); s.known {
			r.RIP += hypervisor.VirtAddr(s.in.Len)
			e.commit(v, r)
			return
		}
		a.pause = true
	case hypervisor.TrapEmulate:
		a.pause = true
	}
	if a.regs != nil {
		e.behind(v, answer{regs: a.regs})
		*r = *a.regs
		a.regs = nil
	}
	r.RFLAGS |= insn.FlagRF
	e.commit(v, r)
}

// stepHit tells of a step, and reports whether it is one of ours.
func (e *Engine) stepHit(v *core.VCPU) bool {
	c := e.vcpus[v.Index()]
	if len(c.steps) == 0 && len(c.once) == 0 {
		if time.Now().Before(c.stray) {
			if r, err := v.Registers(); err == nil && r.RFLAGS&insn.FlagTF != 0 {
				r.RFLAGS &^= insn.FlagTF
				e.commit(v, &r)
			}
			return true
		}
		return false
	}
	ev := e.event(v, hypervisor.TrapStep, hypervisor.AccessExecute)
	if c.swallow != 0 && ev.Registers.RIP == c.swallow {
		c.swallow = 0 // the end of the instruction that the step was asked at
		return true
	}
	c.swallow = 0
	ev.Virt = hypervisor.VirtAddr(insn.PC(&ev.Registers))
	ev.Known = hypervisor.KnownVirt | hypervisor.KnownRIP
	if gpa, ok := e.translate(v, &ev.Registers, uint64(ev.Virt)); ok {
		ev.Addr = gpa
		ev.Known |= hypervisor.KnownAddr
	}
	ts := append(c.once, c.steps...) //nolint:gocritic // once is emptied here
	c.once = nil
	a := e.tell(v, ts, ev)
	if a.ended {
		return true
	}
	if a.verb != hypervisor.TrapContinue {
		a.pause = true // the instruction is done, and the next one is not asked for
	}
	e.behind(v, a)
	e.arm(v)
	return true
}

// injectDebug gives a #DB to the guest, whose DR6 says why.
func (e *Engine) injectDebug(v *core.VCPU, dr6 uint64) {
	regs, err := v.KVM().DebugRegs()
	if err == nil {
		regs.DR6 |= dr6
		err = v.KVM().SetDebugRegs(&regs)
	}
	if err == nil {
		err = e.inject(v, kvmapi.GuestDebugInjectDB)
	}
	if err != nil {
		e.log.Error("hand a #DB to the guest", "vcpu", v.Index(), "err", err)
	}
}

// inject queues an exception for the guest; what stops v stays as it is.
func (e *Engine) inject(v *core.VCPU, what uint32) error {
	if err := v.Flush(); err != nil {
		return err
	}
	c := e.vcpus[v.Index()]
	d := e.control(c)
	c.armed = d
	d.Control |= what
	return v.KVM().SetGuestDebug(&d)
}
