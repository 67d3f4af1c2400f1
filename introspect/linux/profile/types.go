package profile

import (
	"encoding/binary"
	"fmt"
	"iter"
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
	name, rest, more := strings.Cut(path, ".")
	var damaged error
	// One for all types of that name: there may be millions.
	budget := maxMembers
	for bt, err := range t.named(name) {
		if err != nil {
			return Field{}, err
		}
		if budget--; budget < 0 {
			break
		}
		f, err := t.fieldOf(bt, rest, more, &budget)
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
	budget := maxMembers
	for bt, err := range t.named(enum) {
		if err == nil {
			bt, err = t.resolve(bt.id)
		}
		if err != nil {
			return 0, err
		}
		if budget -= 1 + bt.vlen; budget < 0 {
			return 0, btfDamaged(t.base+uint64(t.offs[bt.id]), "type %d: enums of one name without end", bt.id)
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
	var size int
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
