package insn

import "github.com/vantage-vmi/vantage/hypervisor"

// Ref is memory that an instruction uses, besides its own bytes.
type Ref struct {
	Addr uint64 // linear
	Size int    // bytes; 0: not known
	// Write says that it is written for certain; without it, it may be.
	Write bool
}

// Refs returns what in uses of memory, for r at in, in any mode: of a repeated
// string instruction what its next iteration uses. An instruction of which
// nothing is known (XSAVE, gathers, tables that INT reads) may use more.
func (in *Inst) Refs(r *hypervisor.Registers) []Ref {
	var refs []Ref
	if in.Mem && !in.noAccess() {
		if a, ok := in.Linear(r); ok {
			size, write := in.width()
			refs = append(refs, Ref{a, size, write})
		}
	}
	if in.Map != MapOne || in.Encoding != Legacy {
		return refs
	}
	op := in.Opcode
	size := in.OpSize
	if op&1 == 0 {
		size = 1
	}
	switch {
	case op >= 0xa0 && op <= 0xa3:
		refs = append(refs, Ref{in.linear(r, in.Seg, uint64(in.Imm)&sizeMask(in.AddrSize)), size, op >= 0xa2})
	case op >= 0x50 && op < 0x58, op == 0x68, op == 0x6a, op == 0x9c, op == 0xe8, op == 0xff && (in.ext() == 2 || in.ext() == 6):
		n := in.stack()
		refs = append(refs, Ref{in.linear(r, segSS, (r.RSP-uint64(n))&in.stackMask()), n, true})
	case op >= 0x58 && op < 0x60, op == 0x8f, op == 0x9d, op == 0xc2, op == 0xc3:
		refs = append(refs, Ref{in.linear(r, segSS, r.RSP&in.stackMask()), in.stack(), false})
	}
	m := sizeMask(in.AddrSize)
	switch op {
	case 0xa4, 0xa5, 0xa6, 0xa7, 0xac, 0xad, 0x6e, 0x6f:
		refs = append(refs, Ref{in.linear(r, in.Seg, r.RSI&m), size, false})
	}
	switch op {
	case 0xa4, 0xa5, 0xaa, 0xab, 0x6c, 0x6d:
		refs = append(refs, Ref{in.linear(r, segES, r.RDI&m), size, true})
	case 0xa6, 0xa7, 0xae, 0xaf:
		refs = append(refs, Ref{in.linear(r, segES, r.RDI&m), size, false})
	}
	return refs
}

// Writes reports whether in writes memory for certain, wherever that is.
func (in *Inst) Writes() bool {
	if in.Mem && !in.noAccess() {
		if _, write := in.width(); write {
			return true
		}
	}
	for _, ref := range in.Refs(&hypervisor.Registers{}) {
		if ref.Write {
			return true
		}
	}
	return false
}

// stack is the size of what PUSH and its like move.
func (in *Inst) stack() int {
	if in.Mode == Mode64 && in.OpSize == 4 {
		return 8
	}
	return in.OpSize
}

func (in *Inst) stackMask() uint64 {
	switch in.Mode {
	case Mode64:
		return ^uint64(0)
	case Mode32:
		return 0xffffffff
	}
	return 0xffff
}

// noAccess reports whether ModRM's memory is not touched.
func (in *Inst) noAccess() bool {
	switch {
	case in.Map == MapOne && in.Encoding == Legacy:
		return in.Opcode == 0x8d // LEA
	case in.Map == Map0F && in.Encoding == Legacy:
		return in.Opcode == 0x0d || in.Opcode >= 0x18 && in.Opcode <= 0x1f // prefetches, NOPs
	}
	return false
}

// width returns how many bytes ModRM's memory operand has, and whether it is
// written, where that is known.
func (in *Inst) width() (size int, write bool) {
	switch in.Map {
	case MapOne:
		return in.widthOne()
	case Map0F:
		if in.Encoding != Legacy || in.sse() {
			return in.widthSSE()
		}
		return in.width0F()
	case Map0F38:
		if in.Encoding == Legacy && in.Opcode == 0xf1 && in.Rep == 0 { // MOVBE
			return in.OpSize, true
		}
	case Map0F3A:
		switch in.Opcode {
		case 0x14:
			return 1, true
		case 0x15:
			return 2, true
		case 0x16:
			return in.OpSize, true
		case 0x17:
			return 4, true
		case 0x19, 0x39:
			if in.Encoding != Legacy {
				return 16, true
			}
		}
	}
	return 0, false
}

