package linux

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// errLZ: compressed bytes that are none.
var errLZ = errors.New("compressed data is damaged")

// swapDecoder decompresses pages that the kernel compressed.
type swapDecoder struct{ zstd *zstd.Decoder }

// decode decompresses src, which algorithm made, into all of page.
func (d *swapDecoder) decode(page, src []byte, algorithm string) error {
	var n int
	var err error
	switch algorithm {
	case "lzo", "lzo-rle":
		n, err = lzoDecode(page, src)
	case "lz4", "lz4hc":
		n, err = lz4Decode(page, src)
	case "zstd":
		n, err = d.zstdDecode(page, src)
	case "deflate":
		r := flate.NewReader(bytes.NewReader(src))
		n, err = io.ReadFull(r, page)
	default:
		return fmt.Errorf("compressed with %q, which is not known", algorithm)
	}
	if err == nil && n != len(page) {
		err = fmt.Errorf("%w: %d bytes of %d", errLZ, n, len(page))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", algorithm, err)
	}
	return nil
}

func (d *swapDecoder) zstdDecode(dst, src []byte) (int, error) {
	if d.zstd == nil {
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return 0, err
		}
		d.zstd = z
	}
	out, err := d.zstd.DecodeAll(src, make([]byte, 0, len(dst)))
	return copy(dst, out), err
}

// lz4Decode decompresses a block of LZ4 (its block format description) into dst
// and returns its length.
func lz4Decode(dst, src []byte) (int, error) {
	in, out := 0, 0
	// length reads what a length of 15 or more goes on with.
	length := func(n int) (int, bool) {
		if n != 15 {
			return n, true
		}
		for in < len(src) && n <= len(dst) {
			b := int(src[in])
			in++
			n += b
			if b != 255 {
				return n, true
			}
		}
		return 0, false
	}
	for in < len(src) {
		token := int(src[in])
		in++
		n, ok := length(token >> 4)
		if !ok || n > len(src)-in || n > len(dst)-out {
			return out, errLZ
		}
		copy(dst[out:], src[in:in+n])
		in, out = in+n, out+n
		if in == len(src) {
			return out, nil
		}
		if len(src)-in < 2 {
			return out, errLZ
		}
		back := int(src[in]) | int(src[in+1])<<8
		in += 2
		if n, ok = length(token & 15); !ok || !lzCopy(dst, out, back, n+4) {
			return out, errLZ
		}
		out += n + 4
	}
	return out, errLZ
}

// lzCopy copies n bytes from back bytes before out to out, one by one: they may
// overlap. It returns false when they do not fit.
func lzCopy(dst []byte, out, back, n int) bool {
	if back <= 0 || back > out || n < 0 || n > len(dst)-out {
		return false
	}
	for i := range n {
		dst[out+i] = dst[out-back+i]
	}
	return true
}

// lzoDecode decompresses LZO1X, and its extension for runs of zeros (lzo-rle),
// into dst and returns the length. Documentation/staging/lzo.rst describes the
// format.
func lzoDecode(dst, src []byte) (int, error) {
	d := lzoState{dst: dst, src: src}
	if len(src) < 3 {
		return 0, errLZ
	}
	if len(src) >= 5 && src[0] == 17 {
		d.rle = src[1] >= 1 // the version of the bitstream
		d.in = 2
	}
	// The first instruction may be a run of literals of its own coding.
	state := 0
	if b := int(src[d.in]); b > 17 {
		d.in++
		n := b - 17
		if !d.literals(n) {
			return d.out, errLZ
		}
		state = min(n, 4)
	}
	for {
		next, done, ok := d.step(state)
		if !ok {
			return d.out, errLZ
		}
		if done {
			return d.out, nil
		}
		state = next
	}
}

type lzoState struct {
	dst, src []byte
	in, out  int
	rle      bool
}

func (d *lzoState) literals(n int) bool {
	if n > len(d.src)-d.in || n > len(d.dst)-d.out {
		return false
	}
	copy(d.dst[d.out:], d.src[d.in:d.in+n])
	d.in, d.out = d.in+n, d.out+n
	return true
}

func (d *lzoState) byte() (int, bool) {
	if d.in >= len(d.src) {
		return 0, false
	}
	d.in++
	return int(d.src[d.in-1]), true
}

// long reads a length whose bits in the instruction are zero.
func (d *lzoState) long(bits int) (int, bool) {
	n := 1<<bits - 1
	for {
		b, ok := d.byte()
		if !ok || n > len(d.dst) {
			return 0, false
		}
		if b != 0 {
			return n + b, true
		}
		n += 255
	}
}

// zeros runs the instruction b if it is a run of zeros: a distance that no match
// has. A third byte has more of its length.
func (d *lzoState) zeros(b int) (next int, ok bool) {
	if !d.rle || b&0xf8 != 0x18 || len(d.src)-d.in < 3 {
		return 0, false
	}
	w := int(d.src[d.in]) | int(d.src[d.in+1])<<8
	n := b&7 | int(d.src[d.in+2])<<3
	n += 4 // MIN_ZERO_RUN_LENGTH
	if w&0xfffc != 0xfffc || n > len(d.dst)-d.out {
		return 0, false
	}
	clear(d.dst[d.out : d.out+n])
	d.in, d.out = d.in+3, d.out+n
	return w & 3, true
}

// step runs one instruction. state is how many literals the last one copied: 0
// to 3, or 4 for more.
func (d *lzoState) step(state int) (next int, done, ok bool) {
	b, ok := d.byte()
	if !ok {
		return 0, false, false
	}
	var n, back int
	switch {
	case b < 16 && state == 0:
		// A long run of literals.
		n = b
		if n == 0 {
			if n, ok = d.long(4); !ok {
				return 0, false, false
			}
		}
		return 4, false, d.literals(n + 3)
	case b < 16:
		h, more := d.byte()
		if !more {
			return 0, false, false
		}
		next = b & 3
		back, n = b>>2+h<<2+1, 2
		if state == 4 {
			back, n = back+1<<11, 3
		}
	case b < 32:
		if next, ok := d.zeros(b); ok {
			return next, false, d.literals(next)
		}
		n = b & 7
		if n == 0 {
			if n, ok = d.long(3); !ok {
				return 0, false, false
			}
		}
		if len(d.src)-d.in < 2 {
			return 0, false, false
		}
		w := int(d.src[d.in]) | int(d.src[d.in+1])<<8
		d.in += 2
		next = w & 3
		back = (b&8)<<11 + w>>2
		if back == 0 {
			return 0, true, n == 1 // the end
		}
		back, n = back+1<<14, n+2
	case b < 64:
		n = b & 31
		if n == 0 {
			if n, ok = d.long(5); !ok {
				return 0, false, false
			}
		}
		if len(d.src)-d.in < 2 {
			return 0, false, false
		}
		w := int(d.src[d.in]) | int(d.src[d.in+1])<<8
		d.in += 2
		next, back, n = w&3, w>>2+1, n+2
	default:
		h, more := d.byte()
		if !more {
			return 0, false, false
		}
		next = b & 3
		back = h<<3 + b>>2&7 + 1
		n = b>>5 + 1
	}
	if !lzCopy(d.dst, d.out, back, n) {
		return 0, false, false
	}
	d.out += n
	return next, false, d.literals(next)
}
