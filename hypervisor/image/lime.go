package image

import (
	"encoding/binary"
	"math"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// LiME's range header, and AVML's, which is the same with another magic and
// version 2 (LiME doc/README; AVML src/image.rs):
//
//	0   magic    "EMiL" | "AVML"
//	4   version  1 | 2
//	8   start    first address
//	16  end      last address, inclusive
//	24  reserved, zero
const (
	limeMagic      = "EMiL"
	avmlMagic      = "AVML"
	limeVersion    = 1
	avmlVersion    = 2
	limeHeaderSize = 32
)

// parseLiME parses both kinds. A file is of one kind throughout.
func (s *source) parseLiME() (*parsed, error) {
	im := &parsed{}
	var segs []segment
	kind := ""
	head := make([]byte, limeHeaderSize)
	for off := int64(0); off < s.size; {
		if s.partial && s.size-off < limeHeaderSize && off > 0 {
			break
		}
		if err := s.read(head, off, "LiME header"); err != nil {
			return nil, err
		}
		le := binary.LittleEndian
		magic, version := string(head[:4]), le.Uint32(head[4:])
		start, last, reserved := le.Uint64(head[8:]), le.Uint64(head[16:]), le.Uint64(head[24:])
		switch {
		case magic != limeMagic && magic != avmlMagic:
			return nil, s.errorf(off, "LiME header: bad magic %q", magic)
		case kind != "" && magic != kind:
			return nil, s.errorf(off, "LiME header: magic %q in a file of %q", magic, kind)
		case magic == limeMagic && version != limeVersion, magic == avmlMagic && version != avmlVersion:
			return nil, s.errorf(off+4, "%s header: unknown version %d", magic, version)
		case last < start:
			return nil, s.errorf(off+16, "%s header: end %#x is before start %#x", magic, last, start)
		case last-start == math.MaxUint64 || last == math.MaxUint64:
			return nil, s.errorf(off+16, "%s header: range %#x-%#x is the whole address space", magic, start, last)
		case reserved != 0:
			return nil, s.errorf(off+24, "%s header: reserved field is %#x", magic, reserved)
		}
		kind = magic
		size := last - start + 1
		off += limeHeaderSize
		if magic == avmlMagic {
			next, err := s.indexAVML(im, off, hypervisor.PhysAddr(start), size)
			if err != nil {
				return nil, err
			}
			off = next
			continue
		}
		have, err := s.place(uint64(off), size, "LiME range")
		if err != nil {
			return nil, err
		}
		segs = append(segs, segment{phys: hypervisor.PhysAddr(start), size: size, off: off, have: have})
		off += int64(have)
	}
	if kind == avmlMagic {
		return im, s.sortChunks(im)
	}
	var err error
	im.segments, err = s.sortSegments(segs, "LiME range")
	return im, err
}
