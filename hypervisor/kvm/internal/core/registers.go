package core

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// MSRs of arch/x86/include/asm/msr-index.h that hypervisor.Registers has.
const (
	msrSysenterCS   = 0x174
	msrSysenterESP  = 0x175
	msrSysenterEIP  = 0x176
	msrSTAR         = 0xc000_0081
	msrLSTAR        = 0xc000_0082
	msrCSTAR        = 0xc000_0083
	msrSyscallMask  = 0xc000_0084
	msrKernelGSBase = 0xc000_0102
	msrTSCAux       = 0xc000_0103
)

// Registers returns the vCPU's general, segment and control registers: out of
// the shared page where the last exit left them there, else by asking KVM.
func (v *VCPU) Registers() (r hypervisor.Registers, err error) {
	err = v.ReadRegisters(&r)
	return r, err
}

// ReadRegisters is Registers into r, which is all zero.
func (v *VCPU) ReadRegisters(r *hypervisor.Registers) error {
	r.VCPU = v.index
	if v.synced&kvmapi.SyncRegs != 0 {
		setGeneral(r, v.run.Regs())
	} else {
		regs, err := v.kvm.Regs()
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", v.index, err)
		}
		setGeneral(r, &regs)
	}
	if v.synced&kvmapi.SyncSregs != 0 {
		setSpecial(r, v.run.Sregs())
	} else {
		sregs, err := v.kvm.Sregs()
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", v.index, err)
		}
		setSpecial(r, &sregs)
	}
	return nil
}

// RIP returns the vCPU's instruction pointer.
func (v *VCPU) RIP() (hypervisor.VirtAddr, error) {
	if v.synced&kvmapi.SyncRegs != 0 {
		return hypervisor.VirtAddr(v.run.Regs().RIP), nil
	}
	regs, err := v.kvm.Regs()
	return hypervisor.VirtAddr(regs.RIP), err
}

// SetRIP moves the instruction pointer. A pending exit must be complete.
func (v *VCPU) SetRIP(rip hypervisor.VirtAddr) error {
	if v.synced&kvmapi.SyncRegs != 0 {
		v.run.Regs().RIP = uint64(rip)
		v.run.SetDirty(kvmapi.SyncRegs)
		return nil
	}
	regs, err := v.kvm.Regs()
	if err != nil {
		return err
	}
	regs.RIP = uint64(rip)
	return v.kvm.SetRegs(&regs)
}

// SetGeneral writes the general registers, where the last exit left them in the
// shared page without asking KVM. A pending exit must be complete.
func (v *VCPU) SetGeneral(r *hypervisor.Registers) error {
	*v.run.Regs() = general(r)
	if v.synced&kvmapi.SyncRegs != 0 {
		v.run.SetDirty(kvmapi.SyncRegs)
		return nil
	}
	return v.kvm.SetRegs(v.run.Regs())
}

// Flush gives KVM what SetRIP and SetGeneral have left in the shared page: before
// a request to KVM that reads the registers or depends on them.
func (v *VCPU) Flush() error {
	if v.run.Dirty()&kvmapi.SyncRegs == 0 {
		return nil
	}
	if err := v.kvm.SetRegs(v.run.Regs()); err != nil {
		return fmt.Errorf("vCPU %d: %w", v.index, err)
	}
	v.run.ClearDirty()
	return nil
}

// AllRegisters is Registers with the system-call MSRs.
func (v *VCPU) AllRegisters() (hypervisor.Registers, error) {
	r, err := v.Registers()
	if err != nil {
		return r, err
	}
	entries := msrEntries(&r)
	list := make([]kvmapi.MSREntry, len(entries))
	for i, e := range entries {
		list[i].Index = e.index
	}
	n, err := v.kvm.MSRs(list)
	if err != nil {
		return r, fmt.Errorf("vCPU %d: %w", v.index, err)
	}
	for i, e := range list[:n] {
		*entries[i].value = e.Data
	}
	if n == len(list) {
		r.Valid |= hypervisor.GroupMSR
	}
	return r, nil
}

// SetRegisters writes the groups that r.Valid names, after it has completed a
// pending exit.
func (v *VCPU) SetRegisters(r *hypervisor.Registers) error {
	if err := v.Complete(); err != nil {
		return err
	}
	if r.Valid.Has(hypervisor.GroupGeneral) {
		regs := general(r)
		if err := v.kvm.SetRegs(&regs); err != nil {
			return fmt.Errorf("vCPU %d: %w", v.index, err)
		}
		*v.run.Regs() = regs
	}
	if r.Valid&(hypervisor.GroupSegments|hypervisor.GroupControl) != 0 {
		s, err := v.kvm.Sregs()
		if err != nil {
			return fmt.Errorf("vCPU %d: %w", v.index, err)
		}
		special(&s, r)
		// An interrupt that KVM holds would be injected a second time.
		s.InterruptBitmap = [4]uint64{}
		if err := v.kvm.SetSregs(&s); err != nil {
			return fmt.Errorf("vCPU %d: %w", v.index, err)
		}
		*v.run.Sregs() = s
	}
	if r.Valid.Has(hypervisor.GroupMSR) {
		c := *r
		entries := msrEntries(&c)
		list := make([]kvmapi.MSREntry, len(entries))
		for i, e := range entries {
			list[i] = kvmapi.MSREntry{Index: e.index, Data: *e.value}
		}
		if n, err := v.kvm.SetMSRs(list); err != nil || n != len(list) {
			return fmt.Errorf("vCPU %d: write msr %#x: KVM refuses it (%d of %d written): %w", v.index, list[min(n, len(list)-1)].Index, n, len(list), err)
		}
	}
	return nil
}

