package insn

// one does an instruction of the one-byte map.
func (e *doing) one() {
	op := e.Opcode
	// REP means something for string instructions, and makes PAUSE of NOP. Before
	// others it is reserved, or (F2 before a branch) of MPX.
	if e.Rep != 0 && !(op == 0x90 || op >= 0xa4 && op <= 0xab) {
		e.fail()
		return
	}
	switch {
	case op < 0x40:
		e.arithmetic(int(op>>3), op&7)
	case op >= 0x50 && op < 0x58:
		size := e.stackSize()
		e.push(size, e.get(e.r, e.low(), size))
	case op >= 0x58 && op < 0x60:
		size := e.stackSize()
		e.set(e.r, e.low(), size, e.pop(size))
	case op >= 0x70 && op < 0x80:
		e.jump(condition(op, e.r.RFLAGS))
	case op >= 0x90 && op < 0x98:
		e.exchange(op)
	case op >= 0xb0 && op < 0xb8:
		e.set(e.r, e.low(), 1, uint64(e.Imm))
	case op >= 0xb8 && op < 0xc0:
		e.set(e.r, e.low(), e.OpSize, uint64(e.Imm))
	default:
		e.oneRest(op)
	}
}

// low is the register in the opcode's low bits.
func (e *doing) low() int { return int(e.Opcode&7) | int(e.REX&1)<<3 }

func (e *doing) exchange(op byte) {
	n := e.low()
	switch {
	case op == 0x90 && n == rAX: // NOP; with F3 PAUSE
	case e.Rep != 0:
		e.fail()
	default:
		a, b := e.get(e.r, rAX, e.OpSize), e.get(e.r, n, e.OpSize)
		e.set(e.r, rAX, e.OpSize, b)
		e.set(e.r, n, e.OpSize, a)
	}
}

func (e *doing) oneRest(op byte) {
	size := e.byteOr()
	switch op {
	case 0x63: // MOVSXD
		e.set(e.r, e.Reg(), e.OpSize, signed(e.src(min(e.OpSize, 4)), min(e.OpSize, 4)))
	case 0x68, 0x6a:
		e.push(e.stackSize(), uint64(e.Imm))
	case 0x80, 0x81, 0x83:
		v, f, stores := alu(e.ext(), e.src(size), uint64(e.Imm), e.r.RFLAGS, size)
		e.finish(size, v, f, stores)
	case 0x84, 0x85: // TEST
		e.flags(arithmetic, resultFlags(e.src(size)&e.get(e.r, e.Reg(), size), size))
	case 0xa8, 0xa9:
		e.flags(arithmetic, resultFlags(e.get(e.r, rAX, size)&uint64(e.Imm), size))
	case 0x86, 0x87: // XCHG
		a, b := e.src(size), e.get(e.r, e.Reg(), size)
		e.change(size, b) // the address before the register that it may be made of
		e.set(e.r, e.Reg(), size, a)
	case 0x88, 0x89:
		e.dst(size, e.get(e.r, e.Reg(), size))
	case 0x8a, 0x8b:
		e.set(e.r, e.Reg(), size, e.src(size))
	case 0x8d: // LEA
		a, ok := e.offset(e.r)
		if !ok {
			e.fail()
			return
		}
		e.set(e.r, e.Reg(), e.OpSize, a)
	case 0x98: // CBW, CWDE, CDQE
		e.set(e.r, rAX, e.OpSize, signed(e.get(e.r, rAX, e.OpSize/2), e.OpSize/2))
	case 0x99: // CWD, CDQ, CQO
		e.set(e.r, rDX, e.OpSize, uint64(int64(signed(e.get(e.r, rAX, e.OpSize), e.OpSize))>>63))
	case 0xa0, 0xa1:
		e.set(e.r, rAX, size, e.read(e.linear(e.r, e.Seg, e.absolute()), size))
	case 0xa2, 0xa3:
		e.write(e.linear(e.r, e.Seg, e.absolute()), size, e.get(e.r, rAX, size))
	case 0xa4, 0xa5, 0xaa, 0xab:
		e.str(op, size)
	case 0xc3, 0xc2: // RET
		e.next = e.pop(e.branch())
		if op == 0xc2 {
			e.r.RSP += uint64(uint16(e.Imm))
		}
	case 0xc6, 0xc7:
		if e.ext() != 0 {
			e.fail()
			return
		}
		e.dst(size, uint64(e.Imm))
	case 0xc9: // LEAVE
		e.r.RSP = e.r.RBP
		n := e.stackSize()
		e.set(e.r, rBP, n, e.pop(n))
	case 0xe8:
		e.push(8, e.next)
		e.jump(true)
	case 0xe9, 0xeb:
		e.jump(true)
	case 0xf6, 0xf7:
		e.group3(size)
	case 0xfe, 0xff:
		e.group5(size)
	default:
		e.fail()
	}
}

