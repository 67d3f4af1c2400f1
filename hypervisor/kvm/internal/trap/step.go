package trap

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// stepLimit is how long one instruction may take while all other vCPUs stand. One
// that faults runs the guest's handler instead, which may wait for them.
const stepLimit = 20 * time.Millisecond

// repeatLimit is how many iterations of a string instruction are done in one go.
const repeatLimit = 256

// stepEnd is how a step ended.
type stepEnd int

const (
	stepDone  stepEnd = iota
	stepLeft          // the instruction was not done: an exception's handler runs, or it waits
	stepEnded         // the VM ends
)

// leaks are trap flags that steps which were left have put into frames on the
// guest's stacks: each comes back with its instruction, on any vCPU.
type leaks struct {
	sync.Mutex
	list []leak
}

type leak struct{ rip, rsp uint64 }

// maxLeaks is how many are remembered, the latest.
const maxLeaks = 64

func (l *leaks) add(r *hypervisor.Registers) {
	l.Lock()
	defer l.Unlock()
	l.list = append(l.list[max(0, len(l.list)+1-maxLeaks):], leak{uint64(r.RIP), r.RSP})
}

// take clears a trap flag that came back, and reports whether there was one.
func (l *leaks) take(r *hypervisor.Registers) bool {
	if r.RFLAGS&insn.FlagTF == 0 {
		return false
	}
	l.Lock()
	defer l.Unlock()
	for i, k := range l.list {
		if k.rip == uint64(r.RIP) && k.rsp == r.RSP {
			l.list = slices.Delete(l.list, i, i+1)
			r.RFLAGS &^= insn.FlagTF
			return true
		}
	}
	return false
}

// limit ends a step that takes too long.
type limit struct {
	timer   *time.Timer
	expired atomic.Bool
}

func (c *vcpu) startLimit() *atomic.Bool {
	if c.limit == nil {
		l := &limit{}
		l.timer = time.AfterFunc(stepLimit, func() {
			l.expired.Store(true)
			c.core.Kick()
		})
		c.limit = l
		return &l.expired
	}
	c.limit.timer.Reset(stepLimit)
	return &c.limit.expired
}

func (c *vcpu) stopLimit() {
	if !c.limit.timer.Stop() {
		c.limit = nil // it has expired, or is about to: not the next step's
	}
}

// step lets the processor do one instruction. v is alone, has no exit pending,
// and all that the instruction needs is in place.
func (e *Engine) step(s *stop) stepEnd {
	v, c := s.v, e.vcpus[s.v.Index()]
	if err := v.Flush(); err != nil {
		e.log.Error("registers before a step", "err", err)
		return stepEnded
	}
	e.faults.stepping.Store(v)
	defer e.faults.stepping.Store(nil)
	expired := c.startLimit()
	defer c.stopLimit()

	d := e.control(c)
	d.Control |= kvmapi.GuestDebugEnable | kvmapi.GuestDebugSingleStep
	if e.can.BlockIRQ {
		d.Control |= kvmapi.GuestDebugBlockIRQ
	}
	end, hits := stepDone, uint64(0)
	for range repeatLimit {
		if err := v.KVM().SetGuestDebug(&d); err != nil {
			e.log.Error("single step", "err", err)
			return stepEnded
		}
		var dr6 uint64
		end, dr6 = e.enterStep(s, expired)
		hits |= dr6
		if end != stepDone || !s.known || s.in.Rep == 0 {
			break
		}
		if rip, err := v.RIP(); err != nil || rip != s.regs.RIP {
			break
		}
	}
	c.armed = d
	e.arm(v)
	if end == stepEnded {
		return end
	}
	e.afterStep(s, end)
	if hits&0xf != 0 {
		if theirs := e.hardwareHit(v, hits); theirs != 0 {
			e.injectDebug(v, theirs)
		}
	}
	return end
}