type msrField struct {
	index uint32
	value *uint64
}

func msrEntries(r *hypervisor.Registers) []msrField {
	return []msrField{
		{msrSTAR, &r.STAR}, {msrLSTAR, &r.LSTAR}, {msrCSTAR, &r.CSTAR}, {msrSyscallMask, &r.SFMASK},
		{msrKernelGSBase, &r.KernelGSBase}, {msrSysenterCS, &r.SysenterCS}, {msrSysenterESP, &r.SysenterESP},
		{msrSysenterEIP, &r.SysenterEIP}, {msrTSCAux, &r.TSCAux},
	}
}

func setGeneral(r *hypervisor.Registers, k *kvmapi.Regs) {
	r.RAX, r.RBX, r.RCX, r.RDX = k.RAX, k.RBX, k.RCX, k.RDX
	r.RSI, r.RDI, r.RSP, r.RBP = k.RSI, k.RDI, k.RSP, k.RBP
	r.R8, r.R9, r.R10, r.R11 = k.R8, k.R9, k.R10, k.R11
	r.R12, r.R13, r.R14, r.R15 = k.R12, k.R13, k.R14, k.R15
	r.RIP, r.RFLAGS = hypervisor.VirtAddr(k.RIP), k.RFLAGS
	r.Valid |= hypervisor.GroupGeneral
}

func general(r *hypervisor.Registers) kvmapi.Regs {
	return kvmapi.Regs{
		RAX: r.RAX, RBX: r.RBX, RCX: r.RCX, RDX: r.RDX, RSI: r.RSI, RDI: r.RDI, RSP: r.RSP, RBP: r.RBP,
		R8: r.R8, R9: r.R9, R10: r.R10, R11: r.R11, R12: r.R12, R13: r.R13, R14: r.R14, R15: r.R15,
		RIP: uint64(r.RIP), RFLAGS: r.RFLAGS,
	}
}

func setSpecial(r *hypervisor.Registers, s *kvmapi.Sregs) {
	// One by one: this is done for each event of a trap.
	r.CS, r.DS, r.ES, r.FS = segment(&s.CS), segment(&s.DS), segment(&s.ES), segment(&s.FS)
	r.GS, r.SS, r.TR, r.LDT = segment(&s.GS), segment(&s.SS), segment(&s.TR), segment(&s.LDT)
	r.GDT = hypervisor.Table{Base: hypervisor.VirtAddr(s.GDT.Base), Limit: s.GDT.Limit}
	r.IDT = hypervisor.Table{Base: hypervisor.VirtAddr(s.IDT.Base), Limit: s.IDT.Limit}
	r.CR0, r.CR2, r.CR3, r.CR4, r.EFER = s.CR0, s.CR2, s.CR3, s.CR4, s.EFER
	r.Valid |= hypervisor.GroupSegments | hypervisor.GroupControl
}

func segment(k *kvmapi.Segment) hypervisor.Segment {
	return hypervisor.Segment{
		Selector: k.Selector, Base: k.Base, Limit: k.Limit,
		Attributes: uint16(k.Type&15) | uint16(k.S&1)<<4 | uint16(k.DPL&3)<<5 | uint16(k.Present&1)<<7 |
			uint16(k.AVL&1)<<12 | uint16(k.L&1)<<13 | uint16(k.DB&1)<<14 | uint16(k.G&1)<<15,
	}
}

// special writes the groups of r that are valid into s.
func special(s *kvmapi.Sregs, r *hypervisor.Registers) {
	if r.Valid.Has(hypervisor.GroupSegments) {
		c := *r
		for _, p := range segments(&c, s) {
			a := p.ours.Attributes
			*p.kvms = kvmapi.Segment{
				Selector: p.ours.Selector, Base: p.ours.Base, Limit: p.ours.Limit,
				Type: uint8(a & 15), S: uint8(a >> 4 & 1), DPL: uint8(a >> 5 & 3), Present: uint8(a >> 7 & 1),
				AVL: uint8(a >> 12 & 1), L: uint8(a >> 13 & 1), DB: uint8(a >> 14 & 1), G: uint8(a >> 15 & 1),
				Unusable: uint8(^a >> 7 & 1), // KVM_GET_SREGS gives an unusable segment as not present
			}
		}
		s.GDT = kvmapi.Dtable{Base: uint64(r.GDT.Base), Limit: r.GDT.Limit}
		s.IDT = kvmapi.Dtable{Base: uint64(r.IDT.Base), Limit: r.IDT.Limit}
	}
	if r.Valid.Has(hypervisor.GroupControl) {
		s.CR0, s.CR2, s.CR3, s.CR4, s.EFER = r.CR0, r.CR2, r.CR3, r.CR4, r.EFER
	}
}

type segmentPair struct {
	ours *hypervisor.Segment
	kvms *kvmapi.Segment
}

func segments(r *hypervisor.Registers, s *kvmapi.Sregs) [8]segmentPair {
	return [8]segmentPair{
		{&r.CS, &s.CS}, {&r.DS, &s.DS}, {&r.ES, &s.ES}, {&r.FS, &s.FS},
		{&r.GS, &s.GS}, {&r.SS, &s.SS}, {&r.TR, &s.TR}, {&r.LDT, &s.LDT},
	}
}
