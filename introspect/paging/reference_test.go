package paging

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// flat is RAM from address 0 on, without a Mapper.
type flat []byte

func (m flat) Ranges() []hypervisor.Range {
	return []hypervisor.Range{{Size: uint64(len(m))}}
}

func (m flat) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	n := 0
	if uint64(gpa) < uint64(len(m)) {
		n = copy(p, m[gpa:])
	}
	if n < len(p) {
		return n, &hypervisor.AddressError{Op: "read", Addr: gpa + hypervisor.PhysAddr(n), Err: hypervisor.ErrNotRAM}
	}
	return n, nil
}

// mappedFlat is flat with a Mapper.
type mappedFlat struct{ flat }

func (m mappedFlat) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	if uint64(gpa) >= uint64(len(m.flat)) {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	return m.flat[gpa:][:min(limit, uint64(len(m.flat))-uint64(gpa))], nil
}

// splitFlat is flat with a Mapper whose views end at odd places, as those of a
// memory file in many pieces do; views of some pages fail.
type splitFlat struct{ flat }

func (m splitFlat) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	const piece = 0x2a40
	if uint64(gpa) >= uint64(len(m.flat)) || gpa.Frame()%7 == 3 {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	end := min((uint64(gpa)/piece+1)*piece, uint64(len(m.flat)))
	return m.flat[gpa:min(end, uint64(gpa)+limit)], nil
}

// reference is a second walker, as plain as can be, written down from the
// tables of the SDM mode by mode, to compare the real one with.
type reference struct {
	ram  []byte
	root Root
}

type refResult struct {
	kind  Kind // 0: mapped
	level int
	phys  uint64
	size  uint64
	write bool
	user  bool
	nx    bool
	leaf  uint64 // the page's own entry
}

func (r reference) entry(addr uint64, size int) (uint64, bool) {
	if addr+uint64(size) > uint64(len(r.ram)) {
		return 0, false
	}
	if size == 4 {
		return uint64(binary.LittleEndian.Uint32(r.ram[addr:])), true
	}
	e := binary.LittleEndian.Uint64(r.ram[addr:])
	if bits(e, 0, 0) == 1 {
		e &^= bits(r.root.EncryptionMask, 51, 32) << 32
	}
	return e, true
}

func bits(v uint64, high, low uint) uint64 { return v << (63 - high) >> (63 - high + low) }

func (r reference) width() uint {
	if r.root.PhysBits == 0 {
		return 52
	}
	return uint(r.root.PhysBits)
}

// tooWide reports whether e has address bits from MAXPHYADDR to 51.
func (r reference) tooWide(e uint64) bool { return r.width() < 52 && bits(e, 51, r.width()) != 0 }

func (r reference) translate(va uint64) refResult {
	switch r.root.Mode {
	case Mode32:
		return r.translate32(va)
	case ModePAE:
		return r.translatePAE(va)
	case Mode5Level:
		if s := bits(va, 63, 56); s != 0 && s != 0xff {
			return refResult{kind: KindNonCanonical}
		}
	default:
		if s := bits(va, 63, 47); s != 0 && s != 0x1ffff {
			return refResult{kind: KindNonCanonical}
		}
	}
	level := 4
	if r.root.Mode == Mode5Level {
		level = 5
	}
	res := refResult{write: true, user: true}
	table := bits(uint64(r.root.CR3)&^r.root.EncryptionMask, 51, 12) << 12
	for ; level >= 1; level-- {
		low := uint(12 + 9*(level-1))
		e, ok := r.entry(table+bits(va, low+8, low)*8, 8)
		res.level = level
		switch {
		case !ok:
			return refResult{kind: KindUnreadable, level: level}
		case e == 0:
			return refResult{kind: KindNotPresent, level: level}
		case bits(e, 0, 0) == 0:
			return refResult{kind: KindSwapped, level: level}
		case r.tooWide(e), bits(e, 63, 63) == 1 && !r.root.NX, level >= 4 && bits(e, 7, 7) == 1:
			return refResult{kind: KindReserved, level: level}
		}
		res.write = res.write && bits(e, 1, 1) == 1
		res.user = res.user && bits(e, 2, 2) == 1
		res.nx = res.nx || bits(e, 63, 63) == 1
		large := bits(e, 7, 7) == 1 && (level == 2 || level == 3)
		switch {
		case level == 1:
			res.phys, res.size, res.leaf = bits(e, 51, 12)<<12+bits(va, 11, 0), 4<<10, e
			return res
		case large && level == 2:
			if bits(e, 20, 13) != 0 {
				return refResult{kind: KindReserved, level: level}
			}
			res.phys, res.size, res.leaf = bits(e, 51, 21)<<21+bits(va, 20, 0), 2<<20, e
			return res
		case large && level == 3:
			if bits(e, 29, 13) != 0 {
				return refResult{kind: KindReserved, level: level}
			}
			res.phys, res.size, res.leaf = bits(e, 51, 30)<<30+bits(va, 29, 0), 1<<30, e
			return res
		}
		table = bits(e, 51, 12) << 12
	}
	panic("not reached")
}

