package wire

import (
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// reader takes values off the front of bytes. The first that is not there makes
// all others zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	p := r.b[:n]
	r.b = r.b[n:]
	return p
}

func (r *reader) u8() uint8 {
	if p := r.take(1); p != nil {
		return p[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if p := r.take(2); p != nil {
		return binary.LittleEndian.Uint16(p)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if p := r.take(4); p != nil {
		return binary.LittleEndian.Uint32(p)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if p := r.take(8); p != nil {
		return binary.LittleEndian.Uint64(p)
	}
	return 0
}

// short reads what appendShort wrote; nothing is nil.
func (r *reader) short() []byte {
	p := r.take(int(r.u16()))
	if len(p) == 0 {
		return nil
	}
	return append([]byte(nil), p...)
}

// end returns an error unless all was there and all was read.
func (r *reader) end(what string) error {
	switch {
	case r.bad:
		return fmt.Errorf("%w: %s is too short", ErrMalformed, what)
	case len(r.b) != 0:
		return fmt.Errorf("%w: %d bytes behind %s", ErrMalformed, len(r.b), what)
	}
	return nil
}

func appendShort(b, p []byte) []byte {
	p = p[:min(len(p), maxAccess)]
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(p))), p...)
}

// rangeSize is how many bytes a range takes.
const rangeSize = 16

// MaxRanges is how many ranges fit into a message.
const MaxRanges = MaxBody / rangeSize

// AppendRanges writes rs behind b.
func AppendRanges(b []byte, rs []hypervisor.Range) []byte {
	for _, r := range rs {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Start))
		b = binary.LittleEndian.AppendUint64(b, r.Size)
	}
	return b
}

// ParseRanges reads what AppendRanges wrote, and puts it behind rs.
func ParseRanges(rs []hypervisor.Range, b []byte) ([]hypervisor.Range, error) {
	r := reader{b: b}
	for len(r.b) > 0 && !r.bad {
		rs = append(rs, hypervisor.Range{Start: hypervisor.PhysAddr(r.u64()), Size: r.u64()})
	}
	return rs, r.end("list of ranges")
}

// MaxWrite is how many bytes of guest memory one request writes.
const MaxWrite = MaxBody - 8

// AppendWrite writes the body of a MethodWrite behind b.
func AppendWrite(b []byte, gpa hypervisor.PhysAddr, p []byte) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(gpa)), p...)
}

// ParseWrite reads what AppendWrite wrote; p is part of b.
func ParseWrite(b []byte) (gpa hypervisor.PhysAddr, p []byte, err error) {
	r := reader{b: b}
	gpa = hypervisor.PhysAddr(r.u64())
	p = r.take(len(r.b))
	return gpa, p, r.end("write")
}
