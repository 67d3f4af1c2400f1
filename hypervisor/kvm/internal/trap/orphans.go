package trap

import (
	"slices"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
)

// claim looks whether v's instruction is one that a thread of the kernel waits
// for.
func (e *Engine) claim(v *core.VCPU) (hypervisor.Frame, bool) {
	f := &e.faults
	f.mu.Lock()
	orphans := make([]hypervisor.Frame, 0, len(f.orphans))
	for frame := range f.orphans {
		orphans = append(orphans, frame)
	}
	f.mu.Unlock()
	if len(orphans) == 0 {
		return 0, false
	}
	r, err := v.Registers()
	if err != nil {
		return 0, false
	}
	s := e.at(v, &r)
	for _, frame := range e.writes(s) {
		if slices.Contains(orphans, frame) {
			f.mu.Lock()
			_, still := f.orphans[frame]
			delete(f.orphans, frame)
			delete(f.tries, frame)
			f.count()
			f.mu.Unlock()
			return frame, still
		}
	}
	return 0, false
}

// writes returns the pages that s's instruction may write: its operands, and the
// page tables that lead to them, where the processor notes accesses.
func (e *Engine) writes(s *stop) (out []hypervisor.Frame) {
	addrs := []uint64{insn.PC(&s.regs)}
	for _, u := range e.uses(s) {
		if u.write || u.size == 0 {
			out = append(out, u.gpa.Frame())
		}
		addrs = append(addrs, u.virt)
	}
	for _, a := range addrs {
		w, _ := e.walk(&s.regs, a)
		out = append(out, w.tables[:w.depth]...)
	}
	return out
}

// letOrphansGo lets the kernel's threads pass for which no vCPU was found: it has
// taken an interrupt, and comes back. All vCPUs stand. It returns the pages that
// must stay open for a while: what writes to them is no instruction's operand.
func (e *Engine) letOrphansGo() (open []hypervisor.Frame) {
	f := &e.faults
	f.mu.Lock()
	e.drain()
	var frames []hypervisor.Frame
	for frame := range f.orphans {
		frames = append(frames, frame)
		f.tries[frame]++
	}
	clear(f.orphans)
	f.count()
	for _, frame := range frames {
		e.unprotect(frame)
	}
	f.mu.Unlock()
	if len(frames) == 0 {
		return nil
	}
	// A thread that passes gives no sign of it; one that was too late waits again.
	<-time.After(passTime)
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, frame := range frames {
		if f.tries[frame] >= maxTries {
			delete(f.tries, frame)
			open = append(open, frame)
			continue
		}
		e.protect(frame)
	}
	return open
}

const (
	// passTime is how long a thread of the kernel needs to take a page that has
	// been opened.
	passTime = 200 * time.Microsecond
	// maxTries is how often a vCPU is looked for, and openTime how long a page is
	// open when none is found.
	maxTries = 4
	openTime = time.Millisecond
)

// writesLand lets writes to open pages land, tells of them without knowing who
// writes what, and protects the pages again.
func (e *Engine) writesLand(open []hypervisor.Frame) {
	<-time.After(openTime)
	var told []landing
	e.vm.Still(func() {
		e.faults.mu.Lock()
		defer e.faults.mu.Unlock()
		for _, frame := range open {
			e.protect(frame)
			told = append(told, landing{frame, e.watching(hypervisor.AccessWrite, frame.Addr(), hypervisor.PageSize)})
		}
	})
	e.faults.wg.Go(func() {
		for _, l := range told {
			e.tellLanded(l, -1)
		}
	})
}

// landing is a page that was written while it was open.
type landing struct {
	frame hypervisor.Frame
	traps []*trap
}

// tellLanded tells handlers of a write that is done; nothing waits for what they
// answer.
func (e *Engine) tellLanded(l landing, index int) {
	for _, t := range l.traps {
		ok, dropped := t.admit()
		if !ok {
			continue
		}
		t.handler(&hypervisor.TrapEvent{
			Trap: t.id, Kind: t.Kind, VCPU: index, Sequence: e.sequence.Add(1), Access: hypervisor.AccessWrite,
			Addr: l.frame.Addr(), Mechanism: hypervisor.MechanismUserfault, Dropped: dropped, Landed: true,
		})
		t.leave()
	}
}