func (r reference) translatePAE(va uint64) refResult {
	if va > 0xffffffff {
		return refResult{kind: KindNonCanonical}
	}
	hole := func(e uint64, ok bool, level int) (refResult, bool) {
		k := Kind(0)
		switch {
		case !ok:
			k = KindUnreadable
		case e == 0:
			k = KindNotPresent
		case e&1 == 0:
			k = KindSwapped
		case r.tooWide(e), bits(e, 62, 52) != 0, bits(e, 63, 63) == 1 && (!r.root.NX || level == 3):
			k = KindReserved
		}
		return refResult{kind: k, level: level}, k != 0
	}
	pdpte, ok := r.entry(bits(uint64(r.root.CR3), 31, 5)<<5+va>>30*8, 8)
	if res, bad := hole(pdpte, ok, 3); bad {
		return res
	}
	if bits(pdpte, 2, 1) != 0 || bits(pdpte, 8, 6) != 0 { // bit 5: see newLayout
		return refResult{kind: KindReserved, level: 3}
	}
	pde, ok := r.entry(bits(pdpte, 51, 12)<<12+bits(va, 29, 21)*8, 8)
	if res, bad := hole(pde, ok, 2); bad {
		return res
	}
	res := refResult{write: bits(pde, 1, 1) == 1, user: bits(pde, 2, 2) == 1, nx: bits(pde, 63, 63) == 1, leaf: pde, level: 2}
	if bits(pde, 7, 7) == 1 {
		if bits(pde, 20, 13) != 0 {
			return refResult{kind: KindReserved, level: 2}
		}
		res.phys, res.size = bits(pde, 51, 21)<<21+bits(va, 20, 0), 2<<20
		return res
	}
	pte, ok := r.entry(bits(pde, 51, 12)<<12+bits(va, 20, 12)*8, 8)
	if res, bad := hole(pte, ok, 1); bad {
		return res
	}
	return refResult{
		write: res.write && bits(pte, 1, 1) == 1, user: res.user && bits(pte, 2, 2) == 1,
		nx: res.nx || bits(pte, 63, 63) == 1, leaf: pte, level: 1,
		phys: bits(pte, 51, 12)<<12 + bits(va, 11, 0), size: 4 << 10,
	}
}

func (r reference) translate32(va uint64) refResult {
	if va > 0xffffffff {
		return refResult{kind: KindNonCanonical}
	}
	pde, ok := r.entry(bits(uint64(r.root.CR3), 31, 12)<<12+va>>22*4, 4)
	switch {
	case !ok:
		return refResult{kind: KindUnreadable, level: 2}
	case pde == 0:
		return refResult{kind: KindNotPresent, level: 2}
	case pde&1 == 0:
		return refResult{kind: KindSwapped, level: 2}
	}
	res := refResult{write: pde&2 != 0, user: pde&4 != 0, leaf: pde, level: 2}
	if r.root.PSE && pde&0x80 != 0 {
		high := bits(pde, 20, 13)
		if pde&(1<<21) != 0 || r.width() < 40 && high>>(max(r.width(), 32)-32) != 0 {
			return refResult{kind: KindReserved, level: 2}
		}
		res.phys, res.size = high<<32+bits(pde, 31, 22)<<22+bits(va, 21, 0), 4<<20
		return res
	}
	pte, ok := r.entry(bits(pde, 31, 12)<<12+bits(va, 21, 12)*4, 4)
	switch {
	case !ok:
		return refResult{kind: KindUnreadable, level: 1}
	case pte == 0:
		return refResult{kind: KindNotPresent, level: 1}
	case pte&1 == 0:
		return refResult{kind: KindSwapped, level: 1}
	}
	res.write, res.user = res.write && pte&2 != 0, res.user && pte&4 != 0
	res.phys, res.size, res.leaf, res.level = bits(pte, 31, 12)<<12+bits(va, 11, 0), 4<<10, pte, 1
	return res
}
