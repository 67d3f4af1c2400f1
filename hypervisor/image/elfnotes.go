package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Notes of an ELF core that are read here.
const (
	noteHeaderSize = 12
	ntPRSTATUS     = 1 // name "CORE": the general registers, as the kernel's elf_prstatus
	nameCore       = "CORE"
	nameQEMU       = "QEMU" // type 0: QEMUCPUState
	nameVMCOREINFO = "VMCOREINFO"
)

// parseNotes reads the notes b, which lie at off in the file. QEMU writes one
// NT_PRSTATUS for each vCPU, in order of their index, and then one "QEMU" for each.
func (s *source) parseNotes(im *parsed, b []byte, off int64, machine elf.Machine) error {
	var general, full []hypervisor.Registers
	for pos := 0; pos < len(b); {
		if len(b)-pos < noteHeaderSize {
			break // padding
		}
		le := binary.LittleEndian
		namesz, descsz := uint64(le.Uint32(b[pos:])), uint64(le.Uint32(b[pos+4:]))
		typ := le.Uint32(b[pos+8:])
		name := uint64(pos + noteHeaderSize)
		desc := name + align4(namesz)
		if end := desc + descsz; end > uint64(len(b)) {
			if s.partial {
				break
			}
			return s.errorf(off+int64(pos), "ELF note: name of %d bytes and data of %d go beyond the notes' end", namesz, descsz)
		}
		data := b[desc : desc+descsz]
		switch string(bytes.TrimRight(b[name:name+namesz], "\x00")) {
		case nameCore:
			if typ != ntPRSTATUS {
				break
			}
			if r, ok := decodePRSTATUS(data, machine); ok {
				r.VCPU = len(general)
				general = append(general, r)
			}
		case nameQEMU:
			r, err := decodeQEMU(data, machine)
			if err != "" {
				return s.errorf(off+int64(desc), "QEMU's CPU note: %s", err)
			}
			r.VCPU = len(full)
			full = append(full, r)
		case nameVMCOREINFO:
			im.vmcoreinfo = data
		}
		pos = int(min(desc+align4(descsz), uint64(len(b))))
	}
	if len(full) > 0 {
		im.regs = full
	} else if len(im.regs) == 0 {
		im.regs = general
	}
	return nil
}

func align4(n uint64) uint64 { return (n + 3) &^ 3 }

// Offsets in x86-64's struct elf_prstatus (include/linux/elfcore.h) of pr_reg,
// a struct user_regs_struct (arch/x86/include/asm/user_64.h), and its size.
const (
	prRegOffset = 112
	prRegCount  = 27
)

// decodePRSTATUS reads an x86-64 NT_PRSTATUS; of a 32-bit one it returns false.
func decodePRSTATUS(b []byte, machine elf.Machine) (hypervisor.Registers, bool) {
	var r hypervisor.Registers
	if machine != elf.EM_X86_64 || len(b) < prRegOffset+prRegCount*8 {
		return r, false
	}
	var discard uint64
	var rip uint64
	for i, p := range []*uint64{
		&r.R15, &r.R14, &r.R13, &r.R12, &r.RBP, &r.RBX, &r.R11, &r.R10, &r.R9, &r.R8,
		&r.RAX, &r.RCX, &r.RDX, &r.RSI, &r.RDI, &discard /* orig_ax */, &rip, &discard, /* cs */
		&r.RFLAGS, &r.RSP,
	} {
		*p = binary.LittleEndian.Uint64(b[prRegOffset+i*8:])
	}
	r.RIP = hypervisor.VirtAddr(rip)
	r.Valid = hypervisor.GroupGeneral
	return r, true
}

// QEMU's struct QEMUCPUState (target/i386/arch_dump.c), version 1.
const (
	qemuStateVersion = 1
	qemuStateSize    = 440
	qemuSegmentSize  = 24 // u32 selector, limit, flags, pad; u64 base
)

// Bits that are derived, not read: see decodeQEMU.
const (
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10
	eferNXE = 1 << 11
)

// decodeQEMU reads a QEMUCPUState, or says what is wrong with it. The note has
// no EFER, yet without it CR3 is of no use, so EFER is derived: QEMU
// writes e_machine EM_X86_64 just when the first vCPU is in long mode (LME, LMA); and
// NXE is assumed wherever the paging mode has it, as every system sets it that
// uses such modes on a CPU of this century.
func decodeQEMU(b []byte, machine elf.Machine) (hypervisor.Registers, string) {
	var r hypervisor.Registers
	le := binary.LittleEndian
	if len(b) < qemuStateSize {
		return r, "too short"
	}
	if le.Uint32(b) != qemuStateVersion {
		return r, "unknown version"
	}
	if n := le.Uint32(b[4:]); n < qemuStateSize || uint64(n) > uint64(len(b)) {
		return r, "its size field is wrong"
	}
	b = b[8:]
	next := func() uint64 {
		v := le.Uint64(b)
		b = b[8:]
		return v
	}
	for _, p := range []*uint64{
		&r.RAX, &r.RBX, &r.RCX, &r.RDX, &r.RSI, &r.RDI, &r.RSP, &r.RBP,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15,
	} {
		*p = next()
	}
	r.RIP, r.RFLAGS = hypervisor.VirtAddr(next()), next()
	segment := func() hypervisor.Segment {
		// flags are the upper half of the descriptor, so its bits 40-55 are bits
		// 8-23; 48-51 are a part of the limit.
		g := hypervisor.Segment{
			Selector:   uint16(le.Uint32(b)),
			Limit:      le.Uint32(b[4:]),
			Attributes: uint16(le.Uint32(b[8:])>>8) & 0xf0ff,
			Base:       le.Uint64(b[16:]),
		}
		b = b[qemuSegmentSize:]
		return g
	}
	for _, p := range []*hypervisor.Segment{&r.CS, &r.DS, &r.ES, &r.FS, &r.GS, &r.SS, &r.LDT, &r.TR} {
		*p = segment()
	}
	for _, p := range []*hypervisor.Table{&r.GDT, &r.IDT} {
		g := segment()
		*p = hypervisor.Table{Base: hypervisor.VirtAddr(g.Base), Limit: uint16(g.Limit)}
	}
	r.CR0 = next()
	next() // CR1 does not exist
	r.CR2, r.CR3, r.CR4 = next(), next(), next()
	r.KernelGSBase = next()
	if r.CR4&cr4PAE != 0 {
		r.EFER = eferNXE
		if machine == elf.EM_X86_64 {
			r.EFER |= eferLME | eferLMA
		}
	}
	// The MSR group is not Valid: of its nine registers this is one.
	r.Valid = hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl
	return r, ""
}
