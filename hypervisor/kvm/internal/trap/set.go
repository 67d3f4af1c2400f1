package trap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// SetTrap is hypervisor.Trapper's.
func (e *Engine) SetTrap(ctx context.Context, want hypervisor.Trap, h hypervisor.TrapHandler) (hypervisor.TrapID, error) {
	fail := func(err error) (hypervisor.TrapID, error) {
		return 0, &hypervisor.TrapError{Trap: want, Err: err}
	}
	if h == nil {
		return fail(errors.New("no handler"))
	}
	t := &trap{Trap: want, handler: h}
	if err := e.check(t); err != nil {
		return fail(err)
	}
	if err := ctx.Err(); err != nil {
		return 0, context.Cause(ctx)
	}
	e.change.Lock()
	defer e.change.Unlock()
	if e.closed {
		return fail(hypervisor.ErrClosed)
	}
	if e.vm.Closing() {
		return fail(hypervisor.ErrGone)
	}
	if len(e.traps) >= maxTraps {
		return fail(fmt.Errorf("%d traps: %w", len(e.traps), hypervisor.ErrNoResources))
	}
	e.nextID++
	t.id = e.nextID
	err := e.still(func() error {
		e.traps[t.id] = t
		if err := e.rebuild(); err != nil {
			delete(e.traps, t.id)
			return errors.Join(err, e.rebuild())
		}
		return nil
	})
	if err != nil {
		return fail(err)
	}
	return t.id, nil
}

// RemoveTrap is hypervisor.Trapper's.
func (e *Engine) RemoveTrap(ctx context.Context, id hypervisor.TrapID) error {
	return e.RemoveTraps(ctx, id)
}

// RemoveTraps removes several traps at once: those of a client that has gone. One
// that is not there is no error.
func (e *Engine) RemoveTraps(ctx context.Context, ids ...hypervisor.TrapID) error {
	gone, err := e.disarm(ids)
	if err != nil {
		return err
	}
	for _, t := range gone {
		select {
		case <-t.idle:
		case <-ctx.Done():
			return fmt.Errorf("trap %d is removed, its handler still runs: %w", t.id, context.Cause(ctx))
		}
	}
	return nil
}

func (e *Engine) disarm(ids []hypervisor.TrapID) (gone []*trap, err error) {
	e.change.Lock()
	defer e.change.Unlock()
	for _, id := range ids {
		if t := e.traps[id]; t != nil {
			t.end()
			gone = append(gone, t)
		}
	}
	if len(gone) == 0 {
		return nil, nil
	}
	err = e.still(func() error {
		for _, t := range gone {
			delete(e.traps, t.id)
		}
		return e.rebuild()
	})
	return gone, err
}

// check completes t, and refuses what cannot be.
func (e *Engine) check(t *trap) error {
	if t.MaxRate < 0 {
		return fmt.Errorf("a rate of %d events a second", t.MaxRate)
	}
	switch t.Kind {
	case hypervisor.TrapPage:
		return e.checkPage(t)
	case hypervisor.TrapBreakpoint:
		if !e.can.Breakpoint {
			return unsupported("breakpoint", "INT3 does not leave the guest on this host (KVM without nested paging, or under an emulated SVM): use a hardware breakpoint")
		}
		if !e.can.ReadOnly {
			return unsupported("breakpoint", "needs read-only memory slots (Linux >= 3.7)")
		}
		t.Size = 1
		return e.checkRAM(t)
	case hypervisor.TrapHardware:
		return e.checkHardware(t)
	case hypervisor.TrapStep:
		return e.checkVCPU(t)
	case hypervisor.TrapMSR:
		return e.checkMSR(t)
	case hypervisor.TrapPort:
		return e.checkPort(t)
	case hypervisor.TrapShutdown:
		return nil
	}
	return unsupported(fmt.Sprintf("trap kind %q", t.Kind), "see docs/TRAPS.md for what there is, and for what to watch instead of CPUID, loads of control registers and of descriptor tables, and hypercalls")
}

func (e *Engine) checkRAM(t *trap) error {
	if t.Size == 0 || t.Size-1 > math.MaxUint64-uint64(t.Addr) {
		return fmt.Errorf("%d bytes at %v", t.Size, t.Addr)
	}
	t.first, t.last = t.Addr.Frame(), (t.Addr + hypervisor.PhysAddr(t.Size-1)).Frame()
	r, ok := hypervisor.FindRange(e.mem.Ranges(), t.Addr)
	if !ok {
		return &hypervisor.AddressError{Op: "trap", Addr: t.Addr, Err: hypervisor.ErrNotRAM}
	}
	if t.Size > uint64(r.End()-t.Addr) {
		return &hypervisor.AddressError{Op: "trap", Addr: r.End(), Err: hypervisor.ErrNotRAM}
	}
	return nil
}

// autoPages is up to how many pages of writes are trapped by memory slots when
// the driver picks: an event of theirs costs a fifth of one of userfaultfd's,
// but all of the area's writes are emulated by KVM, which is not for page tables
// and atomics.
const autoPages = 16

