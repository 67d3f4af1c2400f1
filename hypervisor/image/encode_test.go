package image

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Writers of the formats, written down from their public descriptions and not
// from the readers here.

// piece is guest RAM for a writer.
type piece struct {
	phys uint64
	data []byte
}

func le(vs ...any) []byte {
	var b bytes.Buffer
	for _, v := range vs {
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}

// encodeLiME writes LiME version 1 (LiME, doc/README.md: "lime" format).
func encodeLiME(pieces ...piece) []byte {
	var out []byte
	for _, p := range pieces {
		out = append(out, le(uint32(0x4C694D45), uint32(1), p.phys, p.phys+uint64(len(p.data))-1, uint64(0))...)
		out = append(out, p.data...)
	}
	return out
}

// encodeAVML writes AVML's compressed form (avml, src/image.rs): blocks of up
// to 16 MiB, those that are all zero left out.
func encodeAVML(pieces ...piece) []byte {
	const block = 0x1000 * 0x1000
	var out []byte
	for _, p := range pieces {
		for n := 0; n < len(p.data); n += block {
			d := p.data[n:min(n+block, len(p.data))]
			if len(bytes.Trim(d, "\x00")) == 0 {
				continue
			}
			start := p.phys + uint64(n)
			stream := snappyFrames(d)
			out = append(out, le(uint32(0x4C4D5641), uint32(2), start, start+uint64(len(d))-1, uint64(0))...)
			out = append(out, stream...)
			out = append(out, le(uint64(len(stream)))...)
		}
	}
	return out
}

// snappyFrames writes the snappy framing format (google/snappy,
// framing_format.txt).
func snappyFrames(d []byte) []byte {
	out := []byte("\xff\x06\x00\x00sNaPpY")
	for i := 0; i < len(d); i += 65536 {
		c := d[i:min(i+65536, len(d))]
		sum := crc32.Checksum(c, crc32.MakeTable(crc32.Castagnoli))
		sum = (sum>>15 | sum<<17) + 0xa282ead8
		typ, body := byte(0), snappyBlock(c)
		if len(body) >= len(c) {
			typ, body = 1, c
		}
		n := len(body) + 4
		out = append(out, typ, byte(n), byte(n>>8), byte(n>>16))
		out = append(out, le(sum)...)
		out = append(out, body...)
	}
	return out
}

// snappyBlock compresses runs of one byte to copies with offset 1, and keeps all else
// as literals (google/snappy, format_description.txt).
func snappyBlock(d []byte) []byte {
	out := binary.AppendUvarint(nil, uint64(len(d)))
	literal := func(b []byte) {
		switch n := len(b) - 1; {
		case n < 0:
			return
		case n < 60:
			out = append(out, byte(n<<2))
		case n < 1<<8:
			out = append(out, 60<<2, byte(n))
		default:
			out = append(out, 61<<2, byte(n), byte(n>>8))
		}
		out = append(out, b...)
	}
	start := 0
	for i := 1; i < len(d); {
		run := 0
		for i+run < len(d) && d[i+run] == d[i-1] {
			run++
		}
		if run < 16 {
			i += max(run, 1)
			continue
		}
		literal(d[start:i])
		for left := run; left > 0; {
			n := min(left, 64)
			out = append(out, byte(n-1)<<2|2, 1, 0) // copy, 2-byte offset
			left -= n
		}
		i += run
		start = i
	}
	literal(d[start:])
	return out
}

// encodeELF writes an ELF64 core with the given notes.
func encodeELF(notes []byte, pieces ...piece) []byte {
	phnum := len(pieces) + 1
	dataAt := uint64(64 + 56*phnum + len(notes))
	out := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	out = append(out, le(uint16(4), uint16(62), uint32(1), uint64(0), uint64(64), uint64(0), uint32(0),
		uint16(64), uint16(56), uint16(phnum), uint16(0), uint16(0), uint16(0))...)
	out = append(out, le(uint32(4), uint32(0), dataAt-uint64(len(notes)), uint64(0), uint64(0), uint64(len(notes)), uint64(len(notes)), uint64(0))...)
	for _, p := range pieces {
		n := uint64(len(p.data))
		out = append(out, le(uint32(1), uint32(0), dataAt, uint64(0), p.phys, n, n, uint64(0))...)
		dataAt += n
	}
	out = append(out, notes...)
	for _, p := range pieces {
		out = append(out, p.data...)
	}
	return out
}

// encodeELF32 writes an ELF32 core, as QEMU does of a guest that is not in long
// mode and has nothing at the top of 4 GiB.
func encodeELF32(pieces ...piece) []byte {
	dataAt := uint32(52 + 32*len(pieces))
	out := []byte("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	out = append(out, le(uint16(4), uint16(3), uint32(1), uint32(0), uint32(52), uint32(0), uint32(0),
		uint16(52), uint16(32), uint16(len(pieces)), uint16(0), uint16(0), uint16(0))...)
	for _, p := range pieces {
		n := uint32(len(p.data))
		out = append(out, le(uint32(1), dataAt, uint32(0), uint32(p.phys), n, n, uint32(0), uint32(0))...)
		dataAt += n
	}
	for _, p := range pieces {
		out = append(out, p.data...)
	}
	return out
}

// elfNote writes one note.
func elfNote(name string, typ uint32, desc []byte) []byte {
	pad := func(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }
	out := le(uint32(len(name)+1), uint32(len(desc)), typ)
	out = append(out, pad(append([]byte(name), 0))...)
	return append(out, pad(bytes.Clone(desc))...)
}

// pattern is n bytes that look like memory: zeros, runs, and noise that says where it is.
func pattern(phys uint64, n int) []byte {
	b := make([]byte, n)
	for i := 0; i < n; i += 8 {
		a := phys + uint64(i)
		v := uint64(0)
		switch a >> 12 % 4 {
		case 0:
			v = a * 0x9e3779b97f4a7c15
		case 1:
			v = 0x4141414141414141
		case 2:
			v = a
		}
		copy(b[i:], le(v))
	}
	return b
}

// truth reads pieces.
func truth(pieces ...piece) func([]byte, hypervisor.PhysAddr) error {
	return func(p []byte, gpa hypervisor.PhysAddr) error {
		for n := 0; n < len(p); {
			found := false
			for _, x := range pieces {
				if off := uint64(gpa) + uint64(n) - x.phys; off < uint64(len(x.data)) {
					n += copy(p[n:], x.data[off:])
					found = true
				}
			}
			if !found {
				return hypervisor.ErrNotRAM
			}
		}
		return nil
	}
}
