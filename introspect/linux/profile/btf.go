package profile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/xxh3"
)

// Kinds of BTF types (linux/btf.h, BTF_KIND_*).
const (
	btfInt       = 1
	btfPtr       = 2
	btfArray     = 3
	btfStruct    = 4
	btfUnion     = 5
	btfEnum      = 6
	btfFwd       = 7
	btfTypedef   = 8
	btfVolatile  = 9
	btfConst     = 10
	btfRestrict  = 11
	btfFunc      = 12
	btfFuncProto = 13
	btfVar       = 14
	btfDatasec   = 15
	btfFloat     = 16
	btfDeclTag   = 17
	btfTypeTag   = 18
	btfEnum64    = 19
)

// Sizes of BTF's structures in bytes (linux/btf.h).
const (
	btfMagic      = 0xeb9f
	btfHeaderLen  = 24 // struct btf_header
	btfTypeLen    = 12 // struct btf_type
	btfMemberLen  = 12 // struct btf_member
	btfEnumLen    = 8  // struct btf_enum
	btfEnum64Len  = 12 // struct btf_enum64
	btfParamLen   = 8  // struct btf_param
	btfSecinfoLen = 12 // struct btf_var_secinfo
	btfArrayLen   = 12 // struct btf_array
)

const (
	// maxBTF is the most bytes that a BTF blob is believed to have; a kernel
	// with all drivers built in has some 15 MiB.
	maxBTF = 128 << 20
	// maxBTFHeader leaves room for headers longer than today's.
	maxBTFHeader = 4096
)

// btfMark is how every little-endian BTF blob of version 1 begins.
var btfMark = []byte{0x9f, 0xeb, 0x01, 0x00}

// btfHeader is struct btf_header, its offsets made relative to the blob.
type btfHeader struct {
	types, typesEnd uint64
	strs, strsEnd   uint64
}

func btfDamaged(off uint64, format string, args ...any) error {
	return &DamagedError{Table: "BTF", Offset: off, Err: fmt.Errorf(format, args...)}
}

// parseBTFHeader reads the header of a blob that has at most limit bytes.
func parseBTFHeader(b []byte, limit uint64) (btfHeader, error) {
	if len(b) < btfHeaderLen {
		return btfHeader{}, btfDamaged(0, "%d bytes, the header alone has %d", len(b), btfHeaderLen)
	}
	le := binary.LittleEndian
	if le.Uint16(b) != btfMagic || b[2] != 1 {
		return btfHeader{}, btfDamaged(0, "magic %#x, version %d", le.Uint16(b), b[2])
	}
	headerLen := uint64(le.Uint32(b[4:]))
	if headerLen < btfHeaderLen || headerLen > maxBTFHeader {
		return btfHeader{}, btfDamaged(4, "header length %d", headerLen)
	}
	h := btfHeader{types: headerLen + uint64(le.Uint32(b[8:])), strs: headerLen + uint64(le.Uint32(b[16:]))}
	h.typesEnd = h.types + uint64(le.Uint32(b[12:]))
	h.strsEnd = h.strs + uint64(le.Uint32(b[20:]))
	limit = min(limit, maxBTF)
	if h.typesEnd > limit {
		return btfHeader{}, btfDamaged(8, "types %#x to %#x, the blob ends at %#x", h.types, h.typesEnd, limit)
	}
	if h.strsEnd > limit {
		return btfHeader{}, btfDamaged(16, "strings %#x to %#x, the blob ends at %#x", h.strs, h.strsEnd, limit)
	}
	if h.typesEnd-h.types < btfTypeLen || h.strsEnd-h.strs < 2 {
		return btfHeader{}, btfDamaged(8, "no types")
	}
	return h, nil
}

// size returns the number of bytes that hold all of the blob.
func (h btfHeader) size() uint64 { return max(h.typesEnd, h.strsEnd) }

// btfType is struct btf_type.
type btfType struct {
	id        uint32
	nameOff   uint32
	kind      uint8
	kindFlag  bool
	vlen      int
	sizeOrRef uint32
	data      []byte // what follows it
}

// newTypes decodes blob, which must not change any more. index is what
// appendIndex returned for the same blob, or nil.
func newTypes(blob, index []byte) (*Types, error) {
	h, err := parseBTFHeader(blob, uint64(len(blob)))
	if err != nil {
		return nil, err
	}
	t := &Types{types: blob[h.types:h.typesEnd], strs: blob[h.strs:h.strsEnd], base: h.types}
	if t.strs[0] != 0 || t.strs[len(t.strs)-1] != 0 {
		return nil, btfDamaged(h.strs, "strings do not begin and end with a NUL")
	}
	if index != nil {
		err = t.readIndex(index)
	} else {
		err = t.buildIndex()
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// appendIndex returns what buildIndex made.
func (t *Types) appendIndex() []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(t.offs))<<1|uint64(boolByte(t.signedEnums)))
	for _, o := range t.offs {
		b = binary.LittleEndian.AppendUint32(b, o)
	}
	return appendWords(b, t.names.entries)
}

// readIndex is the reverse of appendIndex.
func (t *Types) readIndex(b []byte) error {
	if len(b) < 8 {
		return errBadIndex
	}
	head := leUint64(b)
	b = b[8:]
	n := head >> 1
	if n == 0 || n > uint64(len(b)/4) {
		return errBadIndex
	}
	t.signedEnums = head&1 != 0
	t.offs = make([]uint32, n)
	for i := range t.offs {
		t.offs[i] = binary.LittleEndian.Uint32(b[4*i:])
		if uint64(t.offs[i])+btfTypeLen > uint64(len(t.types)) {
			return errBadIndex
		}
	}
	t.names = &nameIndex{words(b[4*n:])}
	return nil
}

