package insn

// two does an instruction of the map 0F.
func (e *doing) two() {
	op := e.Opcode
	switch {
	case op == 0x1e && e.Rep == 0xf3 && e.ModRM == 0xfa, // ENDBR64: without CET nothing
		op == 0x1f && e.Rep == 0: // the long NOPs do not touch their operand
	case e.Rep != 0:
		e.fail()
	case op >= 0x40 && op < 0x50: // CMOVcc reads its operand in any case
		v := e.src(e.OpSize)
		if !condition(op, e.r.RFLAGS) {
			v = e.get(e.r, e.Reg(), e.OpSize)
		}
		e.set(e.r, e.Reg(), e.OpSize, v)
	case op >= 0x80 && op < 0x90:
		e.jump(condition(op, e.r.RFLAGS))
	case op >= 0x90 && op < 0xa0:
		e.dst(1, flag(condition(op, e.r.RFLAGS), 1))
	default:
		e.twoRest(op)
	}
}

func (e *doing) twoRest(op byte) {
	size := e.byteOr()
	switch op {
	case 0xb6, 0xb7: // MOVZX
		e.set(e.r, e.Reg(), e.OpSize, e.src(1+int(op&1)))
	case 0xbe, 0xbf: // MOVSX
		n := 1 + int(op&1)
		e.set(e.r, e.Reg(), e.OpSize, signed(e.src(n), n))
	case 0xa3:
		e.bit(0, int64(signed(e.get(e.r, e.Reg(), e.OpSize), e.OpSize)), true)
	case 0xab:
		e.bit(1, int64(signed(e.get(e.r, e.Reg(), e.OpSize), e.OpSize)), true)
	case 0xb3:
		e.bit(2, int64(signed(e.get(e.r, e.Reg(), e.OpSize), e.OpSize)), true)
	case 0xbb:
		e.bit(3, int64(signed(e.get(e.r, e.Reg(), e.OpSize), e.OpSize)), true)
	case 0xba:
		if e.ext() < 4 {
			e.fail()
			return
		}
		e.bit(e.ext()-4, e.Imm, false)
	case 0xb0, 0xb1: // CMPXCHG
		if !e.Mem { // processors differ in the upper half of a register that is not equal
			e.fail()
			return
		}
		old := e.src(size)
		_, f, _ := alu(7, e.get(e.r, rAX, size), old, 0, size)
		if f&FlagZF != 0 {
			e.change(size, e.get(e.r, e.Reg(), size))
		} else {
			e.change(size, old) // the processor writes in any case
			e.set(e.r, rAX, size, old)
		}
		e.flags(arithmetic, f)
	case 0xc0, 0xc1: // XADD
		old, by := e.src(size), e.get(e.r, e.Reg(), size)
		v, f := add(old, by, 0, size)
		if e.Mem {
			e.change(size, v)
			e.set(e.r, e.Reg(), size, old)
		} else {
			e.set(e.r, e.Reg(), size, old)
			e.set(e.r, e.RM(), size, v)
		}
		e.flags(arithmetic, f)
	case 0xc3: // MOVNTI
		if !e.Mem || e.Data16 {
			e.fail()
			return
		}
		e.dst(e.OpSize, e.get(e.r, e.Reg(), e.OpSize))
	default:
		e.fail()
	}
}

// bit does BT, BTS, BTR or BTC of bit n. That of a register reaches beyond its
// operand in memory (SDM 2A, "bit string").
func (e *doing) bit(op int, n int64, far bool) {
	size := e.OpSize
	width := int64(8 * size)
	var addr uint64
	if e.Mem {
		a, ok := e.Linear(e.r)
		if !ok {
			e.fail()
			return
		}
		if far {
			if e.AddrSize != 8 {
				e.fail()
				return
			}
			a += uint64((n >> bitLog(size)) * int64(size))
		}
		addr = a
	}
	n &= width - 1
	var v uint64
	if e.Mem {
		v = e.read(addr, size)
	} else {
		v = e.src(size)
	}
	mask := uint64(1) << n
	e.flags(FlagCF, flag(v&mask != 0, FlagCF))
	switch op {
	case 1:
		v |= mask
	case 2:
		v &^= mask
	case 3:
		v ^= mask
	default:
		return
	}
	if !e.Mem {
		e.dst(size, v)
		return
	}
	e.rmw = true
	e.write(addr, size, v)
}

// bitLog is log2 of the number of bits in size bytes.
func bitLog(size int) int {
	switch size {
	case 2:
		return 4
	case 4:
		return 5
	}
	return 6
}
