package insn

import (
	"encoding/binary"
	"errors"
)

// MaxLen is the most bytes that an instruction has (SDM 2.3.11).
const MaxLen = 15

var (
	// ErrTruncated is returned when code ends within the instruction.
	ErrTruncated = errors.New("instruction goes on behind the bytes that are there")
	// ErrInvalid is returned for bytes that are no instruction, and for those of
	// which processors differ.
	ErrInvalid = errors.New("not an instruction")
)

// Mode is the size of code, in bits.
type Mode uint8

// Modes.
const (
	Mode16 Mode = 16
	Mode32 Mode = 32
	Mode64 Mode = 64
)

// Map is an opcode map.
type Map uint8

// Opcode maps.
const (
	MapOne  Map = iota // one byte
	Map0F              // 0F xx
	Map0F38            // 0F 38 xx
	Map0F3A            // 0F 3A xx
	Map5               // EVEX only
	Map6
	MapXOP8 // AMD's XOP, maps 8 to 10
	MapXOP9
	MapXOPA
)

// Encoding is how the opcode is prefixed.
type Encoding uint8

// Encodings.
const (
	Legacy Encoding = iota
	VEX
	EVEX
	XOP
)

// No is a register that is not there; RIP is the base of a RIP-relative operand.
const (
	No  = -1
	RIP = 16
)

// Inst is one instruction, taken apart.
type Inst struct {
	Len  int
	Mode Mode

	Rep      byte // 0, 0xf2 or 0xf3: the last of them
	Lock     bool
	Data16   bool // 0x66 is there
	Seg      byte // the last segment prefix, 0 when there is none
	REX      byte // 0 when there is none; for VEX and EVEX the bits that mean the same
	OpSize   int  // of the general operand in bytes: 2, 4, 8
	AddrSize int  // 2, 4, 8

	Encoding Encoding
	Map      Map
	Opcode   byte
	VL       int // vector length in bytes (VEX and EVEX)

	HasModRM bool
	ModRM    byte
	// Mem says that ModRM names memory: Base + Index*Scale + Disp.
	Mem         bool
	Base, Index int8 // registers, No, or RIP
	Scale       uint8
	Disp        int64

	Imm     int64 // sign-extended; an absolute address for opcodes A0 to A3
	ImmSize int   // in bytes; of ENTER, far pointers and the like: all of it
}

// Mod returns ModRM's mod field.
func (in *Inst) Mod() int { return int(in.ModRM >> 6) }

// Reg returns ModRM's reg field, extended.
func (in *Inst) Reg() int { return int(in.ModRM>>3&7) | int(in.REX&4)<<1 }

// RM returns ModRM's r/m field, extended.
func (in *Inst) RM() int { return int(in.ModRM&7) | int(in.REX&1)<<3 }

// ext returns the reg field as an extension of the opcode.
func (in *Inst) ext() int { return int(in.ModRM >> 3 & 7) }

type reader struct {
	code []byte
	pos  int
	err  error
}

func (r *reader) byte() byte {
	if r.err != nil {
		return 0
	}
	if r.pos >= MaxLen {
		r.err = ErrInvalid
		return 0
	}
	if r.pos >= len(r.code) {
		r.err = ErrTruncated
		return 0
	}
	r.pos++
	return r.code[r.pos-1]
}

func (r *reader) peek() byte {
	b := r.byte()
	if r.err == nil {
		r.pos--
	}
	return b
}

// signed reads n bytes, sign-extended.
func (r *reader) signed(n int) int64 {
	var b [8]byte
	for i := range n {
		b[i] = r.byte()
	}
	v := binary.LittleEndian.Uint64(b[:])
	switch n {
	case 1:
		return int64(int8(v))
	case 2:
		return int64(int16(v))
	case 4:
		return int64(int32(v))
	}
	return int64(v)
}

