package image

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// checkParsed checks what must hold of any file that was taken.
func checkParsed(t *testing.T, b []byte, im *parsed, err error) {
	t.Helper()
	if err != nil {
		var bad *FormatError
		if !errors.As(err, &bad) {
			t.Fatalf("error is no *FormatError: %v", err)
		}
		return
	}
	var end hypervisor.PhysAddr
	for i, g := range im.segments {
		if g.size == 0 || g.have > g.size || g.off < 0 || uint64(g.off) > uint64(len(b)) || g.have > uint64(len(b))-uint64(g.off) {
			t.Fatalf("segment %d does not lie in the file: %+v", i, g)
		}
		if i > 0 && g.phys < end || g.end() < g.phys {
			t.Fatalf("segment %d overlaps, or wraps: %+v", i, g)
		}
		end = g.end()
	}
	cr := newChunkReader(bytes.NewReader(b))
	for i, c := range im.chunks {
		if c.size == 0 || i > 0 && c.phys < end || c.end() < c.phys {
			t.Fatalf("chunk %d overlaps, or wraps: %+v", i, c)
		}
		end = c.end()
		if c.kind == chunkMissing {
			continue
		}
		if c.off < 0 || c.off+int64(c.length) > int64(len(b)) || c.size > snappyMaxChunk {
			t.Fatalf("chunk %d does not lie in the file: %+v", i, c)
		}
		if data, err := cr.read(c); err == nil && uint64(len(data)) != c.size {
			t.Fatalf("chunk %d has %d bytes: %+v", i, len(data), c)
		}
	}
	if len(im.segments)+len(im.chunks) == 0 {
		t.Fatal("no memory and no error")
	}
}

func FuzzELF(f *testing.F) {
	data := pattern(0x1000, 0x1000)
	notes := append(elfNote("CORE", 1, make([]byte, 336)), elfNote("QEMU", 0, testCPU(0))...)
	elf := encodeELF(append(notes, elfNote("VMCOREINFO", 0, []byte("A=1\n"))...), piece{0x1000, data}, piece{1 << 32, data})
	f.Add(elf, false)
	f.Add(elf[:len(elf)-100], true)
	f.Add(encodeELF32(piece{0x1000, data}), false)
	f.Add(with(elf, 56, [2]uint16{0xffff, 64}), false)
	f.Add([]byte("\x7fELF\x02\x01"), true)
	f.Fuzz(func(t *testing.T, b []byte, partial bool) {
		if len(b) == 0 {
			return
		}
		im, err := parseBytes(b, params{format: formatELF, partial: partial})
		checkParsed(t, b, im, err)
	})
}

func FuzzLiME(f *testing.F) {
	data := pattern(0x1000, 0x3000)
	f.Add(encodeLiME(piece{0x1000, data}, piece{1 << 32, data}), false)
	f.Add(encodeLiME(piece{0x1000, data})[:0x1000], true)
	f.Add([]byte("EMiL"), true)
	f.Fuzz(func(t *testing.T, b []byte, partial bool) {
		if len(b) == 0 {
			return
		}
		im, err := parseBytes(b, params{format: formatLiME, partial: partial})
		checkParsed(t, b, im, err)
	})
}

func FuzzAVML(f *testing.F) {
	data := pattern(0x1000, 0x3000)
	b := encodeAVML(piece{0x1000, data}, piece{1 << 32, pattern(0, 70_000)})
	f.Add(b, false)
	f.Add(b[:len(b)/2], true)
	f.Add(with(b, 42, byte(0x80)), false)
	f.Add(with(b, 50, byte(0)), false)
	f.Fuzz(func(t *testing.T, b []byte, partial bool) {
		if len(b) == 0 {
			return
		}
		im, err := parseBytes(b, params{format: formatAVML, partial: partial})
		checkParsed(t, b, im, err)
	})
}
