package trap

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/uffd"
)

// faults are writes to pages that userfaultfd protects. A vCPU that makes one
// waits within KVM_RUN; what it was about to do is seen when it is out of there
// again, before it runs the guest:
//
//   - Linux >= 6.2: a signal brings it out.
//   - before: nothing does but the page. When all other vCPUs stand, and it has a
//     signal pending, the page is opened: the vCPU leaves KVM_RUN without having
//     run the guest, and the page is protected again (core.Blocker).
//   - a guest that may be interrupted: KVM lets a thread of the kernel wait for
//     the page (asynchronous page faults) and halts the vCPU, which a signal
//     brings out. Which vCPU it is tells the instruction that it is at.
type faults struct {
	fd *uffd.FD

	mu       sync.Mutex
	pending  []pending // by vCPU
	orphans  map[hypervisor.Frame]struct{}
	tries    map[hypervisor.Frame]int // how often in a row no vCPU was found for an orphan
	released []hypervisor.Frame
	slow     bool // signals do not bring vCPUs out
	// stepping is the vCPU that does one instruction alone.
	stepping atomic.Pointer[core.VCPU]
	// waiting is the number of pending and of orphans, for hooks in a hurry.
	waiting atomic.Int32

	wake chan struct{}
	done chan struct{} // closed when no more faults come
	wg   sync.WaitGroup
}

// pending is a vCPU's write that waits.
type pending struct {
	frame   hypervisor.Frame
	valid   bool
	blocked bool // its thread waits in the kernel
	kicked  time.Time
	before  []byte // the page, when it was opened for the vCPU to come out
}

// patience is how long a vCPU has to answer a signal, before it is taken for one
// that cannot.
const patience = 5 * time.Millisecond

// openFaults makes userfaultfd ready where the host has it.
func (e *Engine) openFaults() error {
	f := &e.faults
	if !e.npt {
		e.can.Userfault = errors.New("a host whose KVM has nested paging (EPT or NPT) is needed")
		return nil
	}
	f.fd, e.can.Userfault = uffd.New(e.dev)
	if e.can.Userfault != nil {
		return nil //nolint:nilerr // it is an ability that is missing, and kept as such
	}
	f.pending = make([]pending, len(e.vcpus))
	f.orphans = map[hypervisor.Frame]struct{}{}
	f.tries = map[hypervisor.Frame]int{}
	f.wake, f.done = make(chan struct{}, 1), make(chan struct{})
	f.wg.Go(e.readFaults)
	f.wg.Go(e.serveFaults)
	return nil
}

func (e *Engine) closeFaults() error {
	f := &e.faults
	if f.fd == nil {
		return nil
	}
	err := f.fd.Close() // who waits goes on; readFaults ends, and serveFaults with it
	f.wg.Wait()
	return err
}

func (f *faults) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// readFaults notes faults until the descriptor is closed.
func (e *Engine) readFaults() {
	f := &e.faults
	_ = f.fd.Wait(func() bool { // its error is the end
		f.mu.Lock()
		n := e.drain()
		f.mu.Unlock()
		if n > 0 {
			e.vm.Look()
			f.signal()
		}
		return false
	})
	close(f.done)
}

// drain notes the faults that are there. f.mu is held.
func (e *Engine) drain() (noted int) {
	f := &e.faults
	var buf [16]uffd.Fault
	for {
		n := f.fd.Take(buf[:])
		for _, fault := range buf[:n] {
			gpa, ok := e.mem.KVMAddrToPhys(fault.Addr)
			if !ok {
				continue
			}
			noted++
			e.note(gpa.Frame(), fault.ThreadID)
		}
		if n < len(buf) {
			return noted
		}
	}
}

func (e *Engine) note(frame hypervisor.Frame, thread int) {
	f := &e.faults
	i := slices.IndexFunc(e.vcpus, func(c *vcpu) bool { return c.core.ThreadID() == thread })
	switch {
	case i < 0:
		f.orphans[frame] = struct{}{}
		f.count()
	case f.stepping.Load() == e.vcpus[i].core:
		// It is alone, and its instruction writes to more than it was known to.
		e.unprotect(frame)
		e.vcpus[i].opened = append(e.vcpus[i].opened, frame)
	default:
		// A write by the kernel itself (it emulates the instruction) is tried, and
		// faults, over and over while a signal is pending.
		p := &f.pending[i]
		if !p.valid || p.frame != frame {
			*p = pending{frame: frame, valid: true}
		}
		p.blocked = true
		f.count()
	}
}

// count keeps waiting right. f.mu is held.
func (f *faults) count() {
	n := len(f.orphans)
	for _, p := range f.pending {
		if p.valid {
			n++
		}
	}
	f.waiting.Store(int32(n))
}

