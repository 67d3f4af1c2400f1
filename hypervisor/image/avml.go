package image

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/snappy"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// After its header (see lime.go) an AVML range holds a stream in the snappy framing
// format (google/snappy framing_format.txt) and 8 bytes: the stream's length in
// the file. That length lies behind what it measures, so the stream's chunks
// are followed by their own lengths until the range is full, and the
// last 8 bytes are then checked. Blocks that were all zero when AVML read them
// are not in the file (it drops those of up to 16 MiB): they read as no RAM.
const (
	snappyChunkHeader  = 4 // type, 24-bit length
	snappyCRCSize      = 4
	snappyMaxChunk     = 65536 // decompressed
	snappyMaxEncoded   = 76490 // the longest block that 65536 bytes can become
	snappyCompressed   = 0x00
	snappyUncompressed = 0x01
	snappySkippable    = 0x80 // from here on: padding and what a reader may skip
	snappyIdentifier   = 0xff
	snappyMagic        = "sNaPpY"
	avmlTrailerSize    = 8
	// The least that chunks must hold on average, so that a lying file cannot
	// make an index larger than itself. Writers fill chunks to 64 KiB.
	avmlMinAverage = 512
)

// chunk is guest RAM that lies compressed in the file.
type chunk struct {
	phys   hypervisor.PhysAddr
	size   uint64 // at most snappyMaxChunk, unless kind is chunkMissing
	off    int64  // of the chunk's data in the file, its CRC first
	length uint32 // of that data, CRC included
	kind   uint8  // snappyCompressed, snappyUncompressed or chunkMissing
}

// chunkMissing is RAM that a truncated file named but does not hold.
const chunkMissing = 0xfe

func (c chunk) end() hypervisor.PhysAddr { return c.phys + hypervisor.PhysAddr(c.size) }

// indexAVML indexes the snappy stream at off, which decompresses to size bytes
// of RAM at phys, and returns the offset behind its trailer.
func (s *source) indexAVML(im *parsed, off int64, phys hypervisor.PhysAddr, size uint64) (int64, error) {
	begin, end := off, phys+hypervisor.PhysAddr(size)
	budget := size/avmlMinAverage + 16
	head := make([]byte, snappyChunkHeader+snappyCRCSize+binary.MaxVarintLen32)
	for phys < end {
		c, next, err := s.readChunkHeader(head, off, off == begin)
		if err != nil {
			var bad *FormatError
			if s.partial && errors.As(err, &bad) && bad.Offset == s.size {
				im.chunks = append(im.chunks, chunk{phys: phys, size: uint64(end - phys), off: off, kind: chunkMissing})
				return s.size, nil
			}
			return 0, err
		}
		if budget--; budget == 0 {
			return 0, s.errorf(off, "AVML range: chunks hold less than %d bytes each", avmlMinAverage)
		}
		if c.size > uint64(end-phys) {
			return 0, s.errorf(off, "AVML range: chunk of %#x bytes goes beyond the range's end %v", c.size, end)
		}
		if c.size > 0 {
			c.phys = phys
			im.chunks = append(im.chunks, c)
			phys += hypervisor.PhysAddr(c.size)
		}
		off = next
	}
	trailer := make([]byte, avmlTrailerSize)
	if s.partial && s.size-off < avmlTrailerSize {
		return s.size, nil
	}
	if err := s.read(trailer, off, "AVML trailer"); err != nil {
		return 0, err
	}
	if got := binary.LittleEndian.Uint64(trailer); got != uint64(off-begin) {
		return 0, s.errorf(off, "AVML trailer: says %#x compressed bytes, there are %#x", got, off-begin)
	}
	return off + avmlTrailerSize, nil
}

