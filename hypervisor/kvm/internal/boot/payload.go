package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// Offsets in the setup header of the compressed kernel, from where the code behind
// the setup begins (boot.rst, payload_offset and payload_length).
const (
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	sizeOfLength     = 4 // behind what is compressed: its length decompressed
)

// payload returns what a bzImage decompresses to, which is vmlinux with its
// relocations behind, and how many bytes that is: at most most.
func payload(f File, head []byte, setup int64, most uint64) (r io.ReadCloser, length uint64, err error) {
	le := binary.LittleEndian
	off, size := setup+int64(le.Uint32(head[offPayloadOffset:])), int64(le.Uint32(head[offPayloadLength:]))
	if size < 16 || off > f.Size || size > f.Size-off {
		return nil, 0, fmt.Errorf("%d bytes of payload at %d", size, off)
	}
	in := io.NewSectionReader(f, off, size-sizeOfLength)
	magic, tail := make([]byte, 4), make([]byte, sizeOfLength)
	_, err = in.ReadAt(magic, 0)
	if err == nil {
		_, err = f.ReadAt(tail, off+size-sizeOfLength)
	}
	if err != nil {
		return nil, 0, err
	}
	if length = uint64(le.Uint32(tail)); length > most {
		return nil, 0, fmt.Errorf("%d bytes of payload decompressed", length)
	}
	switch {
	case le.Uint32(magic) == lz4Magic:
		r = &lz4Reader{in: in}
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		// "zstd -22 --ultra" makes windows of 128 MiB.
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, 0, err
		}
		r = z.IOReadCloser()
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(io.NewSectionReader(f, off, size)) // has it as its own
		if err != nil {
			return nil, 0, err
		}
		r = z
	default:
		return nil, 0, fmt.Errorf("compressed in a way that begins with %x", magic)
	}
	return r, length, nil
}

// The legacy frame of LZ4, which "lz4 -l" makes for kernels (lib/decompress_unlz4.c):
// blocks of at most 8 MiB of data, each with its length in front.
const (
	lz4Magic = 0x184c2102
	lz4Block = 8 << 20
)

// lz4Reader reads it.
type lz4Reader struct {
	in    *io.SectionReader
	at    int64
	block []byte
	data  []byte // of block, what was not read yet
}

// Close is io.Closer's.
func (r *lz4Reader) Close() error { return nil }

// Read is io.Reader's.
func (r *lz4Reader) Read(p []byte) (int, error) {
	if len(r.data) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

func (r *lz4Reader) next() error {
	if r.at == 0 {
		r.at, r.block = 4, make([]byte, lz4Block)
	}
	if r.at == r.in.Size() {
		return io.EOF
	}
	var length [4]byte
	if _, err := r.in.ReadAt(length[:], r.at); err != nil {
		return err
	}
	r.at += 4
	n := int64(binary.LittleEndian.Uint32(length[:]))
	if n == 0 || n > int64(lz4.CompressBlockBound(lz4Block)) || n > r.in.Size()-r.at {
		return fmt.Errorf("an LZ4 block of %d bytes", n)
	}
	src := make([]byte, n)
	if _, err := r.in.ReadAt(src, r.at); err != nil {
		return err
	}
	r.at += n
	m, err := lz4.UncompressBlock(src, r.block)
	if err != nil {
		return err
	}
	r.data = r.block[:m]
	if m == 0 {
		return errors.New("an empty LZ4 block")
	}
	return nil
}