// serveFaults brings vCPUs out of the kernel, until readFaults ends.
func (e *Engine) serveFaults() {
	f := &e.faults
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case <-f.done:
			return
		case <-f.wake:
		case <-timer.C:
		}
		still, again := e.kickWaiting()
		if still {
			var open []hypervisor.Frame
			e.vm.Still(func() { open = e.letOrphansGo() })
			if len(open) > 0 {
				e.writesLand(open)
			}
		}
		if again {
			timer.Reset(patience)
		}
	}
}

// kickWaiting sends signals to vCPUs that wait, and says whether all must stand
// for that, and whether to look again after a while.
func (e *Engine) kickWaiting() (still, again bool) {
	f := &e.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.pending {
		p := &f.pending[i]
		switch {
		case !p.blocked:
		case f.slow || !p.kicked.IsZero() && time.Since(p.kicked) >= patience:
			still = true
		case p.kicked.IsZero():
			p.kicked = time.Now()
			e.vcpus[i].core.Kick()
			again = true
		default:
			again = true
		}
	}
	return still || len(f.orphans) > 0, again
}

// Blocked is core.Blocker's.
func (e *Engine) Blocked(v *core.VCPU) bool {
	f := &e.faults
	if f.waiting.Load() == 0 {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pending[v.Index()].blocked
}

// Release is core.Blocker's.
func (e *Engine) Release() {
	f := &e.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	e.drain()
	for i := range f.pending {
		p := &f.pending[i]
		if !p.blocked {
			continue
		}
		p.blocked = false
		if !p.kicked.IsZero() && time.Since(p.kicked) >= patience {
			f.slow = true
		}
		if view, err := e.mem.View(p.frame.Addr(), hypervisor.PageSize); err == nil {
			p.before = slices.Clone(view)
		}
		e.unprotect(p.frame)
		f.released = append(f.released, p.frame)
	}
}

// Restore is core.Blocker's.
func (e *Engine) Restore() {
	f := &e.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, frame := range f.released {
		e.protect(frame)
	}
	f.released = nil
}

// unprotect lets writes to a page pass. f.mu is held, and drain has been called.
func (e *Engine) unprotect(frame hypervisor.Frame) {
	if addr, ok := e.mem.KVMAddr(frame.Addr()); ok {
		if err := e.faults.fd.Unprotect(addr, hypervisor.PageSize); err != nil {
			e.log.Error("open a protected page", "frame", uint64(frame), "err", err)
		}
	}
}

// protect protects a page again, when it still is to be.
func (e *Engine) protect(frame hypervisor.Frame) {
	a := e.find(frame)
	if a == nil || !a.protect {
		return
	}
	if addr, ok := e.mem.KVMAddr(frame.Addr()); ok {
		if err := e.faults.fd.Protect(addr, hypervisor.PageSize); err != nil {
			e.log.Error("protect a page", "frame", uint64(frame), "err", err)
		}
	}
}

// openPage opens a page for one instruction of a vCPU that is alone.
func (e *Engine) openPage(frame hypervisor.Frame) {
	f := &e.faults
	f.mu.Lock()
	defer f.mu.Unlock()
	e.drain()
	// Whoever else waits there tries again, and is noted again.
	delete(f.orphans, frame)
	for i := range f.pending {
		if f.pending[i].frame == frame {
			f.pending[i] = pending{}
		}
	}
	f.count()
	e.unprotect(frame)
}

func (e *Engine) closePage(frame hypervisor.Frame) {
	e.faults.mu.Lock()
	defer e.faults.mu.Unlock()
	e.protect(frame)
}

// dropFault forgets that v waits: it is out.
func (e *Engine) dropFault(v *core.VCPU) pending {
	f := &e.faults
	if f.waiting.Load() == 0 {
		return pending{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pending[v.Index()]
	f.pending[v.Index()] = pending{}
	f.count()
	return p
}

// Interrupted is core.Hooks': v may have been brought out of a fault.
func (e *Engine) Interrupted(v *core.VCPU) {
	if e.faults.waiting.Load() == 0 {
		return
	}
	if p := e.dropFault(v); p.valid {
		if !e.landed(v, p) {
			e.faulted(v, p.frame)
		}
		return
	}
	if frame, ok := e.claim(v); ok {
		e.faulted(v, frame)
	}
}

// late is called by the hooks of other exits: v has come out of a fault by one of
// these, so that the write has landed.
func (e *Engine) late(v *core.VCPU) {
	if e.faults.waiting.Load() == 0 {
		return
	}
	if p := e.dropFault(v); p.valid && p.before != nil {
		e.landed(v, p)
	}
}

// landed tells of a write that KVM has done itself, in emulating an instruction,
// while the page was open for v to come out. Handlers that skip or emulate it
// change what is there. It returns false when nothing has changed there.
func (e *Engine) landed(v *core.VCPU, p pending) bool {
	view, err := e.mem.View(p.frame.Addr(), hypervisor.PageSize)
	if err != nil || p.before == nil || bytes.Equal(p.before, view) {
		return false
	}
	first, last := 0, len(view)-1
	for p.before[first] == view[first] {
		first++
	}
	for p.before[last] == view[last] {
		last--
	}
	gpa, n := p.frame.Addr()+hypervisor.PhysAddr(first), last-first+1
	ts := e.watching(hypervisor.AccessWrite, gpa, n)
	if len(ts) == 0 {
		return true
	}
	ev := e.event(v, hypervisor.TrapPage, hypervisor.AccessWrite)
	ev.Addr, ev.Size, ev.Mechanism, ev.Landed = gpa, n, hypervisor.MechanismUserfault, true
	ev.Old, ev.New = p.before[first:last+1], slices.Clone(view[first:last+1])
	ev.Known = hypervisor.KnownAddr | hypervisor.KnownOld | hypervisor.KnownNew
	e.lastWrite(v, &ev.Registers, gpa, ev.New).tell(ev)
	a := e.tell(v, ts, ev)
	put := ev.Old
	switch a.verb {
	case hypervisor.TrapEmulate:
		put = make([]byte, n)
		copy(put, a.value)
		fallthrough
	case hypervisor.TrapSkip, hypervisor.TrapDeny:
		if !a.ended {
			copy(view[first:], put)
			e.mem.Dirtied(gpa, uint64(n))
		}
	}
	e.behind(v, a)
	return true
}

// closeOpened protects again the pages that v's step turned out to write, and
// tells of them. v is alone.
func (e *Engine) closeOpened(v *core.VCPU) {
	c := e.vcpus[v.Index()]
	e.faults.mu.Lock()
	opened := c.opened
	c.opened = nil
	for _, frame := range opened {
		e.protect(frame)
	}
	e.faults.mu.Unlock()
	for _, frame := range opened {
		e.tellLanded(landing{frame, e.watching(hypervisor.AccessWrite, frame.Addr(), hypervisor.PageSize)}, v.Index())
	}
}

// faulted deals with a write to a protected page that v is about to do.
func (e *Engine) faulted(v *core.VCPU, frame hypervisor.Frame) {
	a := e.find(frame)
	if a == nil || !a.protect {
		return // the trap is gone, and the page open
	}
	r, err := v.Registers()
	if err != nil {
		e.log.Error("registers at a fault", "vcpu", v.Index(), "err", err)
		return
	}
	if e.leaks.take(&r) {
		e.commit(v, &r)
	}
	s := e.at(v, &r)
	verdict := answer{verb: hypervisor.TrapContinue}
	told := e.tellProtected(s, &verdict)
	if verdict.ended {
		return
	}
	if !slices.Contains(told, frame) {
		told = append(told, frame)
		verdict = e.tellPage(s, a, frame)
		if verdict.ended {
			return
		}
	}
	if verdict.verb != hypervisor.TrapContinue && s.change == nil {
		// What is written is not known: the page is as it was afterwards.
		s.change = &change{use: use{gpa: frame.Addr()}}
	}
	around := func(bool) {}
	if verdict.verb != hypervisor.TrapContinue {
		var value []byte
		if verdict.verb == hypervisor.TrapEmulate {
			value = verdict.value
		}
		around = e.putBack(s, value)
	}
	if verdict.regs != nil && verdict.regs.Valid.Has(hypervisor.GroupGeneral) && verdict.regs.RIP != r.RIP {
		e.behind(v, verdict)
		return
	}
	if e.perform(s, told, around) {
		e.stepped(v)
	}
	e.behind(v, verdict)
}

// tellProtected tells of what s's instruction is going to write to protected
// pages, and returns these.
func (e *Engine) tellProtected(s *stop, a *answer) (told []hypervisor.Frame) {
	for _, u := range e.uses(s) {
		if u.area == nil || !u.area.protect || !u.write && u.size != 0 {
			continue
		}
		told = append(told, u.gpa.Frame())
		b := e.tellUse(s, u)
		if b.ended {
			a.ended = true
			return told
		}
		if a.verb == hypervisor.TrapContinue && b.verb != hypervisor.TrapContinue {
			a.verb, a.value = b.verb, b.value
			s.change = &change{use: u, value: b.value}
		}
		a.pause = a.pause || b.pause
		a.once = append(a.once, b.once...)
		if b.regs != nil {
			a.regs = b.regs
		}
	}
	return told
}

// tellPage tells of a write of which no more is known than the page: by the
// processor to a page table, or by KVM itself (its clock).
func (e *Engine) tellPage(s *stop, a *area, frame hypervisor.Frame) answer {
	ev := &hypervisor.TrapEvent{
		Kind: hypervisor.TrapPage, VCPU: s.v.Index(), Access: hypervisor.AccessWrite, Addr: frame.Addr(),
		Known: hypervisor.KnownRIP, Registers: s.regs, Mechanism: hypervisor.MechanismUserfault,
	}
	return e.tell(s.v, watchers(a.traps, hypervisor.AccessWrite, frame.Addr(), hypervisor.PageSize), ev)
}