func (e *Engine) checkPage(t *trap) error {
	all := hypervisor.AccessRead | hypervisor.AccessWrite | hypervisor.AccessExecute
	if t.Access == 0 || t.Access&^all != 0 {
		return fmt.Errorf("access %v", t.Access)
	}
	if err := e.checkRAM(t); err != nil {
		return err
	}
	writes := t.Access == hypervisor.AccessWrite
	switch t.Mechanism {
	case hypervisor.MechanismAuto:
		switch {
		case !writes:
			t.Mechanism = hypervisor.MechanismNoSlot
		case t.last-t.first >= autoPages && e.can.Userfault == nil || !e.can.ReadOnly:
			t.Mechanism = hypervisor.MechanismUserfault
		default:
			t.Mechanism = hypervisor.MechanismReadOnlySlot
		}
	case hypervisor.MechanismReadOnlySlot, hypervisor.MechanismUserfault:
		if !writes {
			return unsupported(fmt.Sprintf("%v by %s", t.Access, t.Mechanism), "it sees writes alone: use "+string(hypervisor.MechanismNoSlot))
		}
	case hypervisor.MechanismNoSlot:
	default:
		return unsupported(fmt.Sprintf("mechanism %q", t.Mechanism), "")
	}
	switch {
	case t.Mechanism == hypervisor.MechanismUserfault && e.can.Userfault != nil:
		return unsupported("page writes by userfaultfd", e.can.Userfault.Error())
	case t.Mechanism == hypervisor.MechanismReadOnlySlot && !e.can.ReadOnly:
		return unsupported("page writes by memory slots", "needs read-only memory slots (Linux >= 3.7)")
	}
	return nil
}

func (e *Engine) checkVCPU(t *trap) error {
	if t.VCPU != hypervisor.AllVCPUs && (t.VCPU < 0 || t.VCPU >= len(e.vcpus)) {
		return fmt.Errorf("vCPU %d: the VM has %d", t.VCPU, len(e.vcpus))
	}
	return nil
}

func (e *Engine) checkHardware(t *trap) error {
	switch t.Access {
	case hypervisor.AccessExecute:
		t.Size = 1 // the only one there is (SDM 3B, 17.2.5)
	case hypervisor.AccessWrite, hypervisor.AccessRead | hypervisor.AccessWrite:
	default:
		return unsupported(fmt.Sprintf("%v by a debug register", t.Access), "they know x, w and rw")
	}
	if !slices.Contains([]uint64{1, 2, 4, 8}, t.Size) || uint64(t.Virt)%t.Size != 0 {
		return fmt.Errorf("%d bytes at %v: a debug register watches 1, 2, 4 or 8 bytes, aligned", t.Size, t.Virt)
	}
	return e.checkVCPU(t)
}

func (e *Engine) checkPort(t *trap) error {
	if err := accessReadWrite(t); err != nil {
		return err
	}
	if uint32(t.Port)+t.count() > 1<<16 {
		return fmt.Errorf("%d ports from %#x", t.count(), t.Port)
	}
	if !e.vm.HasIRQChip() {
		return nil
	}
	// The kernel's own interrupt controllers and timer.
	for _, r := range [][2]uint32{{0x20, 2}, {0xa0, 2}, {0x4d0, 2}, {0x40, 4}, {0x61, 1}} {
		if p := uint32(t.Port); p < r[0]+r[1] && r[0] < p+t.count() {
			return unsupported(fmt.Sprintf("port %#x", r[0]), "the kernel's interrupt controllers and timer answer there, and nothing leaves it")
		}
	}
	return nil
}

func (e *Engine) checkMSR(t *trap) error {
	if err := accessReadWrite(t); err != nil {
		return err
	}
	if !e.can.MSRFilter {
		return unsupported("msr", "needs Linux >= 5.10 (KVM_CAP_X86_MSR_FILTER)")
	}
	end := uint64(t.MSR) + uint64(t.count())
	if end > 1<<32 {
		return fmt.Errorf("%d MSRs from %#x", t.count(), t.MSR)
	}
	// KVM's filter is not asked for them (api.rst, KVM_X86_SET_MSR_FILTER).
	if uint64(t.MSR) < 0x900 && end > 0x800 {
		return unsupported(fmt.Sprintf("msr %#x", max(t.MSR, 0x800)), "KVM does not filter the x2APIC's registers")
	}
	return nil
}

func accessReadWrite(t *trap) error {
	rw := hypervisor.AccessRead | hypervisor.AccessWrite
	if t.Access == 0 || t.Access&^rw != 0 {
		return fmt.Errorf("access %v: want r, w or rw", t.Access)
	}
	return nil
}

// rebuild derives all that hooks and KVM know from e.traps. All vCPUs stand. What
// fails leaves KVM as it was before, or is tried again by the next rebuild.
func (e *Engine) rebuild() error {
	list := make([]*trap, 0, len(e.traps))
	for _, t := range e.traps {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b *trap) int { return cmp.Compare(a.id, b.id) })
	if err := e.rebuildMSRs(list); err != nil {
		return err
	}
	if err := e.rebuildDebug(list); err != nil {
		return err
	}
	if err := e.rebuildPages(list); err != nil {
		return err
	}
	e.ports, e.shutdown = nil, nil
	for _, t := range list {
		switch t.Kind {
		case hypervisor.TrapPort:
			e.ports = append(e.ports, t)
		case hypervisor.TrapShutdown:
			e.shutdown = append(e.shutdown, t)
		}
	}
	var sync uint64
	if len(list) > 0 {
		sync = uint64(e.kvm.Check(kvmapi.CapSyncRegs)) & (kvmapi.SyncRegs | kvmapi.SyncSregs)
	}
	for _, v := range e.vcpus {
		v.core.Run().SetSync(sync)
	}
	return nil
}
