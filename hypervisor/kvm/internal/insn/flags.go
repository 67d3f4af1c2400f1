package insn

import "math/bits"

// Bits of RFLAGS (SDM 1, 3.4.3).
const (
	FlagCF = 1 << 0
	FlagPF = 1 << 2
	FlagAF = 1 << 4
	FlagZF = 1 << 6
	FlagSF = 1 << 7
	FlagTF = 1 << 8
	FlagIF = 1 << 9
	FlagDF = 1 << 10
	FlagOF = 1 << 11
	FlagRF = 1 << 16
	FlagVM = 1 << 17

	arithmetic = FlagCF | FlagPF | FlagAF | FlagZF | FlagSF | FlagOF
)

func flag(on bool, f uint64) uint64 {
	if on {
		return f
	}
	return 0
}

// resultFlags are those that depend on the result alone.
func resultFlags(v uint64, size int) uint64 {
	v &= sizeMask(size)
	return flag(v == 0, FlagZF) | flag(v>>(8*size-1) != 0, FlagSF) | flag(bits.OnesCount8(uint8(v))%2 == 0, FlagPF)
}

// add returns a+b+carry and its flags.
func add(a, b, carry uint64, size int) (v, flags uint64) {
	m := sizeMask(size)
	a, b = a&m, b&m
	sum, over := bits.Add64(a, b, carry)
	v = sum & m
	c := over != 0 || sum > m
	sign := 8*size - 1
	return v, resultFlags(v, size) | flag(c, FlagCF) | flag((a^b^v)&0x10 != 0, FlagAF) |
		flag((a^v)&(b^v)>>sign&1 != 0, FlagOF)
}

// sub returns a-b-borrow and its flags.
func sub(a, b, borrow uint64, size int) (v, flags uint64) {
	m := sizeMask(size)
	a, b = a&m, b&m
	diff, under := bits.Sub64(a, b, borrow)
	v = diff & m
	sign := 8*size - 1
	return v, resultFlags(v, size) | flag(under != 0, FlagCF) | flag((a^b^v)&0x10 != 0, FlagAF) |
		flag((a^b)&(a^v)>>sign&1 != 0, FlagOF)
}

// alu does the n-th of ADD, OR, ADC, SBB, AND, SUB, XOR, CMP. stores is false
// for CMP.
func alu(n int, a, b, rflags uint64, size int) (v, flags uint64, stores bool) {
	carry := rflags & FlagCF
	switch n {
	case 0:
		v, flags = add(a, b, 0, size)
	case 1:
		v = (a | b) & sizeMask(size)
		flags = resultFlags(v, size)
	case 2:
		v, flags = add(a, b, carry, size)
	case 3:
		v, flags = sub(a, b, carry, size)
	case 4:
		v = a & b & sizeMask(size)
		flags = resultFlags(v, size)
	case 6:
		v = (a ^ b) & sizeMask(size)
		flags = resultFlags(v, size)
	default:
		v, flags = sub(a, b, 0, size)
	}
	return v, flags, n != 7
}

// condition reports whether condition code n (of Jcc, SETcc, CMOVcc) holds.
func condition(n byte, f uint64) bool {
	var on bool
	switch n >> 1 & 7 {
	case 0:
		on = f&FlagOF != 0
	case 1:
		on = f&FlagCF != 0
	case 2:
		on = f&FlagZF != 0
	case 3:
		on = f&(FlagCF|FlagZF) != 0
	case 4:
		on = f&FlagSF != 0
	case 5:
		on = f&FlagPF != 0
	case 6:
		on = f&FlagSF != 0 != (f&FlagOF != 0)
	case 7:
		on = f&FlagZF != 0 || f&FlagSF != 0 != (f&FlagOF != 0)
	}
	return on != (n&1 != 0)
}
