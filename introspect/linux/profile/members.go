package profile

import (
	"encoding/binary"
	"math"
	"strings"
)

const (
	// maxHops bounds chains of typedefs, qualifiers and arrays.
	maxHops = 64
	// maxNesting bounds how deep anonymous members are looked into, maxMembers
	// how many are looked at in all for one path, whatever number of types has
	// its first name. No struct has more than 1<<16 of its own.
	maxNesting = 32
	maxMembers = 1 << 17
)

// fieldOf returns where the member that path names lies in bt; without more,
// bt itself. budget is how many members may be looked at.
func (t *Types) fieldOf(bt btfType, path string, more bool, budget *int) (Field, error) {
	at := member{typ: bt.id}
	base := uint64(0) // in bits
	for more {
		var name string
		name, path, more = strings.Cut(path, ".")
		st, err := t.resolve(at.typ)
		if err != nil {
			return Field{}, err
		}
		m, ok, err := t.findMember(st, name, maxNesting, budget)
		if err != nil {
			return Field{}, err
		}
		if !ok {
			return Field{}, ErrNoType
		}
		base += uint64(m.bit)
		at = m
	}
	return t.describe(at, base)
}

// findMember finds name in st, a struct or union, through anonymous members.
// The result's bit counts from st's start.
func (t *Types) findMember(st btfType, name string, depth int, budget *int) (member, bool, error) {
	if st.kind != btfStruct && st.kind != btfUnion {
		return member{}, false, nil
	}
	for i := range st.vlen {
		if *budget--; *budget < 0 || depth == 0 {
			return member{}, false, btfDamaged(t.base+uint64(t.offs[st.id]), "type %d: anonymous members without end", st.id)
		}
		m := st.member(i)
		if m.nameOff != 0 {
			if t.nameIs(m.nameOff, name) {
				return m, true, nil
			}
			continue
		}
		inner, err := t.resolve(m.typ)
		if err != nil {
			return member{}, false, err
		}
		found, ok, err := t.findMember(inner, name, depth-1, budget)
		if err != nil || ok {
			if found.bit > math.MaxUint32-m.bit {
				return member{}, false, btfDamaged(t.base+uint64(t.offs[st.id]), "type %d: member %d: offset", st.id, i)
			}
			found.bit += m.bit
			return found, ok, err
		}
	}
	return member{}, false, nil
}

// describe makes a Field of m, which begins at bit.
func (t *Types) describe(m member, bit uint64) (Field, error) {
	size, err := t.sizeOf(m.typ)
	if err != nil {
		return Field{}, err
	}
	bt, err := t.resolve(m.typ)
	if err != nil {
		return Field{}, err
	}
	f := Field{Size: size, Kind: kindOf(bt.kind)}
	if bt.kind == btfInt {
		enc := binary.LittleEndian.Uint32(bt.data)
		f.Signed = enc>>24&1 != 0
		// Bit-fields as written before kind_flag: an int of few bits.
		if w := enc & 0xff; m.bits == 0 && uint64(w) != size*8 {
			m.bits = w
			bit += uint64(enc >> 16 & 0xff)
		}
	}
	if m.bits == 0 && bit%8 != 0 {
		return Field{}, btfDamaged(t.base, "type %d: member at bit %d", m.typ, bit)
	}
	f.Offset, f.BitOffset, f.BitSize = bit/8, uint32(bit%8), m.bits
	if m.bits == 0 {
		f.BitOffset = 0
	}
	switch bt.kind {
	case btfEnum, btfEnum64:
		f.Signed = t.isSigned(bt)
		f.TypeName = t.name(bt.nameOff)
	case btfPtr:
		f.TypeName = t.targetName(bt.sizeOrRef)
	case btfArray:
		if err := t.describeArray(&f, bt); err != nil {
			return Field{}, err
		}
	default:
		f.TypeName = t.name(bt.nameOff)
	}
	return f, nil
}

// describeArray fills in what is known of array bt's elements.
func (t *Types) describeArray(f *Field, bt btfType) error {
	f.Len = 1
	for range maxHops {
		f.Len *= uint64(binary.LittleEndian.Uint32(bt.data[8:])) // sizeOf checked the product
		elem, err := t.resolve(binary.LittleEndian.Uint32(bt.data))
		if err != nil {
			return err
		}
		if elem.kind == btfArray {
			bt = elem
			continue
		}
		f.Elem, err = t.sizeOf(elem.id)
		if elem.kind == btfPtr {
			f.TypeName = t.targetName(elem.sizeOrRef)
		} else {
			f.TypeName = t.name(elem.nameOff)
		}
		return err
	}
	return btfDamaged(t.base, "type %d: arrays without end", bt.id)
}

// targetName returns the name of what a pointer points to, or "".
func (t *Types) targetName(id uint32) string {
	bt, err := t.resolve(id)
	if err != nil {
		return ""
	}
	return t.name(bt.nameOff)
}

// resolve looks through typedefs and qualifiers. Type 0, void, is a btfType
// of kind 0.
func (t *Types) resolve(id uint32) (btfType, error) {
	for range maxHops {
		if id == 0 {
			return btfType{}, nil
		}
		bt, err := t.byID(id)
		if err != nil {
			return btfType{}, err
		}
		switch bt.kind {
		case btfTypedef, btfVolatile, btfConst, btfRestrict, btfTypeTag:
			id = bt.sizeOrRef
		default:
			return bt, nil
		}
	}
	return btfType{}, btfDamaged(t.base, "type %d: typedefs without end", id)
}

// sizeOf returns the size of type id in bytes; 0 for void, functions and what
// is only declared.
func (t *Types) sizeOf(id uint32) (uint64, error) {
	count := uint64(1)
	for range maxHops {
		bt, err := t.resolve(id)
		if err != nil {
			return 0, err
		}
		size := uint64(0)
		switch bt.kind {
		case btfInt, btfStruct, btfUnion, btfEnum, btfEnum64, btfFloat:
			size = uint64(bt.sizeOrRef)
		case btfPtr:
			size = 8
		case btfArray:
			// Kept below 2^31, so that the product with any size fits.
			if count *= uint64(binary.LittleEndian.Uint32(bt.data[8:])); count > math.MaxInt32 {
				return 0, btfDamaged(t.base+uint64(t.offs[bt.id]), "type %d: array of %d elements", bt.id, count)
			}
			id = binary.LittleEndian.Uint32(bt.data)
			continue
		}
		return count * size, nil
	}
	return 0, btfDamaged(t.base, "type %d: arrays without end", id)
}

// kindOf returns what the API calls a BTF kind.
func kindOf(kind uint8) Kind {
	switch kind {
	case btfInt:
		return KindInt
	case btfPtr:
		return KindPointer
	case btfArray:
		return KindArray
	case btfStruct:
		return KindStruct
	case btfUnion:
		return KindUnion
	case btfEnum, btfEnum64:
		return KindEnum
	case btfFloat:
		return KindFloat
	case btfFunc, btfFuncProto:
		return KindFunc
	case btfFwd:
		return KindFwd
	}
	return KindVoid
}
