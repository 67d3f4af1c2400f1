package trap

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
)

// answer is what the handlers of all traps on one access want.
type answer struct {
	verb  hypervisor.TrapVerb // continue, skip, deny or emulate
	value []byte
	regs  *hypervisor.Registers
	pause bool
	once  []*trap
	told  bool // at least one handler was asked
	ended bool // the VM ends: nothing is to be done any more
}

// merge adds a handler's answer: of those that keep the access from being done,
// the first counts.
func (a *answer) merge(t *trap, h hypervisor.TrapAnswer) {
	switch h.Verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny, hypervisor.TrapEmulate:
		if a.verb == hypervisor.TrapContinue {
			a.verb, a.value = h.Verb, h.Value
		}
	case hypervisor.TrapPause:
		a.pause = true
	case hypervisor.TrapStepOne:
		a.once = append(a.once, t)
	}
	if h.Registers != nil {
		a.regs = h.Registers
	}
}

// tell asks the handlers of ts, in their order, while v stands. ev has all but
// what differs by trap.
func (e *Engine) tell(v *core.VCPU, ts []*trap, ev *hypervisor.TrapEvent) answer {
	a := answer{verb: hypervisor.TrapContinue}
	type call struct {
		t       *trap
		dropped uint64
	}
	var few [4]call
	calls := few[:0]
	for _, t := range ts {
		if ok, dropped := t.admit(); ok {
			calls = append(calls, call{t, dropped})
		}
	}
	if len(calls) == 0 {
		return a
	}
	a.told = true
	a.ended = !v.Wait(func() {
		for i, c := range calls {
			own := ev
			if i < len(calls)-1 {
				copied := *ev
				own = &copied
			}
			own.Trap, own.Sequence, own.Dropped = c.t.id, e.sequence.Add(1), c.dropped
			if own.Kind == hypervisor.TrapPage {
				own.Kind = c.t.Kind // a write over a breakpoint is its trap's event
			}
			h := c.t.handler(own)
			a.merge(c.t, h)
			c.t.leave()
		}
	})
	return a
}

// event makes an event of v with its registers: good until the next one of v.
func (e *Engine) event(v *core.VCPU, kind hypervisor.TrapKind, access hypervisor.Access) *hypervisor.TrapEvent {
	ev := &e.vcpus[v.Index()].ev
	*ev = hypervisor.TrapEvent{Kind: kind, VCPU: v.Index(), Access: access}
	if err := v.ReadRegisters(&ev.Registers); err != nil {
		e.log.Warn("registers of a trapped vCPU cannot be read", "vcpu", v.Index(), "err", err)
	}
	return ev
}

// behind does what is left of an answer when the access is done or left out:
// registers, pause, step.
func (e *Engine) behind(v *core.VCPU, a answer) {
	if a.ended {
		return
	}
	if a.regs != nil {
		if err := v.SetRegisters(a.regs); err != nil {
			e.log.Error("registers that a trap's handler wants are refused", "vcpu", v.Index(), "err", err)
		}
	}
	if a.pause {
		e.pause()
	}
	if len(a.once) > 0 {
		c := e.vcpus[v.Index()]
		c.once = append(c.once, a.once...)
		e.arm(v)
	}
}

// le returns v's low n bytes.
func le(v uint64, n int) []byte {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	return append([]byte(nil), b[:n]...)
}

// number returns up to 8 bytes as a number.
func number(p []byte) uint64 {
	var b [8]byte
	copy(b[:], p)
	return binary.LittleEndian.Uint64(b[:])
}
