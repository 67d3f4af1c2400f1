package hypervisortest

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// fakeTraps are a fake VM's traps. Its guest does nothing by itself: GuestWrite
// and Fire are what it does.
type fakeTraps struct {
	set      map[hypervisor.TrapID]fakeTrap
	last     hypervisor.TrapID
	sequence uint64
}

type fakeTrap struct {
	trap    hypervisor.Trap
	handler hypervisor.TrapHandler
	running chan struct{} // holds one token while no handler runs
}

// SetTrap implements hypervisor.Trapper.
func (f *Fake) SetTrap(ctx context.Context, t hypervisor.Trap, h hypervisor.TrapHandler) (id hypervisor.TrapID, err error) {
	var bad error
	err = f.simple(ctx, MethodSetTrap, func() {
		if t.Kind == hypervisor.TrapPage || t.Kind == hypervisor.TrapBreakpoint {
			if f.at(t.Addr) == nil {
				bad = &hypervisor.TrapError{Trap: t, Err: &hypervisor.AddressError{Op: "trap", Addr: t.Addr, Err: hypervisor.ErrNotRAM}}
				return
			}
		}
		if f.traps.set == nil {
			f.traps.set = make(map[hypervisor.TrapID]fakeTrap)
		}
		f.traps.last++
		id = f.traps.last
		running := make(chan struct{}, 1)
		running <- struct{}{}
		f.traps.set[id] = fakeTrap{t, h, running}
	})
	if err == nil {
		err = bad
	}
	return id, err
}

// RemoveTrap implements hypervisor.Trapper.
func (f *Fake) RemoveTrap(ctx context.Context, id hypervisor.TrapID) error {
	var trap fakeTrap
	ok := false
	err := f.simple(ctx, MethodRemoveTrap, func() {
		trap, ok = f.traps.set[id]
		delete(f.traps.set, id)
	})
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("trap %d: %w", id, hypervisor.ErrNotFound)
	}
	<-trap.running // its handler, when one runs, has ended
	trap.running <- struct{}{}
	return nil
}

// Traps returns the traps that are set.
func (f *Fake) Traps() []hypervisor.Trap {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ts []hypervisor.Trap
	for _, id := range slices.Sorted(maps.Keys(f.traps.set)) {
		ts = append(ts, f.traps.set[id].trap)
	}
	return ts
}

// Fire tells the handlers of all traps of ev's kind, in the order in which they
// were set, and returns the last answer. ev's Trap and Sequence are filled in.
func (f *Fake) Fire(ev hypervisor.TrapEvent) hypervisor.TrapAnswer {
	return f.fire(ev, func(t hypervisor.Trap) bool { return t.Kind == ev.Kind })
}

func (f *Fake) fire(ev hypervisor.TrapEvent, match func(hypervisor.Trap) bool) (a hypervisor.TrapAnswer) {
	f.mu.Lock()
	var hit []hypervisor.TrapID
	for _, id := range slices.Sorted(maps.Keys(f.traps.set)) {
		if match(f.traps.set[id].trap) {
			hit = append(hit, id)
		}
	}
	f.mu.Unlock()
	for _, id := range hit {
		f.mu.Lock()
		trap, ok := f.traps.set[id]
		f.traps.sequence++
		ev.Trap, ev.Sequence = id, f.traps.sequence
		f.mu.Unlock()
		if !ok {
			continue
		}
		<-trap.running
		f.mu.Lock()
		_, ok = f.traps.set[id] // it may have been removed while another ran
		f.mu.Unlock()
		if ok {
			e := ev
			a = trap.handler(&e)
		}
		trap.running <- struct{}{}
	}
	if a.Verb == hypervisor.TrapPause {
		f.SetInfo(func(i *hypervisor.Info) { i.State = hypervisor.StatePaused })
	}
	return a
}