// enterStep runs the guest until the instruction is done.
func (e *Engine) enterStep(s *stop, expired *atomic.Bool) (stepEnd, uint64) {
	v := s.v
	for early := 0; ; {
		err := v.Enter()
		if e.vm.Closing() {
			return stepEnded, 0
		}
		switch {
		case errors.Is(err, unix.EINTR):
			v.Run().SetImmediateExit(false)
			e.dropFault(v)
			if expired.Load() {
				return stepLeft, 0
			}
			continue
		case errors.Is(err, unix.EAGAIN):
			continue
		case err != nil:
			e.log.Error("single step", "vcpu", v.Index(), "err", err)
			return stepEnded, 0
		}
		switch v.Run().ExitReason() {
		case kvmapi.ExitDebug:
			exception, _, dr6, _ := v.Run().Debug()
			if exception == kvmapi.ExceptionBP {
				// The handler of an exception begins with a breakpoint, or it is
				// the guest's own: it is hit again when the others may run.
				return stepLeft, 0
			}
			if early < maxEarly && dr6&0xf == 0 && e.inFront(s) {
				early++
				continue
			}
			return stepDone, dr6
		case kvmapi.ExitInternalError:
			if !e.openMore(s) {
				_ = v.Dispatch() // ends the VM, and says why
				return stepEnded, 0
			}
		case kvmapi.ExitMMIO:
			_, _, write := v.Run().MMIO()
			if v.Dispatch() != nil {
				return stepEnded, 0
			}
			if !write {
				continue
			}
			// KVM has moved RIP already, and takes TF away.
			if v.Complete() != nil {
				return stepEnded, 0
			}
			return stepDone, 0
		case kvmapi.ExitIO, kvmapi.ExitRDMSR, kvmapi.ExitWRMSR, kvmapi.ExitIntr, kvmapi.ExitIRQWindowOpen:
			if v.Dispatch() != nil {
				return stepEnded, 0
			}
		default:
			_ = v.Dispatch()
			return stepEnded, 0
		}
	}
}

// maxEarly is how often a step is told in front of its instruction: once for each
// page that had to be mapped for it.
const maxEarly = 8

// inFront reports whether a step was told and its instruction was not done: Bochs'
// VMX keeps the step's exception for the next entry when KVM has to map a page in
// between. An instruction that leaves RIP where it is by itself is not that, but
// for a jump to itself, which may as well be done again.
func (e *Engine) inFront(s *stop) bool {
	rip, err := s.v.RIP()
	return err == nil && rip == s.regs.RIP && (!s.known || s.in.Rep == 0)
}

// openMore makes all pages that the instruction uses memory, after KVM could not
// emulate it. false: they are already.
func (e *Engine) openMore(s *stop) bool {
	if s.opened {
		return false
	}
	s.opened = true
	e.clearUndefined(s.v)
	var open []hypervisor.Frame
	for _, u := range e.uses(s) {
		if u.area != nil {
			open = append(open, u.gpa.Frame())
		}
	}
	slotPages, _ := e.toOpen(s, open)
	return len(slotPages) > 0 && e.applySlots(e.areas, slotPages) == nil
}

// afterStep puts right what single-stepping changes in the guest: the trap flag
// that instructions store, and a guest that steps itself.
func (e *Engine) afterStep(s *stop, end stepEnd) {
	v := s.v
	r, err := v.Registers()
	if err != nil {
		return
	}
	own := s.regs.RFLAGS&insn.FlagTF != 0
	if end == stepLeft {
		if r.RIP == s.regs.RIP {
			e.vcpus[v.Index()].again = insn.PC(&r)
		} else if !own {
			e.leaks.add(&s.regs)
		}
		return
	}
	if own {
		// KVM has taken the guest's own trap flag for its own.
		r.RFLAGS |= insn.FlagTF
		e.commit(v, &r)
		e.injectDebug(v, dr6BS)
		return
	}
	if !s.known || s.in.Mode != insn.Mode64 {
		return
	}
	switch {
	case s.in.Map == insn.MapOne && s.in.Opcode == 0x9c: // PUSHF
		e.clearStackTF(s, r.RSP)
	case s.in.Map == insn.MapOne && (s.in.Opcode == 0xcc || s.in.Opcode == 0xcd || s.in.Opcode == 0xf1): // INT
		e.clearStackTF(s, r.RSP+16)
	case s.in.Map == insn.Map0F && s.in.Opcode == 0x05: // SYSCALL
		if r.R11&insn.FlagTF != 0 {
			r.R11 &^= insn.FlagTF
			e.commit(v, &r)
		}
	}
}

// clearStackTF clears the trap flag in flags that an instruction has pushed.
func (e *Engine) clearStackTF(s *stop, at uint64) {
	gpa, ok := e.translate(s.v, &s.regs, at+1)
	if !ok {
		return
	}
	if b, err := e.mem.View(gpa, 1); err == nil {
		b[0] &^= insn.FlagTF >> 8
		e.mem.Dirtied(gpa, 1)
	}
}

// clearUndefined takes back the #UD that KVM queues when it cannot emulate an
// instruction (without KVM_CAP_EXIT_ON_EMULATION_FAILURE).
func (e *Engine) clearUndefined(v *core.VCPU) {
	const undefined = 6
	ev, err := v.KVM().VCPUEvents()
	if err != nil || ev.ExceptionNr != undefined || ev.ExceptionInjected == 0 && ev.ExceptionPending == 0 {
		return
	}
	ev.ExceptionInjected, ev.ExceptionPending = 0, 0
	if err := v.KVM().SetVCPUEvents(&ev); err != nil {
		e.log.Error("take back #UD", "err", err)
	}
}