// Decode takes the first instruction of code apart.
func Decode(code []byte, mode Mode) (Inst, error) {
	r := &reader{code: code}
	in := Inst{Mode: mode, Base: No, Index: No}
	r.prefixes(&in)
	if r.err == nil {
		r.opcode(&in)
	}
	if r.err == nil && in.Lock && !in.lockable() {
		r.err = ErrInvalid
	}
	if r.err != nil {
		return Inst{}, r.err
	}
	in.Len = r.pos
	return in, nil
}

func (r *reader) prefixes(in *Inst) {
	addr := false
	for {
		b := r.peek()
		if r.err != nil {
			return
		}
		switch b {
		case 0xf0:
			in.Lock = true
		case 0xf2, 0xf3:
			in.Rep = b
		case 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65:
			// In 64-bit code the first four mean nothing, and take nothing away.
			if in.Mode != Mode64 || b == 0x64 || b == 0x65 {
				in.Seg = b
			}
		case 0x66:
			in.Data16 = true
		case 0x67:
			addr = true
		default:
			if in.Mode == Mode64 && b&0xf0 == 0x40 {
				// Only the last REX, right before the opcode, counts.
				in.REX = b
				r.pos++
				continue
			}
			in.sizes(addr)
			return
		}
		in.REX = 0
		r.pos++
	}
}

func (in *Inst) sizes(addr bool) {
	switch in.Mode {
	case Mode64:
		in.OpSize, in.AddrSize = 4, 8
		if in.Data16 {
			in.OpSize = 2
		}
		if in.REX&8 != 0 {
			in.OpSize = 8
		}
		if addr {
			in.AddrSize = 4
		}
	case Mode32:
		in.OpSize, in.AddrSize = 4, 4
		if in.Data16 {
			in.OpSize = 2
		}
		if addr {
			in.AddrSize = 2
		}
	default:
		in.OpSize, in.AddrSize = 2, 2
		if in.Data16 {
			in.OpSize = 4
		}
		if addr {
			in.AddrSize = 4
		}
	}
}

func (r *reader) opcode(in *Inst) {
	op := r.byte()
	if r.err != nil {
		return
	}
	switch {
	case op == 0x0f:
		in.Map, in.Opcode = Map0F, r.byte()
		switch in.Opcode {
		case 0x38:
			in.Map, in.Opcode = Map0F38, r.byte()
		case 0x3a:
			in.Map, in.Opcode = Map0F3A, r.byte()
		}
	case (op == 0xc4 || op == 0xc5 || op == 0x62) && (in.Mode == Mode64 || r.peek() >= 0xc0):
		r.vector(in, op)
	case op == 0x8f && r.peek()&0x1f >= 8:
		r.vector(in, op)
	default:
		in.Map, in.Opcode = MapOne, op
	}
	if r.err != nil {
		return
	}
	f := in.form()
	if f == bad {
		r.err = ErrInvalid
		return
	}
	if f&modRM != 0 {
		in.HasModRM = true
		in.ModRM = r.byte()
		r.memory(in, f)
	}
	r.immediate(in, f)
}

// vector reads a VEX, EVEX or XOP prefix and the opcode behind it.
func (r *reader) vector(in *Inst, op byte) {
	if in.Lock || in.Rep != 0 || in.Data16 || in.REX != 0 || in.Mode == Mode16 {
		r.err = ErrInvalid
		return
	}
	var pp, l byte
	switch op {
	case 0xc5:
		b := r.byte()
		in.Encoding, in.Map = VEX, Map0F
		in.REX = ^b >> 5 & 4
		pp, l = b&3, b>>2&1
	case 0xc4, 0x8f:
		b, c := r.byte(), r.byte()
		in.Encoding = VEX
		in.REX = ^b>>5&7 | c>>4&8
		pp, l = c&3, c>>2&1
		switch b & 0x1f {
		case 1:
			in.Map = Map0F
		case 2:
			in.Map = Map0F38
		case 3:
			in.Map = Map0F3A
		case 8:
			in.Map = MapXOP8
		case 9:
			in.Map = MapXOP9
		case 10:
			in.Map = MapXOPA
		default:
			r.err = ErrInvalid
		}
		if (op == 0x8f) != (in.Map >= MapXOP8) {
			r.err = ErrInvalid
		}
		if op == 0x8f {
			in.Encoding = XOP
		}
	case 0x62:
		b, c, d := r.byte(), r.byte(), r.byte()
		if r.err == nil && (c&4 == 0 || b&8 != 0) {
			r.err = ErrInvalid
			return
		}
		in.Encoding = EVEX
		in.REX = ^b>>5&7 | c>>4&8
		pp, l = c&3, d>>5&3
		switch b & 7 {
		case 1, 2, 3:
			in.Map = [...]Map{0, Map0F, Map0F38, Map0F3A}[b&7]
		case 5:
			in.Map = Map5
		case 6:
			in.Map = Map6
		default:
			r.err = ErrInvalid
		}
	}
	if r.err != nil {
		return
	}
	if in.Mode != Mode64 {
		in.REX &= 8 // the bits that choose among eight more registers are not there
	}
	in.REX |= 0x40
	in.VL = 16 << min(l, 2)
	switch pp {
	case 1:
		in.Data16 = true
	case 2:
		in.Rep = 0xf3
	case 3:
		in.Rep = 0xf2
	}
	in.OpSize = 4
	if in.REX&8 != 0 {
		in.OpSize = 8
	}
	in.Opcode = r.byte()
}