// GuestWrite stores p at gpa as vCPU 0 of the guest would: traps are told, and
// the page becomes dirty. It panics when that is not RAM.
func (f *Fake) GuestWrite(p []byte, gpa hypervisor.PhysAddr) {
	old := f.Load(gpa, uint64(len(p)))
	end := gpa + hypervisor.PhysAddr(len(p))
	a := f.fire(hypervisor.TrapEvent{
		Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: gpa, Size: len(p), Old: old, New: slices.Clone(p),
		Known: hypervisor.KnownAddr | hypervisor.KnownOld | hypervisor.KnownNew, Mechanism: hypervisor.MechanismReadOnlySlot,
	}, func(t hypervisor.Trap) bool {
		return t.Kind == hypervisor.TrapPage && t.Access.Has(hypervisor.AccessWrite) &&
			t.Addr < end && gpa < t.Addr+hypervisor.PhysAddr(t.Size)
	})
	switch a.Verb {
	case hypervisor.TrapSkip, hypervisor.TrapDeny:
		return
	case hypervisor.TrapEmulate:
		p = a.Value
	}
	f.Store(gpa, p)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dirty != nil {
		for frame := gpa.Frame(); frame <= (end - 1).Frame(); frame++ {
			f.dirty[frame] = true
		}
	}
}

// StartDirty implements hypervisor.DirtyTracker.
func (f *Fake) StartDirty(ctx context.Context) error {
	return f.simple(ctx, MethodStartDirty, func() { f.dirty = make(map[hypervisor.Frame]bool) })
}

// Dirty implements hypervisor.DirtyTracker.
func (f *Fake) Dirty(ctx context.Context) (rs []hypervisor.Range, err error) {
	err = f.simple(ctx, MethodDirty, func() {
		for frame := range f.dirty {
			rs = append(rs, hypervisor.Range{Start: frame.Addr(), Size: hypervisor.PageSize})
		}
		clear(f.dirty)
	})
	if err == nil {
		rs, err = hypervisor.NormalizeRanges(rs)
	}
	return rs, err
}

// StopDirty implements hypervisor.DirtyTracker.
func (f *Fake) StopDirty(ctx context.Context) error {
	return f.simple(ctx, MethodStopDirty, func() { f.dirty = nil })
}

// SetRegisters implements hypervisor.RegisterWriter.
func (f *Fake) SetRegisters(ctx context.Context, r hypervisor.Registers) (err error) {
	serr := f.simple(ctx, MethodSetRegisters, func() {
		if r.VCPU < 0 || r.VCPU >= len(f.regs) {
			err = fmt.Errorf("vCPU %d: the VM has %d", r.VCPU, len(f.regs))
			return
		}
		mergeRegisters(&f.regs[r.VCPU], r)
	})
	if serr != nil {
		return serr
	}
	return err
}

// mergeRegisters writes the groups of from that are valid.
func mergeRegisters(to *hypervisor.Registers, from hypervisor.Registers) {
	old := *to
	*to = from
	to.Valid = old.Valid
	if !from.Valid.Has(hypervisor.GroupGeneral) {
		to.RAX, to.RBX, to.RCX, to.RDX, to.RSI, to.RDI, to.RBP, to.RSP = old.RAX, old.RBX, old.RCX, old.RDX, old.RSI, old.RDI, old.RBP, old.RSP
		to.R8, to.R9, to.R10, to.R11, to.R12, to.R13, to.R14, to.R15 = old.R8, old.R9, old.R10, old.R11, old.R12, old.R13, old.R14, old.R15
		to.RIP, to.RFLAGS = old.RIP, old.RFLAGS
	}
	if !from.Valid.Has(hypervisor.GroupSegments) {
		to.CS, to.DS, to.ES, to.FS, to.GS, to.SS, to.LDT, to.TR, to.GDT, to.IDT = old.CS, old.DS, old.ES, old.FS, old.GS, old.SS, old.LDT, old.TR, old.GDT, old.IDT
	}
	if !from.Valid.Has(hypervisor.GroupControl) {
		to.CR0, to.CR2, to.CR3, to.CR4, to.EFER = old.CR0, old.CR2, old.CR3, old.CR4, old.EFER
	}
	if !from.Valid.Has(hypervisor.GroupMSR) {
		to.KernelGSBase, to.STAR, to.LSTAR, to.CSTAR, to.SFMASK = old.KernelGSBase, old.STAR, old.LSTAR, old.CSTAR, old.SFMASK
		to.SysenterCS, to.SysenterESP, to.SysenterEIP, to.TSCAux = old.SysenterCS, old.SysenterESP, old.SysenterEIP, old.TSCAux
	}
}
