package insn

// form is what follows an opcode.
type form uint16

const (
	none  form = 0
	modRM form = 1 << iota
	// regOnly: ModRM names registers whatever its mod field says.
	regOnly
	// vsib: the index is a vector register.
	vsib
)

// Kinds of immediate operands.
const (
	immB      form = (iota + 1) << 8 // a byte
	immW                             // two bytes
	immZ                             // two or four, by the operand's size
	immV                             // two, four or eight
	immBB                            // two of a byte
	immWB                            // ENTER
	immFar                           // a far pointer
	immAddr                          // an absolute address
	immD                             // four bytes
	immRel                           // a near branch's distance
	immGroup3                        // of opcodes F6 and F7
	immMask   form = 0xf00

	bad form = 0xffff
)

// form returns what follows in's opcode.
func (in *Inst) form() form {
	switch in.Map {
	case MapOne:
		return in.formOne()
	case Map0F:
		return in.form0F()
	case Map0F38, Map6, MapXOP9:
		f := modRM
		// Gathers and scatters.
		if in.Map == Map0F38 && in.Encoding != Legacy && (in.Opcode&0xfc == 0x90 || in.Opcode&0xfc == 0xa0 || in.Opcode&0xfe == 0xc6) {
			f |= vsib
		}
		return f
	case Map0F3A, MapXOP8:
		return modRM | immB
	case Map5:
		return modRM
	case MapXOPA:
		return modRM | immD
	}
	return bad
}

func (in *Inst) formOne() form {
	op := in.Opcode
	long := in.Mode == Mode64
	switch {
	case op < 0x40:
		switch op & 7 {
		case 0, 1, 2, 3:
			return modRM
		case 4:
			return immB
		case 5:
			return immZ
		}
		if long { // PUSH and POP of segment registers, DAA and its like
			return bad
		}
		return none
	case op < 0x60: // INC, DEC (REX in 64-bit code), PUSH, POP
		return none
	case op >= 0x70 && op < 0x80:
		return immB
	case op >= 0xb0 && op < 0xb8:
		return immB
	case op >= 0xb8 && op < 0xc0:
		return immV
	case op >= 0xd8 && op < 0xe0:
		return modRM
	}
	if long {
		switch op {
		case 0x60, 0x61, 0x62, 0x82, 0x9a, 0xc4, 0xc5, 0xce, 0xd4, 0xd5, 0xd6, 0xea:
			return bad
		}
	}
	switch op {
	case 0x62, 0x63, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f,
		0xc4, 0xc5, 0xd0, 0xd1, 0xd2, 0xd3, 0xfe, 0xff:
		return modRM
	case 0x68, 0xa9:
		return immZ
	case 0x69, 0x81, 0xc7:
		return modRM | immZ
	case 0x6b, 0x80, 0x82, 0x83, 0xc0, 0xc1, 0xc6:
		return modRM | immB
	case 0x6a, 0xa8, 0xcd, 0xd4, 0xd5, 0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xeb:
		return immB
	case 0x9a, 0xea:
		return immFar
	case 0xa0, 0xa1, 0xa2, 0xa3:
		return immAddr
	case 0xc2, 0xca:
		return immW
	case 0xc8:
		return immWB
	case 0xe8, 0xe9:
		return immRel
	case 0xf6, 0xf7:
		return modRM | immGroup3
	case 0x0f, 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3:
		return bad // prefixes: they do not come here
	}
	return none
}

func (in *Inst) form0F() form {
	op := in.Opcode
	if in.Encoding != Legacy && op == 0x77 { // VZEROUPPER
		return none
	}
	switch {
	case op >= 0x20 && op <= 0x23: // MOV of control and debug registers
		return modRM | regOnly
	case op >= 0x80 && op < 0x90:
		if in.Encoding != Legacy {
			return bad
		}
		return immRel
	case op >= 0xc8 && op < 0xd0: // BSWAP
		return none
	}
	switch op {
	case 0x04, 0x0a, 0x0c, 0x24, 0x25, 0x26, 0x27, 0x36, 0x39, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x7a, 0x7b, 0xa6, 0xa7:
		if in.Encoding == EVEX && (op == 0x7a || op == 0x7b) {
			return modRM
		}
		return bad
	case 0x05, 0x06, 0x07, 0x08, 0x09, 0x0b, 0x0e, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x37, 0x77, 0xa0, 0xa1, 0xa2, 0xa8, 0xa9, 0xaa:
		return none
	case 0x0f, 0x70, 0x71, 0x72, 0x73, 0xa4, 0xac, 0xba, 0xc2, 0xc4, 0xc5, 0xc6: // 0F 0F: 3DNow!'s opcode comes last
		return modRM | immB
	case 0x78:
		// AMD's EXTRQ and INSERTQ; VMREAD without a prefix.
		if in.Encoding == Legacy && (in.Data16 || in.Rep == 0xf2) {
			return modRM | immBB
		}
	}
	return modRM
}
