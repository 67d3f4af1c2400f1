package profile

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"strings"
)

// Kind is what a type is, once typedefs and qualifiers are looked through.
type Kind uint8

// Kinds of types.
const (
	KindVoid Kind = iota
	KindInt
	KindPointer
	KindArray
	KindStruct
	KindUnion
	KindEnum
	KindFloat
	KindFunc // a function's prototype
	KindFwd  // a struct or union that is only declared
)

func (k Kind) String() string {
	switch k {
	case KindVoid:
		return "void"
	case KindInt:
		return "int"
	case KindPointer:
		return "pointer"
	case KindArray:
		return "array"
	case KindStruct:
		return "struct"
	case KindUnion:
		return "union"
	case KindEnum:
		return "enum"
	case KindFloat:
		return "float"
	case KindFunc:
		return "function"
	case KindFwd:
		return "forward declaration"
	}
	return "unknown kind"
}

// Field is a member of a struct or union.
type Field struct {
	// Offset is in bytes from the start of the path's first type. For a
	// bit-field it is that of the byte that its first bit lies in.
	Offset uint64
	// Size is in bytes. For a bit-field it is that of its declared type.
	Size uint64
	// BitOffset is a bit-field's first bit, counted from bit 0 of the byte at
	// Offset; BitSize is its width, 0 when the member is no bit-field.
	BitOffset, BitSize uint32
	// Kind is what the member is, typedefs and qualifiers looked through.
	Kind Kind
	// Signed is set for signed integers and enums.
	Signed bool
	// TypeName is the name of the member's type, typedefs and qualifiers looked
	// through; for a pointer that of what it points to, for an array that of
	// its elements. Empty for anonymous types and void.
	TypeName string
	// Elem is the size in bytes of an array's element (of an array of arrays:
	// of the innermost), Len the number of them; both 0 for what is no array.
	Elem, Len uint64
}

// Types are a kernel's types, decoded from its BTF as they are asked for. They
// are safe for concurrent use. A nil *Types answers everything with ErrNoBTF.
type Types struct {
	types, strs []byte
	base        uint64   // offset of types in the blob
	offs        []uint32 // of type id in types
	names       *nameIndex
	// signedEnums: the compiler of this BTF sets kind_flag for signed enums
	// (pahole 1.24 on), so that an enum without it is unsigned.
	signedEnums bool
}

const (
	// maxHops bounds chains of typedefs, qualifiers and arrays.
	maxHops = 64
	// maxNesting bounds how deep anonymous members are looked into, maxMembers
	// how many are looked at in all for one name.
	maxNesting = 32
	maxMembers = 1 << 20
)

// Len returns the number of types.
func (t *Types) Len() int {
	if t == nil {
		return 0
	}
	return len(t.offs) - 1
}

// Field returns where path's last member lies. Path is a type's name and
// members' names: "task_struct.comm", "task_struct.se.exec_start". Anonymous
// members are looked through; pointers are not followed. It returns an error
// that wraps ErrNoType when there is no such type or member, and one that wraps
// ErrDamaged when the types do not hold together.
func (t *Types) Field(path string) (Field, error) {
	name, rest, _ := strings.Cut(path, ".")
	var damaged error
	for bt, err := range t.named(name) {
		if err != nil {
			return Field{}, err
		}
		f, err := t.fieldOf(bt, rest)
		if err == nil {
			return f, nil
		}
		if isDamaged(err) && damaged == nil {
			damaged = err
		}
	}
	if damaged != nil {
		return Field{}, fmt.Errorf("%s: %w", path, damaged)
	}
	return Field{}, fmt.Errorf("%w: %s", ErrNoType, path)
}

// fieldOf returns where the member that path names lies in bt.
func (t *Types) fieldOf(bt btfType, path string) (Field, error) {
	at := member{typ: bt.id}
	base := uint64(0) // in bits
	for more := path != ""; more; {
		var name string
		name, path, more = strings.Cut(path, ".")
		st, err := t.resolve(at.typ)
		if err != nil {
			return Field{}, err
		}
		budget := maxMembers
		m, ok, err := t.findMember(st, name, maxNesting, &budget)
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

// named yields the types that have name, in order of their ids. "struct foo",
// "union foo" and "enum foo" restrict the kind.
func (t *Types) named(name string) iter.Seq2[btfType, error] {
	want := KindVoid
	for _, p := range []Kind{KindStruct, KindUnion, KindEnum} {
		if rest, ok := strings.CutPrefix(name, p.String()+" "); ok {
			want, name = p, rest
		}
	}
	return func(yield func(btfType, error) bool) {
		if t == nil {
			yield(btfType{}, ErrNoBTF)
			return
		}
		for id := range t.names.candidates(name) {
			bt, err := t.byID(id)
			if err == nil && (!t.nameIs(bt.nameOff, name) || want != KindVoid && kindOf(bt.kind) != want) {
				continue
			}
			if !yield(bt, err) {
				return
			}
		}
	}
}

// Has reports whether path (a type, or as for Field) is there.
func (t *Types) Has(path string) bool {
	_, err := t.Field(path)
	return err == nil
}

// Size returns the size in bytes of the type typeName (struct, union, enum,
// typedef, int), or an error that wraps ErrNoType.
func (t *Types) Size(typeName string) (uint64, error) {
	f, err := t.Field(typeName)
	return f.Size, err
}

// EnumValue returns the value of an enumerator of the enum (or typedef of one)
// named enum; an empty enum means any. It returns an error that wraps ErrNoType
// when there is none.
func (t *Types) EnumValue(enum, name string) (int64, error) {
	if t == nil {
		return 0, ErrNoBTF
	}
	if enum == "" {
		for id := 1; id < len(t.offs); id++ {
			bt, err := t.byID(uint32(id))
			if err != nil {
				return 0, err
			}
			if v, ok := t.enumerator(bt, name); ok {
				return v, nil
			}
		}
		return 0, fmt.Errorf("%w: enumerator %s", ErrNoType, name)
	}
	for bt, err := range t.named(enum) {
		if err == nil {
			bt, err = t.resolve(bt.id)
		}
		if err != nil {
			return 0, err
		}
		if v, ok := t.enumerator(bt, name); ok {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: enumerator %s of enum %s", ErrNoType, name, enum)
}

// enumerator returns the value of name in bt; ok is false when bt is no enum or
// has no such name.
func (t *Types) enumerator(bt btfType, name string) (v int64, ok bool) {
	size := 0
	switch bt.kind {
	case btfEnum:
		size = btfEnumLen
	case btfEnum64:
		size = btfEnum64Len
	default:
		return 0, false
	}
	for i := range bt.vlen {
		b := bt.data[i*size:]
		if !t.nameIs(binary.LittleEndian.Uint32(b), name) {
			continue
		}
		lo := binary.LittleEndian.Uint32(b[4:])
		switch {
		case bt.kind == btfEnum64:
			return int64(uint64(lo) | uint64(binary.LittleEndian.Uint32(b[8:]))<<32), true
		case t.isSigned(bt):
			return int64(int32(lo)), true
		}
		return int64(lo), true
	}
	return 0, false
}

// isSigned reports whether enum bt has signed values. BTF without the mark for
// it has all values signed.
func (t *Types) isSigned(bt btfType) bool { return bt.kindFlag || !t.signedEnums && bt.kind == btfEnum }

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
