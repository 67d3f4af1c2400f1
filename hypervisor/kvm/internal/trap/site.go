package trap

import (
	"slices"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/insn"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

const int3 = 0xcc

// site is an address at which breakpoints are.
type site struct {
	gpa   hypervisor.PhysAddr
	traps []*trap
	orig  atomic.Uint32 // the guest's byte there, while planted
	// planted says that INT3 is there.
	planted atomic.Bool
	around  []byte // what is near, when it was planted: is it still the same code?
	aroundN int    // of around, the bytes in front of gpa
	lost    bool   // it was found to be other code: it is not planted again
}

// siteMap is all sites. It is replaced, not changed, and read by any goroutine.
type siteMap struct {
	byAddr map[hypervisor.PhysAddr]*site
	byPage map[hypervisor.Frame][]*site // by address
}

// in calls f with the sites of n bytes at gpa.
func (m *siteMap) in(gpa hypervisor.PhysAddr, n uint64, f func(*site)) {
	if len(m.byPage) == 0 || n == 0 {
		return
	}
	last := gpa + hypervisor.PhysAddr(n-1)
	if pages := uint64(last.Frame()-gpa.Frame()) + 1; pages > uint64(len(m.byPage)) {
		for _, s := range m.byAddr {
			if s.gpa >= gpa && s.gpa <= last {
				f(s)
			}
		}
		return
	}
	for p := gpa.Frame(); p <= last.Frame(); p++ {
		for _, s := range m.byPage[p] {
			if s.gpa >= gpa && s.gpa <= last {
				f(s)
			}
		}
	}
}

// unplant puts the guest's own bytes into p, which was read at gpa.
func (e *Engine) unplant(p []byte, gpa hypervisor.PhysAddr) {
	e.sites.Load().in(gpa, uint64(len(p)), func(s *site) {
		if s.planted.Load() {
			p[s.gpa-gpa] = byte(s.orig.Load())
		}
	})
}

// Original puts the guest's own bytes into p, which was read out of guest memory
// at gpa: those that breakpoints stand in for. Any goroutine may call it.
func (e *Engine) Original(p []byte, gpa hypervisor.PhysAddr) { e.unplant(p, gpa) }

// rebuildSites makes sites those of list's breakpoints, plants what is new and
// takes out what is gone. All vCPUs stand.
func (e *Engine) rebuildSites(list []*trap) {
	old := e.sites.Load()
	next := &siteMap{byAddr: map[hypervisor.PhysAddr]*site{}, byPage: map[hypervisor.Frame][]*site{}}
	for _, t := range list {
		if t.Kind != hypervisor.TrapBreakpoint {
			continue
		}
		s := next.byAddr[t.Addr]
		if s == nil {
			if s = old.byAddr[t.Addr]; s == nil {
				s = &site{gpa: t.Addr}
			} else {
				s.traps = nil
			}
			next.byAddr[t.Addr] = s
			next.byPage[t.first] = append(next.byPage[t.first], s)
		}
		s.traps = append(s.traps, t)
	}
	for _, s := range old.byAddr {
		if next.byAddr[s.gpa] == nil {
			e.takeOut(s)
		}
	}
	for _, page := range next.byPage {
		slices.SortFunc(page, func(a, b *site) int {
			if a.gpa < b.gpa {
				return -1
			}
			return 1
		})
	}
	e.sites.Store(next)
	for _, s := range next.byAddr {
		if old.byAddr[s.gpa] == nil {
			e.plant(s)
			e.noteAround(s)
		}
	}
}

// aroundBytes is how much of a site's neighbourhood must be the same for it to be
// the same code, on either side; the instruction itself may be patched.
const aroundBytes = 24

func (e *Engine) noteAround(s *site) { s.around, s.aroundN = e.neighbours(s) }

// neighbours returns the guest's bytes near s, without those that a patch of its
// instruction changes, and how many of them are in front.
func (e *Engine) neighbours(s *site) ([]byte, int) {
	page, err := e.mem.View(s.gpa.Frame().Addr(), hypervisor.PageSize)
	if err != nil {
		return nil, 0
	}
	off := int(s.gpa.Offset())
	from, to := max(0, off-aroundBytes), min(len(page), off+insn.MaxLen+aroundBytes)
	b := slices.Clone(page[from:to])
	e.unplant(b, s.gpa.Frame().Addr()+hypervisor.PhysAddr(from))
	front := off - from
	return slices.Delete(b, front, min(len(b), front+insn.MaxLen)), front
}

// plant puts INT3 there.
func (e *Engine) plant(s *site) {
	b, err := e.mem.View(s.gpa, 1)
	if err != nil || s.planted.Load() {
		return
	}
	s.orig.Store(uint32(b[0]))
	s.planted.Store(true)
	b[0] = int3
}

// takeOut puts the guest's byte back, unless something else has been written
// there.
func (e *Engine) takeOut(s *site) {
	if !s.planted.Load() {
		return
	}
	if b, err := e.mem.View(s.gpa, 1); err == nil && b[0] == int3 {
		b[0] = byte(s.orig.Load())
	}
	s.planted.Store(false)
}

// overwritten returns the traps that want to know of a write to planted bytes.
func (e *Engine) overwritten(gpa hypervisor.PhysAddr, n int) (ts []*trap) {
	e.sites.Load().in(gpa, uint64(n), func(s *site) {
		for _, t := range s.traps {
			if t.Access.Has(hypervisor.AccessWrite) && !s.lost {
				ts = append(ts, t)
			}
		}
	})
	return ts
}

// breakpointsWritten is called before the guest's bytes at gpa are written: a
// breakpoint there goes, and is planted again later, when the guest has had the
// time to look at what it wrote (Linux does, and stops the machine when it finds
// something else).
func (e *Engine) breakpointsWritten(v *core.VCPU, gpa hypervisor.PhysAddr, n int) {
	e.sites.Load().in(gpa, uint64(n), func(s *site) {
		if s.planted.Load() {
			e.takeOut(s)
			e.replant(s, v)
		}
	})
}

// deviceWrote is called after a device or a client has written to guest memory,
// by its goroutine.
func (e *Engine) deviceWrote(gpa hypervisor.PhysAddr, size uint64) {
	e.sites.Load().in(gpa, size, func(s *site) {
		b, err := e.mem.View(s.gpa, 1)
		if err == nil && s.planted.Load() && b[0] != int3 {
			e.replant(s, nil)
		}
	})
}

// breakpointHit deals with INT3.
func (e *Engine) breakpointHit(v *core.VCPU) {
	r, err := v.Registers()
	if err != nil {
		e.log.Error("registers at a breakpoint", "vcpu", v.Index(), "err", err)
		return
	}
	pc := insn.PC(&r)
	gpa, ok := e.translate(v, &r, pc)
	if !ok {
		return // the guest has taken the page away: it faults by itself
	}
	s := e.sites.Load().byAddr[gpa]
	if s == nil || !s.planted.Load() {
		// The guest's own, or one that was taken out while v was on its way here.
		if b, err := e.mem.View(gpa, 1); err == nil && b[0] == int3 {
			e.injectBreakpoint(v)
		}
		return
	}
	c := e.vcpus[v.Index()]
	returned := e.leaks.take(&r)
	if returned {
		e.commit(v, &r)
	}
	a := answer{verb: hypervisor.TrapContinue}
	if again := c.again == pc; !again && !returned {
		ev := &c.ev
		*ev = hypervisor.TrapEvent{
			Kind: hypervisor.TrapBreakpoint, VCPU: v.Index(), Access: hypervisor.AccessExecute, Registers: r,
			Addr: gpa, Virt: hypervisor.VirtAddr(pc), Size: 1, Known: hypervisor.KnownAddr | hypervisor.KnownVirt | hypervisor.KnownRIP,
		}
		if a = e.tell(v, s.traps, ev); a.ended {
			return
		}
	}
	c.again = 0
	e.leaveBreakpoint(v, &r, gpa, &a)
	e.behind(v, a)
}

// leaveBreakpoint lets v go on at a breakpoint. r is v's state there.
func (e *Engine) leaveBreakpoint(v *core.VCPU, r *hypervisor.Registers, gpa hypervisor.PhysAddr, a *answer) {
	if a.regs != nil {
		if a.regs.Valid.Has(hypervisor.GroupGeneral) && a.regs.RIP != r.RIP {
			return // it goes on there; behind sets them
		}
		if err := v.SetRegisters(a.regs); err != nil {
			e.log.Error("registers that a breakpoint's handler wants are refused", "vcpu", v.Index(), "err", err)
		}
		a.regs = nil
		var err error
		if *r, err = v.Registers(); err != nil {
			return
		}
	}
	c := e.vcpus[v.Index()]
	// The trap may have been removed meanwhile: what is there is the guest's own.
	s := e.sites.Load().byAddr[gpa]
	if s != nil && !s.planted.Load() {
		s = nil
	}
	at := c.take()
	defer func() { c.spare = at }()
	e.lookAt(at, v, r, gpa)
	switch a.verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny:
		if at.known {
			r.RIP += hypervisor.VirtAddr(at.in.Len)
			e.commit(v, r)
			return
		}
		a.verb, a.pause = hypervisor.TrapContinue, true
	case hypervisor.TrapEmulate:
		a.verb, a.pause = hypervisor.TrapContinue, true // there is no access that could be given another value
	}
	if s == nil {
		return // it is run as it is
	}
	if at.known && at.in.Map == insn.MapOne && at.in.Opcode == int3 {
		e.injectBreakpoint(v) // the guest has one of its own there
		return
	}
	var around func(bool)
	told := e.tellProtected(at, a)
	switch {
	case a.ended:
		return
	case a.verb == hypervisor.TrapEmulate && at.change != nil:
		around = e.putBack(at, a.value)
	case a.verb != hypervisor.TrapContinue && at.change != nil:
		around = e.putBack(at, nil)
	}
	if e.perform(at, told, around) {
		e.stepped(v)
	}
}

// stepped tells those that follow v's every instruction of one that the engine
// has done.
func (e *Engine) stepped(v *core.VCPU) {
	if c := e.vcpus[v.Index()]; len(c.steps)+len(c.once) > 0 {
		e.stepHit(v)
	}
}

// injectBreakpoint gives a #BP to the guest: its own INT3 at RIP.
func (e *Engine) injectBreakpoint(v *core.VCPU) {
	if err := e.inject(v, kvmapi.GuestDebugInjectBP); err != nil {
		e.log.Error("hand a #BP to the guest", "vcpu", v.Index(), "err", err)
	}
}

// withoutBreakpoints takes out those of s's instruction, which the processor is
// to do.
func (e *Engine) withoutBreakpoints(s *stop) {
	pc := insn.PC(&s.regs)
	gpa, ok := e.translate(s.v, &s.regs, pc)
	if !ok {
		return
	}
	n := min(uint64(max(s.in.Len, 1)), hypervisor.PageSize-gpa.Offset())
	e.sites.Load().in(gpa, n, func(st *site) {
		if st.planted.Load() {
			e.takeOut(st)
			s.out = append(s.out, st)
		}
	})
}
