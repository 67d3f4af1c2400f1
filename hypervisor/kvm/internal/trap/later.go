package trap

import (
	"bytes"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// later is what is done some time after: breakpoints that the guest or a device
// has written over are planted again.
type later struct {
	mu    sync.Mutex
	sites map[*site]replant
	arm   time.Time // when debug states are to be looked at; zero: not

	wake chan struct{}
	wg   sync.WaitGroup
}

// replant is when a breakpoint may be planted again.
type replant struct {
	at     time.Time
	writer *core.VCPU // nil: a device
}

// replantTime is how long what was written is left alone.
const replantTime = 10 * time.Millisecond

func (e *Engine) startLater() {
	e.later.sites = map[*site]replant{}
	e.later.wake = make(chan struct{}, 1)
	e.later.wg.Go(e.doLater)
}

func (e *Engine) stopLater() {
	close(e.later.wake)
	e.later.wg.Wait()
}

func (e *Engine) replant(s *site, writer *core.VCPU) {
	l := &e.later
	l.mu.Lock()
	l.sites[s] = replant{time.Now().Add(replantTime), writer}
	l.mu.Unlock()
	l.signal()
}

// disarmLater lets debug states be looked at again after d.
func (e *Engine) disarmLater(_ *core.VCPU, d time.Duration) {
	l := &e.later
	l.mu.Lock()
	l.arm = time.Now().Add(d + time.Millisecond)
	l.mu.Unlock()
	l.signal()
}

func (l *later) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// due returns what is to be done now, and when to look again.
func (l *later) due() (now []*site, arm bool, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := time.Now()
	soonest := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	for s, r := range l.sites {
		if r.at.After(t) {
			soonest(r.at)
			continue
		}
		now = append(now, s)
	}
	if !l.arm.IsZero() {
		if l.arm.After(t) {
			soonest(l.arm)
		} else {
			arm, l.arm = true, time.Time{}
		}
	}
	return now, arm, next
}

func (e *Engine) doLater() {
	l := &e.later
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		now, arm, next := l.due()
		if len(now) > 0 || arm {
			var told []*trap
			e.vm.Still(func() {
				told = e.plantAgain(now)
				if arm {
					for _, c := range e.vcpus {
						e.arm(c.core)
					}
				}
			})
			e.tellLost(told)
			continue
		}
		if next.IsZero() {
			next = time.Now().Add(time.Hour)
		}
		timer.Reset(time.Until(next))
		select {
		case _, ok := <-l.wake:
			if !ok {
				return
			}
		case <-timer.C:
		}
	}
}

// plantAgain plants the breakpoints of sites, and returns the traps of those that
// are lost. All vCPUs stand.
func (e *Engine) plantAgain(sites []*site) (lost []*trap) {
	l := &e.later
	l.mu.Lock()
	defer l.mu.Unlock()
	current := e.sites.Load()
	for _, s := range sites {
		r := l.sites[s]
		delete(l.sites, s)
		if current.byAddr[s.gpa] != s || s.lost {
			continue
		}
		if b, err := e.mem.View(s.gpa, 1); err == nil && s.planted.Load() && b[0] != int3 {
			s.planted.Store(false) // a device wrote there
		}
		if s.planted.Load() {
			continue
		}
		// A processor that has interrupts off may be about to compare what it wrote.
		if r.writer != nil && !e.vm.Closing() {
			if regs, err := r.writer.Registers(); err == nil && regs.RFLAGS&insn.FlagIF == 0 && regs.SS.DPL() == 0 {
				l.sites[s] = replant{time.Now().Add(replantTime), r.writer}
				continue
			}
		}
		if near, front := e.neighbours(s); front != s.aroundN || !bytes.Equal(near, s.around) {
			s.lost = true
			lost = append(lost, s.traps...)
			continue
		}
		e.plant(s)
	}
	return lost
}

// tellLost tells handlers that their breakpoint is gone. Nothing waits for what
// they answer.
func (e *Engine) tellLost(traps []*trap) {
	for _, t := range traps {
		ok, dropped := t.admit()
		if !ok {
			continue
		}
		t.handler(&hypervisor.TrapEvent{
			Trap: t.id, Kind: hypervisor.TrapBreakpoint, VCPU: -1, Sequence: e.sequence.Add(1),
			Access: hypervisor.AccessWrite, Addr: t.Addr, Known: hypervisor.KnownAddr, Dropped: dropped, Lost: true, Landed: true,
		})
		t.leave()
	}
}

// Discarded is called when the guest has given a range back to the host (balloon,
// free pages), after its pages are gone: breakpoints there are lost.
func (e *Engine) Discarded(r hypervisor.Range) {
	e.sites.Load().in(r.Start, r.Size, func(s *site) {
		if b, err := e.mem.View(s.gpa, 1); err == nil && b[0] != int3 {
			e.replant(s, nil)
		}
	})
	e.protectAgain(r)
}

// protectAgain protects watched pages that were discarded: their protection went
// with them.
func (e *Engine) protectAgain(r hypervisor.Range) {
	if e.faults.fd == nil {
		return
	}
	e.change.Lock()
	defer e.change.Unlock()
	if e.closed {
		return
	}
	e.faults.mu.Lock()
	defer e.faults.mu.Unlock()
	for _, a := range protected(e.areas) {
		start, end := max(a.Start, r.Start), min(a.End(), r.End())
		if start >= end {
			continue
		}
		addr, _ := e.mem.KVMAddr(start)
		if err := e.faults.fd.Protect(addr, uint64(end-start)); err != nil {
			e.log.Error("protect discarded pages", "err", err)
		}
	}
}

// Reset is called while the VM is stopped and before its memory is loaded anew:
// what breakpoints stood at is not there any more. Other traps stay.
func (e *Engine) Reset() {
	e.change.Lock()
	var lost []*trap
	e.vm.Still(func() {
		for _, s := range e.sites.Load().byAddr {
			e.takeOut(s)
			if !s.lost {
				s.lost = true
				lost = append(lost, s.traps...)
			}
		}
		for _, c := range e.vcpus {
			c.once, c.swallow, c.again = nil, 0, 0
			c.armed = kvmapi.GuestDebug{Control: ^uint32(0)} // whatever it is now
			e.arm(c.core)
		}
	})
	e.change.Unlock()
	e.later.wg.Go(func() { e.tellLost(lost) })
}