// memory reads what follows ModRM: SIB and displacement.
func (r *reader) memory(in *Inst, f form) {
	mod, rm := in.ModRM>>6, in.ModRM&7
	if mod == 3 || f&regOnly != 0 {
		return
	}
	in.Mem = true
	if in.AddrSize == 2 {
		r.memory16(in, mod, rm)
		return
	}
	in.Base = int8(rm | in.REX&1<<3)
	in.Scale = 1
	if rm == 4 {
		sib := r.byte()
		in.Scale = 1 << (sib >> 6)
		in.Index = int8(sib>>3&7 | in.REX&2<<2)
		if in.Index == 4 && f&vsib == 0 {
			in.Index = No
		}
		in.Base = int8(sib&7 | in.REX&1<<3)
		if sib&7 == 5 && mod == 0 {
			in.Base = No
			in.Disp = r.signed(4)
		}
	} else if rm == 5 && mod == 0 {
		in.Base = No
		if in.Mode == Mode64 {
			in.Base = RIP
		}
		in.Disp = r.signed(4)
	}
	switch mod {
	case 1:
		in.Disp = r.signed(1)
	case 2:
		in.Disp = r.signed(4)
	}
}

func (r *reader) memory16(in *Inst, mod, rm byte) {
	const bx, bp, si, di = 3, 5, 6, 7
	in.Scale = 1
	pair := [8][2]int8{{bx, si}, {bx, di}, {bp, si}, {bp, di}, {si, No}, {di, No}, {bp, No}, {bx, No}}[rm]
	in.Base, in.Index = pair[0], pair[1]
	switch {
	case mod == 0 && rm == 6:
		in.Base = No
		in.Disp = r.signed(2)
	case mod == 1:
		in.Disp = r.signed(1)
	case mod == 2:
		in.Disp = r.signed(2)
	}
}

func (r *reader) immediate(in *Inst, f form) {
	n := 0
	switch f & immMask {
	case immB:
		n = 1
	case immW:
		n = 2
	case immZ:
		n = min(in.OpSize, 4)
	case immV:
		n = in.OpSize
	case immBB:
		n = 2
	case immWB:
		n = 3
	case immFar:
		n = min(in.OpSize, 4) + 2
	case immAddr:
		n = in.AddrSize
	case immD:
		n = 4
	case immRel:
		n = min(in.OpSize, 4)
		// In 64-bit code Intel's processors take no notice of the prefix 0x66
		// before a near branch, AMD's do.
		if in.Mode == Mode64 && in.Data16 {
			r.err = ErrInvalid
			return
		}
	case immGroup3:
		if in.ModRM&0x30 == 0 { // TEST alone has one
			n = 1
			if in.Opcode == 0xf7 {
				n = min(in.OpSize, 4)
			}
		}
	}
	in.ImmSize = n
	in.Imm = r.signed(n)
}