func (in *Inst) widthOne() (int, bool) {
	op := in.Opcode
	size := in.OpSize
	if op&1 == 0 {
		size = 1
	}
	switch {
	case op < 0x38:
		return size, op&7 < 2
	case op < 0x40, op == 0x84, op == 0x85, op == 0x8a, op == 0x8b:
		return size, false
	case op >= 0x80 && op <= 0x83:
		if op == 0x82 {
			size = 1
		}
		return size, in.ext() != 7
	case op >= 0x86 && op <= 0x89, op == 0xc0, op == 0xc1, op == 0xc6, op == 0xc7, op >= 0xd0 && op <= 0xd3:
		return size, true
	case op >= 0xd8 && op <= 0xdf:
		return x87(op, in.ext())
	case op == 0x8c:
		return 2, true
	case op == 0x8f:
		return in.stack(), true
	case op == 0x69, op == 0x6b:
		return in.OpSize, false
	case op == 0xf6, op == 0xf7:
		return size, in.ext() == 2 || in.ext() == 3
	case op == 0xfe:
		return 1, in.ext() < 2
	case op == 0xff:
		if in.ext() < 2 {
			return size, true
		}
		return in.stack(), false
	}
	return 0, false
}

// x87 returns what the stores of the x87 unit write; of others nothing.
func x87(op byte, ext int) (int, bool) {
	switch int(op)<<4 | ext {
	case 0xdd1, 0xdd2, 0xdd3, 0xdf7:
		return 8, true
	case 0xd92, 0xd93, 0xdb1, 0xdb2, 0xdb3:
		return 4, true
	case 0xdf1, 0xdf2, 0xdf3, 0xd97, 0xdd7:
		return 2, true
	case 0xdb7, 0xdf6:
		return 10, true
	}
	return 0, false
}

func (in *Inst) width0F() (int, bool) {
	op := in.Opcode
	size := in.OpSize
	if op&1 == 0 {
		size = 1
	}
	switch {
	case op >= 0x40 && op < 0x50:
		return in.OpSize, false
	case op >= 0x90 && op < 0xa0:
		return 1, true
	case op == 0xa3:
		return 0, false // a bit string: somewhere else
	case op == 0xab, op == 0xb3, op == 0xbb:
		return 0, true
	case op == 0xba:
		return in.OpSize, in.ext() > 4
	case op == 0xa4, op == 0xa5, op == 0xac, op == 0xad, op == 0xc3:
		return in.OpSize, true
	case op == 0xb0, op == 0xb1, op == 0xc0, op == 0xc1:
		return size, true
	case op == 0xb6, op == 0xbe:
		return 1, false
	case op == 0xb7, op == 0xbf:
		return 2, false
	case op == 0xc7 && in.ext() == 1: // CMPXCHG8B, CMPXCHG16B
		if in.REX&8 != 0 {
			return 16, true
		}
		return 8, true
	}
	return 0, false
}

// sse reports whether a legacy opcode of the map 0F is one of those that widthSSE
// knows.
func (in *Inst) sse() bool {
	switch in.Opcode {
	case 0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x28, 0x29, 0x2b, 0x6f, 0x7e, 0x7f, 0xd6, 0xe7:
		return true
	}
	return false
}

func (in *Inst) widthSSE() (int, bool) {
	full := max(in.VL, 16)
	switch in.Opcode {
	case 0x10, 0x11:
		n := full
		switch in.Rep {
		case 0xf3:
			n = 4
		case 0xf2:
			n = 8
		}
		return n, in.Opcode == 0x11
	case 0x13, 0x17:
		return 8, true
	case 0x29, 0x2b:
		return full, true
	case 0x28, 0x6f:
		if in.Opcode == 0x6f && !in.Data16 && in.Rep == 0 {
			return 8, false
		}
		return full, false
	case 0x7e:
		if in.Rep == 0xf3 {
			return 8, false
		}
		return max(in.OpSize, 4), true
	case 0x7f:
		if !in.Data16 && in.Rep == 0 {
			return 8, true
		}
		return full, true
	case 0xd6:
		return 8, in.Data16
	case 0xe7:
		if in.Data16 {
			return full, true
		}
		return 8, true
	}
	return 0, false
}
