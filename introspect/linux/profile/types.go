package profile

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
// are safe for concurrent use.
type Types struct{}

// Field returns where path's last member lies. Path is a type's name and
// members' names: "task_struct.comm", "task_struct.se.exec_start". Anonymous
// members are looked through; pointers are not followed. It returns an error
// that wraps ErrNoType when there is no such type or member.
func (t *Types) Field(path string) (Field, error) { return Field{}, ErrNoType }

// Has reports whether path (a type, or as for Field) is there.
func (t *Types) Has(path string) bool { return false }

// Size returns the size in bytes of the type typeName (struct, union, enum,
// typedef, int), or an error that wraps ErrNoType.
func (t *Types) Size(typeName string) (uint64, error) { return 0, ErrNoType }

// EnumValue returns the value of an enumerator of the enum (or typedef of one)
// named enum; an empty enum means any. It returns an error that wraps ErrNoType
// when there is none.
func (t *Types) EnumValue(enum, name string) (int64, error) { return 0, ErrNoType }