var errBadIndex = errors.New("index does not fit the types")

// isNamed reports whether types of kind are found by name.
func isNamed(kind uint8) bool {
	switch kind {
	case btfInt, btfStruct, btfUnion, btfEnum, btfTypedef, btfFloat, btfEnum64:
		return true
	}
	return false
}

// buildIndex steps over all types once.
func (t *Types) buildIndex() error {
	// Types have 12 to 30 bytes in the mean.
	t.offs = make([]uint32, 1, len(t.types)/20+2) // there is no type 0 but void
	var entries []uint64
	for off := 0; off < len(t.types); {
		b := t.types[off:]
		if len(b) < btfTypeLen {
			return btfDamaged(t.base+uint64(off), "types end within one")
		}
		info := binary.LittleEndian.Uint32(b[4:])
		kind, vlen := uint8(info>>24&0x1f), int(info&0xffff)
		extra, err := extraLen(kind, vlen)
		if err != nil {
			return btfDamaged(t.base+uint64(off)+4, "type %d: %w", len(t.offs), err)
		}
		if btfTypeLen+extra > len(b) {
			return btfDamaged(t.base+uint64(off), "type %d: %d members do not fit", len(t.offs), vlen)
		}
		id := uint32(len(t.offs))
		t.offs = append(t.offs, uint32(off))
		if isNamed(kind) {
			if name := t.nameBytes(binary.LittleEndian.Uint32(b)); len(name) > 0 {
				entries = append(entries, indexEntry(xxh3.Hash(name), id))
			}
			if kind == btfEnum && info>>31 != 0 {
				t.signedEnums = true
			}
		}
		off += btfTypeLen + extra
	}
	t.names = newNameIndex(entries)
	return nil
}

// errUnknownKind is wrapped by the error for a kind that linux/btf.h did not
// have when this was written: what follows it cannot be stepped over.
var errUnknownKind = errors.New("unknown BTF kind")

// extraLen returns how many bytes follow struct btf_type.
func extraLen(kind uint8, vlen int) (int, error) {
	switch kind {
	case btfPtr, btfFwd, btfTypedef, btfVolatile, btfConst, btfRestrict, btfFunc, btfFloat, btfTypeTag:
		return 0, nil
	case btfInt, btfVar, btfDeclTag:
		return 4, nil
	case btfArray:
		return btfArrayLen, nil
	case btfStruct, btfUnion:
		return vlen * btfMemberLen, nil
	case btfEnum:
		return vlen * btfEnumLen, nil
	case btfEnum64:
		return vlen * btfEnum64Len, nil
	case btfFuncProto:
		return vlen * btfParamLen, nil
	case btfDatasec:
		return vlen * btfSecinfoLen, nil
	}
	return 0, fmt.Errorf("%w %d", errUnknownKind, kind)
}

// nameBytes returns the string at off, nil when there is none.
func (t *Types) nameBytes(off uint32) []byte {
	if uint64(off) >= uint64(len(t.strs)) {
		return nil
	}
	b := t.strs[off:]
	return b[:bytes.IndexByte(b, 0)] // strs ends with a NUL
}

func (t *Types) name(off uint32) string { return string(t.nameBytes(off)) }

// nameIs reports whether the string at off is name.
func (t *Types) nameIs(off uint32, name string) bool {
	end := uint64(off) + uint64(len(name))
	return end < uint64(len(t.strs)) && t.strs[end] == 0 && string(t.strs[off:end]) == name
}

// byID returns type id, which must not be 0 (void).
func (t *Types) byID(id uint32) (btfType, error) {
	if id == 0 || uint64(id) >= uint64(len(t.offs)) {
		return btfType{}, btfDamaged(t.base, "reference to type %d of %d", id, len(t.offs))
	}
	b := t.types[t.offs[id]:]
	info := binary.LittleEndian.Uint32(b[4:])
	bt := btfType{
		id:        id,
		nameOff:   binary.LittleEndian.Uint32(b),
		kind:      uint8(info >> 24 & 0x1f),
		kindFlag:  info>>31 != 0,
		vlen:      int(info & 0xffff),
		sizeOrRef: binary.LittleEndian.Uint32(b[8:]),
	}
	extra, err := extraLen(bt.kind, bt.vlen)
	if err != nil || btfTypeLen+extra > len(b) {
		return btfType{}, btfDamaged(t.base+uint64(t.offs[id]), "type %d does not fit", id)
	}
	bt.data = b[btfTypeLen : btfTypeLen+extra]
	return bt, nil
}

// member is struct btf_member.
type member struct {
	nameOff uint32
	typ     uint32
	bit     uint32 // from the struct's start
	bits    uint32 // a bit-field's width, else 0
}

func (bt *btfType) member(i int) member {
	b := bt.data[i*btfMemberLen:]
	m := member{
		nameOff: binary.LittleEndian.Uint32(b),
		typ:     binary.LittleEndian.Uint32(b[4:]),
		bit:     binary.LittleEndian.Uint32(b[8:]),
	}
	if bt.kindFlag {
		m.bit, m.bits = m.bit&0xff_ffff, m.bit>>24
	}
	return m
}