// branch is the size of a near branch's target; with 0x66 processors differ.
func (e *doing) branch() int {
	if e.Data16 {
		e.fail()
	}
	return 8
}

func (e *doing) absolute() uint64 { return uint64(e.Imm) & sizeMask(e.AddrSize) }

func (e *doing) jump(taken bool) {
	e.branch()
	if taken {
		e.next += uint64(e.Imm)
	}
}

// signed sign-extends v of size bytes.
func signed(v uint64, size int) uint64 {
	shift := 64 - 8*size
	return uint64(int64(v<<shift) >> shift)
}

// finish stores what an arithmetic instruction gave, and its flags.
func (e *doing) finish(size int, v, f uint64, stores bool) {
	if stores {
		e.change(size, v)
	}
	e.flags(arithmetic, f)
}

// arithmetic does opcodes 00 to 3D: the n-th operation in form 0 to 5.
func (e *doing) arithmetic(n int, form byte) {
	size := e.byteOr()
	switch form {
	case 0, 1:
		v, f, stores := alu(n, e.src(size), e.get(e.r, e.Reg(), size), e.r.RFLAGS, size)
		e.finish(size, v, f, stores)
	case 2, 3:
		v, f, stores := alu(n, e.get(e.r, e.Reg(), size), e.src(size), e.r.RFLAGS, size)
		if stores {
			e.set(e.r, e.Reg(), size, v)
		}
		e.flags(arithmetic, f)
	case 4, 5:
		v, f, stores := alu(n, e.get(e.r, rAX, size), uint64(e.Imm), e.r.RFLAGS, size)
		if stores {
			e.set(e.r, rAX, size, v)
		}
		e.flags(arithmetic, f)
	default:
		e.fail()
	}
}

func (e *doing) group3(size int) {
	switch e.ext() {
	case 0, 1:
		e.flags(arithmetic, resultFlags(e.src(size)&uint64(e.Imm), size))
	case 2:
		e.change(size, ^e.src(size))
	case 3:
		v, f := sub(0, e.src(size), 0, size)
		e.finish(size, v, f, true)
	default:
		e.fail()
	}
}

func (e *doing) group5(size int) {
	const keepsCarry = arithmetic &^ FlagCF
	switch e.ext() {
	case 0:
		v, f := add(e.src(size), 1, 0, size)
		e.change(size, v)
		e.flags(keepsCarry, f)
		return
	case 1:
		v, f := sub(e.src(size), 1, 0, size)
		e.change(size, v)
		e.flags(keepsCarry, f)
		return
	}
	if e.Opcode == 0xfe {
		e.fail()
		return
	}
	switch e.ext() {
	case 2:
		target := e.src(e.branch())
		e.push(8, e.next)
		e.next = target
	case 4:
		e.next = e.src(e.branch())
	case 6:
		n := e.stackSize()
		e.push(n, e.src(n))
	default:
		e.fail()
	}
}

// str does one iteration of MOVS or STOS.
func (e *doing) str(op byte, size int) {
	if e.AddrSize != 8 {
		e.fail()
		return
	}
	if e.Rep != 0 && e.r.RCX == 0 {
		return // nothing at all
	}
	step := uint64(size)
	if e.r.RFLAGS&FlagDF != 0 {
		step = -step
	}
	v := e.get(e.r, rAX, size)
	if op < 0xaa {
		v = e.read(e.linear(e.r, e.Seg, e.r.RSI), size)
		e.r.RSI += step
	}
	e.write(e.r.RDI, size, v)
	e.r.RDI += step
	if e.Rep != 0 {
		e.r.RCX--
		if e.r.RCX != 0 {
			e.next = uint64(e.r.RIP)
		}
	}
}
