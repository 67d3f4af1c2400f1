package kvmrun

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Constants of include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h;
// abi_test.go checks them against the installed headers.
const (
	kvmCheckExtension = 0xae03 // KVM_CHECK_EXTENSION
	kvmCapSyncRegs    = 74     // KVM_CAP_SYNC_REGS
	syncX86Regs       = 1 << 0 // KVM_SYNC_X86_REGS
	syncX86Sregs      = 1 << 1 // KVM_SYNC_X86_SREGS

	// Offsets in struct kvm_run, in bytes.
	offValidRegs = 288 // kvm_valid_regs
	offSyncRegs  = 304 // s.regs
	sizeRunHead  = 304 + sizeSyncRegs

	// struct kvm_sync_regs: struct kvm_regs, struct kvm_sregs, …
	sizeRegs     = 144
	offSregs     = sizeRegs
	sizeSregs    = 312
	sizeSyncRegs = sizeRegs + sizeSregs

	// struct kvm_regs: rax … r15, then these.
	offRIP    = 128
	offRFLAGS = 136

	// struct kvm_sregs: cs ds es fs gs ss tr ldt, gdt, idt, then these.
	sizeSegment = 24
	sizeDtable  = 16
	offGDT      = 8 * sizeSegment
	offIDT      = offGDT + sizeDtable
	offCR0      = offIDT + sizeDtable
	offCR2      = offCR0 + 8
	offCR3      = offCR0 + 16
	offCR4      = offCR0 + 24
	offEFER     = offCR0 + 40 // behind cr8
)

// decode reads a struct kvm_sync_regs.
func decode(b []byte, vcpu int) hypervisor.Registers {
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	r := hypervisor.Registers{
		VCPU:   vcpu,
		Valid:  hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl,
		RIP:    hypervisor.VirtAddr(u64(offRIP)),
		RFLAGS: u64(offRFLAGS),
	}
	for i, dst := range []*uint64{
		&r.RAX, &r.RBX, &r.RCX, &r.RDX, &r.RSI, &r.RDI, &r.RSP, &r.RBP,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15,
	} {
		*dst = u64(8 * i)
	}
	s := b[offSregs:]
	for i, dst := range []*hypervisor.Segment{&r.CS, &r.DS, &r.ES, &r.FS, &r.GS, &r.SS, &r.TR, &r.LDT} {
		*dst = segment(s[i*sizeSegment:])
	}
	for off, dst := range map[int]*hypervisor.Table{offGDT: &r.GDT, offIDT: &r.IDT} {
		dst.Base = hypervisor.VirtAddr(binary.LittleEndian.Uint64(s[off:]))
		dst.Limit = binary.LittleEndian.Uint16(s[off+8:])
	}
	for off, dst := range map[int]*uint64{offCR0: &r.CR0, offCR2: &r.CR2, offCR3: &r.CR3, offCR4: &r.CR4, offEFER: &r.EFER} {
		*dst = binary.LittleEndian.Uint64(s[off:])
	}
	return r
}

// segment reads a struct kvm_segment: base, limit, selector, then a byte each
// of type, present, dpl, db, s, l, g, avl, unusable.
func segment(b []byte) hypervisor.Segment {
	bit := func(i int) uint16 { return uint16(b[i] & 1) }
	return hypervisor.Segment{
		Base:     binary.LittleEndian.Uint64(b),
		Limit:    binary.LittleEndian.Uint32(b[8:]),
		Selector: binary.LittleEndian.Uint16(b[12:]),
		Attributes: uint16(b[14]&15) | bit(18)<<4 | uint16(b[16]&3)<<5 | bit(15)<<7 |
			bit(21)<<12 | bit(19)<<13 | bit(17)<<14 | bit(20)<<15,
	}
}
