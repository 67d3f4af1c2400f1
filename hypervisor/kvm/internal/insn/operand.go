package insn

import "github.com/vantage-vmi/vantage/hypervisor"

// Segment override prefixes.
const (
	segES = 0x26
	segCS = 0x2e
	segSS = 0x36
	segDS = 0x3e
	segFS = 0x64
	segGS = 0x65
)

// Numbers of general registers.
const (
	rAX = iota
	rCX
	rDX
	rBX
	rSP
	rBP
	rSI
	rDI
)

// GPR returns general register n of r, by its number in instructions.
func GPR(r *hypervisor.Registers, n int) *uint64 {
	switch n {
	case rAX:
		return &r.RAX
	case rCX:
		return &r.RCX
	case rDX:
		return &r.RDX
	case rBX:
		return &r.RBX
	case rSP:
		return &r.RSP
	case rBP:
		return &r.RBP
	case rSI:
		return &r.RSI
	case rDI:
		return &r.RDI
	case 8:
		return &r.R8
	case 9:
		return &r.R9
	case 10:
		return &r.R10
	case 11:
		return &r.R11
	case 12:
		return &r.R12
	case 13:
		return &r.R13
	case 14:
		return &r.R14
	}
	return &r.R15
}

// ModeOf returns the size of the code that r's vCPU runs.
func ModeOf(r *hypervisor.Registers) Mode {
	const protected, long, l, d = 1, 1 << 10, 1 << 13, 1 << 14
	switch {
	case r.EFER&long != 0 && r.CS.Attributes&l != 0:
		return Mode64
	case r.CR0&protected != 0 && r.RFLAGS&(1<<17) == 0 && r.CS.Attributes&d != 0:
		return Mode32
	}
	return Mode16
}

// PC returns the linear address of the instruction that r is at.
func PC(r *hypervisor.Registers) uint64 {
	switch ModeOf(r) {
	case Mode64:
		return uint64(r.RIP)
	case Mode32:
		return uint64(uint32(uint64(r.RIP) + r.CS.Base))
	}
	return uint64(uint32(uint64(uint16(r.RIP)) + r.CS.Base))
}

// sizeMask returns the bits of a value of n bytes.
func sizeMask(n int) uint64 {
	if n >= 8 {
		return ^uint64(0)
	}
	return 1<<(8*n) - 1
}

// offset returns the effective address of in's memory operand, within its segment.
func (in *Inst) offset(r *hypervisor.Registers) (uint64, bool) {
	if !in.Mem || in.form()&vsib != 0 || in.Encoding == EVEX && in.ModRM>>6 == 1 {
		return 0, false // EVEX scales a displacement of one byte
	}
	a := uint64(in.Disp)
	switch in.Base {
	case No:
	case RIP:
		a += uint64(r.RIP) + uint64(in.Len)
	default:
		a += *GPR(r, int(in.Base))
	}
	if in.Index != No {
		a += *GPR(r, int(in.Index)) * uint64(in.Scale)
	}
	return a & sizeMask(in.AddrSize), true
}

// Linear returns the linear address of in's memory operand, for r at in. It does
// not look at segment limits.
func (in *Inst) Linear(r *hypervisor.Registers) (uint64, bool) {
	a, ok := in.offset(r)
	if !ok {
		return 0, false
	}
	seg := in.Seg
	if seg == 0 && (in.Base == rSP || in.Base == rBP) {
		seg = segSS
	}
	return in.linear(r, seg, a), true
}

// linear adds the base of a segment (its prefix; 0: DS) to an address in it.
func (in *Inst) linear(r *hypervisor.Registers, seg byte, a uint64) uint64 {
	var base uint64
	switch seg {
	case segFS:
		base = r.FS.Base
	case segGS:
		base = r.GS.Base
	case segES:
		base = r.ES.Base
	case segCS:
		base = r.CS.Base
	case segSS:
		base = r.SS.Base
	default:
		base = r.DS.Base
	}
	if in.Mode == Mode64 {
		if seg != segFS && seg != segGS {
			base = 0
		}
		return base + a
	}
	return uint64(uint32(base + a))
}

// reg8 reads or writes a byte register: AH to BH without REX.
func (in *Inst) reg8(r *hypervisor.Registers, n int) uint64 {
	if in.REX == 0 && n >= 4 && n < 8 {
		return *GPR(r, n-4) >> 8 & 0xff
	}
	return *GPR(r, n) & 0xff
}

// get returns the low size bytes of general register n.
func (in *Inst) get(r *hypervisor.Registers, n, size int) uint64 {
	if size == 1 {
		return in.reg8(r, n)
	}
	return *GPR(r, n) & sizeMask(size)
}

// set writes the low size bytes of general register n: four clear the upper half.
func (in *Inst) set(r *hypervisor.Registers, n, size int, v uint64) {
	switch size {
	case 1:
		if in.REX == 0 && n >= 4 && n < 8 {
			p := GPR(r, n-4)
			*p = *p&^0xff00 | v&0xff<<8
			return
		}
		p := GPR(r, n)
		*p = *p&^0xff | v&0xff
	case 2:
		p := GPR(r, n)
		*p = *p&^0xffff | v&0xffff
	case 4:
		*GPR(r, n) = v & 0xffffffff
	default:
		*GPR(r, n) = v
	}
}
