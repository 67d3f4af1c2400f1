package acpi

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// Opcodes of AML (ACPI 6.5, 20.2).
const (
	opZero    = 0x00
	opOne     = 0x01
	opName    = 0x08
	opByte    = 0x0a
	opWord    = 0x0b
	opDWord   = 0x0c
	opString  = 0x0d
	opScope   = 0x10
	opBuffer  = 0x11
	opPackage = 0x12
	opDevice  = 0x82 // behind opExt
	opExt     = 0x5b
)

// The functions below return a term as bytes.

func join(terms ...[]byte) []byte { return slices.Concat(terms...) }

// pkgLength puts the length of an object, which counts itself, in front of it.
func pkgLength(body []byte) []byte {
	n := len(body)
	switch {
	case n+1 < 1<<6:
		return append([]byte{byte(n + 1)}, body...)
	case n+2 < 1<<12:
		n += 2
		return append([]byte{1<<6 | byte(n&15), byte(n >> 4)}, body...)
	}
	n += 3
	return append([]byte{2<<6 | byte(n&15), byte(n >> 4), byte(n >> 12)}, body...)
}

func integer(v uint32) []byte {
	switch {
	case v == 0:
		return []byte{opZero}
	case v == 1:
		return []byte{opOne}
	case v <= 0xff:
		return []byte{opByte, byte(v)}
	case v <= 0xffff:
		return binary.LittleEndian.AppendUint16([]byte{opWord}, uint16(v))
	}
	return binary.LittleEndian.AppendUint32([]byte{opDWord}, v)
}

func text(s string) []byte { return append(append([]byte{opString}, s...), 0) }

// name is Name(path, value); path is of 4-letter segments.
func name(path string, value []byte) []byte {
	return join([]byte{opName}, []byte(path), value)
}

func scope(path string, terms ...[]byte) []byte {
	return append([]byte{opScope}, pkgLength(join(append([][]byte{[]byte(path)}, terms...)...))...)
}

func device(path string, terms ...[]byte) []byte {
	return append([]byte{opExt, opDevice}, pkgLength(join(append([][]byte{[]byte(path)}, terms...)...))...)
}

func pack(elements ...[]byte) []byte {
	body := append([]byte{byte(len(elements))}, join(elements...)...)
	return append([]byte{opPackage}, pkgLength(body)...)
}

// eisaID is EISAID("PNP0A08"): three letters and four hexadecimal digits, packed.
func eisaID(id string) []byte {
	var v uint32
	for _, c := range []byte(id[:3]) {
		v = v<<5 | uint32(c-'@')
	}
	for _, c := range []byte(id[3:]) {
		digit := uint32(c - '0')
		if c >= 'A' {
			digit = uint32(c-'A') + 10
		}
		v = v<<4 | digit
	}
	return binary.LittleEndian.AppendUint32([]byte{opDWord}, bits.ReverseBytes32(v))
}

// resources is ResourceTemplate(): descriptors and the end tag, whose checksum 0
// counts as right.
func resources(descriptors ...[]byte) []byte {
	body := append(join(descriptors...), 0x79, 0)
	return append([]byte{opBuffer}, pkgLength(append(integer(uint32(len(body))), body...))...)
}

// Resource descriptors (ACPI 6.5, 6.4).

func ioPort(base, size uint16) []byte {
	le := binary.LittleEndian
	return append(le.AppendUint16(le.AppendUint16([]byte{0x47, 1}, base), base), 1, byte(size))
}

func irq(n int) []byte {
	return binary.LittleEndian.AppendUint16([]byte{0x22}, 1<<n)
}

func fixedMemory(base, size uint32) []byte {
	le := binary.LittleEndian
	return le.AppendUint32(le.AppendUint32([]byte{0x86, 9, 0, 1}, base), size)
}

// busNumbers is WordBusNumber from first to last, as a producer.
func busNumbers(first, last uint16) []byte {
	b := []byte{0x88, 13, 0, 2, 0x0c, 0}
	for _, v := range []uint16{0, first, last, 0, last - first + 1} {
		b = binary.LittleEndian.AppendUint16(b, v)
	}
	return b
}

// memoryWindow is DWordMemory: not cached, read and write, as a producer.
func memoryWindow(base, size uint32) []byte {
	b := []byte{0x87, 23, 0, 0, 0x0c, 1}
	for _, v := range []uint32{0, base, base + size - 1, 0, size} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}