// readChunkHeader reads the chunk at off, without its data, and the offset of the
// next one. A chunk that holds no memory has size 0. A chunk that the file's end
// cuts gives a *FormatError at that end.
func (s *source) readChunkHeader(buf []byte, off int64, first bool) (chunk, int64, error) {
	if s.size-off < snappyChunkHeader {
		return chunk{}, 0, s.errorf(s.size, "snappy chunk at %#x: file is truncated here (partial=1 opens it)", off)
	}
	buf = buf[:min(int64(len(buf)), s.size-off)]
	if err := s.read(buf, off, "snappy chunk"); err != nil {
		return chunk{}, 0, err
	}
	kind := buf[0]
	length := int64(buf[1]) | int64(buf[2])<<8 | int64(buf[3])<<16
	data := off + snappyChunkHeader
	if length > s.size-data {
		return chunk{}, 0, s.errorf(s.size, "snappy chunk at %#x: file is truncated here (partial=1 opens it)", off)
	}
	body := buf[snappyChunkHeader:min(int64(len(buf)), snappyChunkHeader+length)]
	if first && kind != snappyIdentifier {
		return chunk{}, 0, s.errorf(off, "snappy stream: chunk type %#x in place of the stream identifier", kind)
	}
	c := chunk{off: data, length: uint32(length), kind: kind}
	switch {
	case kind == snappyIdentifier:
		if string(body) != snappyMagic {
			return chunk{}, 0, s.errorf(data, "snappy stream: bad identifier %q", body)
		}
	case kind == snappyCompressed || kind == snappyUncompressed:
		if length <= snappyCRCSize || length > snappyMaxEncoded+snappyCRCSize {
			return chunk{}, 0, s.errorf(off, "snappy chunk: %d bytes long", length)
		}
		c.size = uint64(length - snappyCRCSize)
		if kind == snappyCompressed {
			n, w := binary.Uvarint(body[snappyCRCSize:])
			if w <= 0 {
				return chunk{}, 0, s.errorf(data+snappyCRCSize, "snappy chunk: bad length of decompressed data")
			}
			c.size = n
		}
		if c.size > snappyMaxChunk {
			return chunk{}, 0, s.errorf(off, "snappy chunk: decompresses to %d bytes, more than the format's %d", c.size, snappyMaxChunk)
		}
	case kind >= snappySkippable:
	default:
		return chunk{}, 0, s.errorf(off, "snappy chunk: type %#x is reserved", kind)
	}
	return c, data + length, nil
}

// sortChunks sorts im's chunks and refuses overlaps: compressed ranges are never
// the same bytes of the file.
func (s *source) sortChunks(im *parsed) error {
	slices.SortStableFunc(im.chunks, func(a, b chunk) int { return cmp.Compare(a.phys, b.phys) })
	for i := 1; i < len(im.chunks); i++ {
		if a, b := im.chunks[i-1], im.chunks[i]; b.phys < a.end() {
			return s.errorf(b.off, "AVML range: gpa %v-%v overlaps %v-%v, which lies at offset %#x", b.phys, b.end(), a.phys, a.end(), a.off)
		}
	}
	if len(im.chunks) == 0 {
		return s.errorf(0, "AVML: no memory in this file")
	}
	return nil
}

var errCRC = errors.New("checksum is wrong")

// chunkReader decompresses chunks. It is safe for concurrent use.
type chunkReader struct {
	r          io.ReaderAt
	castagnoli *crc32.Table
	encoded    sync.Pool // of *[]byte, for what is read
}

func newChunkReader(r io.ReaderAt) *chunkReader {
	return &chunkReader{
		r: r, castagnoli: crc32.MakeTable(crc32.Castagnoli),
		encoded: sync.Pool{New: func() any {
			b := make([]byte, snappyMaxEncoded+snappyCRCSize)
			return &b
		}},
	}
}

// read reads chunk c, decompresses and checks it.
func (cr *chunkReader) read(c chunk) ([]byte, error) {
	buf := cr.encoded.Get().(*[]byte)
	defer cr.encoded.Put(buf)
	data := (*buf)[:c.length]
	if n, err := cr.r.ReadAt(data, c.off); n < len(data) {
		return nil, fmt.Errorf("offset %#x: %w", c.off+int64(n), err)
	}
	sum, data := binary.LittleEndian.Uint32(data), data[snappyCRCSize:]
	if c.kind == snappyUncompressed {
		data = slices.Clone(data)
	} else {
		// Again, for the file may have changed since it was indexed.
		if n, err := snappy.DecodedLen(data); err != nil || uint64(n) != c.size {
			return nil, fmt.Errorf("offset %#x: snappy chunk changed its length", c.off)
		}
		out, err := snappy.Decode(nil, data)
		if err != nil {
			return nil, fmt.Errorf("offset %#x: snappy chunk: %w", c.off, err)
		}
		data = out
	}
	// The format keeps the sum rotated ("masked").
	crc := crc32.Checksum(data, cr.castagnoli)
	if crc = (crc>>15 | crc<<17) + 0xa282ead8; crc != sum {
		return nil, fmt.Errorf("offset %#x: snappy chunk: %w", c.off, errCRC)
	}
	return data, nil
}
