package image

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// The formats, as the option "format" names them.
const (
	formatRaw  = "raw"
	formatELF  = "elf"
	formatLiME = "lime"
	formatAVML = "avml"
)

// source is a file that is being parsed. Everything in it is checked against
// its size.
type source struct {
	path    string
	r       io.ReaderAt
	size    int64
	partial bool // a truncated file is taken for what is there
}

// segment is guest RAM that lies in one piece in the file.
type segment struct {
	phys hypervisor.PhysAddr
	size uint64
	off  int64  // in the file
	have uint64 // how many of size bytes are in the file; fewer in a truncated one
}

func (s segment) end() hypervisor.PhysAddr { return s.phys + hypervisor.PhysAddr(s.size) }

// parsed is what a file was found to be.
type parsed struct {
	format     string
	segments   []segment // sorted by phys, without overlap
	chunks     []chunk   // AVML only, in place of segments; sorted likewise
	regs       []hypervisor.Registers
	vmcoreinfo []byte
	warnings   []string
}

// errorf returns a *FormatError at off.
func (s *source) errorf(off int64, format string, args ...any) error {
	return &FormatError{Path: s.path, Offset: off, What: fmt.Sprintf(format, args...)}
}

// read reads len(p) bytes of what (named in the error) at off.
func (s *source) read(p []byte, off int64, what string) error {
	if off < 0 || off > s.size || int64(len(p)) > s.size-off {
		return s.errorf(off, "%s of %d bytes: file ends at %#x", what, len(p), s.size)
	}
	if n, err := s.r.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("memory file %q: offset %#x: %s: %w", s.path, off+int64(n), what, err)
	}
	return nil
}

// place checks size bytes at off against the file, and returns how many of
// them are there.
func (s *source) place(off, size uint64, what string) (uint64, error) {
	switch fileSize := uint64(s.size); {
	case off > math.MaxInt64 || size > math.MaxInt64:
		return 0, s.errorf(s.size, "%s: %#x bytes at %#x: beyond any file", what, size, off)
	case off > fileSize && s.partial:
		return 0, nil
	case off > fileSize || size > fileSize-off:
		if s.partial {
			return fileSize - off, nil
		}
		return 0, s.errorf(s.size, "%s: %#x bytes at %#x: file is truncated here (partial=1 opens it)", what, size, off)
	}
	return size, nil
}

// parse finds out what the file is.
func (s *source) parse(p params) (*parsed, error) {
	if s.size == 0 {
		return nil, s.errorf(0, "file is empty")
	}
	head := make([]byte, min(s.size, 16))
	if err := s.read(head, 0, "first bytes"); err != nil {
		return nil, err
	}
	format := p.format
	if format == "" {
		var err error
		if format, err = s.detect(head); err != nil {
			return nil, err
		}
	}
	if p.hole != "" && format != formatRaw {
		return nil, s.errorf(0, "option hole is for raw files, this is %s", format)
	}
	var im *parsed
	var err error
	switch format {
	case formatELF:
		im, err = s.parseELF()
	case formatLiME, formatAVML:
		im, err = s.parseLiME()
	default:
		im, err = s.parseRaw(p.hole)
	}
	if err != nil {
		return nil, err
	}
	im.format = format
	return im, nil
}

// foreign are formats that are known but not read; taken for raw memory they
// would give nonsense.
var foreign = []struct{ magic, name string }{
	{"KDUMP   ", "a kdump-compressed dump: dump again with format elf"},
	{"DISKDUMP", "a diskdump: dump again with format elf"},
	{"makedumpfile", "a flattened kdump: dump again with format elf"},
	{"PAGEDU64", "a Windows crash dump"},
	{"PAGEDUMP", "a Windows crash dump"},
	{"QEVM", "a QEMU migration stream"},
	{"QFI\xfb", "a qcow2 disk image"},
	{"\xd2\xbe\xd2\xbe", "a VMware state file: open the .vmem next to it"},
	{"\xd1\xbe\xd1\xbe", "a VMware state file: open the .vmem next to it"},
	{"\xd3\xbe\xd3\xbe", "a VMware state file: open the .vmem next to it"},
	{"\x1f\x8b\x08", "compressed with gzip: decompress it first"},
	{"\x28\xb5\x2f\xfd", "compressed with zstd: decompress it first"},
	{"\xfd7zXZ\x00", "compressed with xz: decompress it first"},
	{"\x04\x22\x4d\x18", "compressed with lz4: decompress it first"},
	{"BZh", "compressed with bzip2: decompress it first"},
	{"PK\x03\x04", "a zip archive: unpack it first"},
}

func (s *source) detect(head []byte) (string, error) {
	switch {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return formatELF, nil
	case bytes.HasPrefix(head, []byte(limeMagic)):
		return formatLiME, nil
	case bytes.HasPrefix(head, []byte(avmlMagic)):
		return formatAVML, nil
	}
	for _, f := range foreign {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return "", s.errorf(0, "is %s (format=raw reads it as raw memory)", f.name)
		}
	}
	return formatRaw, nil
}

// sortSegments sorts segs and resolves their overlaps: the same guest memory may
// be named twice as long as it is the same bytes of the file (QEMU's
// dump-guest-memory with paging=on does that), anything else is a lie.
// header tells where in the file a segment's header lies.
func (s *source) sortSegments(segs []segment, what string) ([]segment, error) {
	slices.SortStableFunc(segs, func(a, b segment) int {
		return cmp.Or(cmp.Compare(a.phys, b.phys), cmp.Compare(b.size, a.size))
	})
	var out []segment
	for _, g := range segs {
		if g.size == 0 {
			continue
		}
		if len(out) == 0 || g.phys > out[len(out)-1].end() {
			out = append(out, g)
			continue
		}
		last := &out[len(out)-1]
		follows := g.off-last.off == int64(g.phys-last.phys)
		switch {
		case follows && g.end() <= last.end():
			// Nothing new.
		case follows:
			last.size = uint64(g.end() - last.phys)
		case g.phys == last.end():
			out = append(out, g)
		default:
			return nil, s.errorf(g.off, "%s: gpa %v-%v overlaps %v-%v, which lies at offset %#x",
				what, g.phys, g.end(), last.phys, last.end(), last.off)
		}
	}
	if len(out) == 0 {
		return nil, s.errorf(0, "%s: no memory in this file", what)
	}
	for i := range out {
		// Only now is it known where a segment ends; of one that a truncated
		// file has nothing of, not even the beginning is in it.
		g := &out[i]
		g.off = min(g.off, s.size)
		g.have = min(g.size, uint64(s.size-g.off))
	}
	return out, nil
}
