package image

import (
	"debug/elf"
	"encoding/binary"
	"math"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Sizes of ELF's structures (System V ABI, chapters 4 and 5; include/uapi/linux/elf.h).
const (
	ehdrSize32, ehdrSize64 = 52, 64
	phdrSize32, phdrSize64 = 32, 56
	shdrSize32, shdrSize64 = 40, 64

	pnXNUM = 0xffff // PN_XNUM: the number of program headers is in section header 0

	maxPhdrs     = 1 << 20
	maxNoteBytes = 64 << 20
)

// elfHeader is what of the file's header is needed here.
type elfHeader struct {
	is64         bool
	machine      elf.Machine
	phoff, shoff uint64
	phentsize    uint16
	phnum        uint32
}

// progHeader is a program header of either class.
type progHeader struct {
	typ                       elf.ProgType
	off, paddr, filesz, memsz uint64
	at                        int64 // of the header itself
}

// parseELF parses an ELF core. The memory is the PT_LOAD segments' file bytes at
// their p_paddr; what p_memsz has beyond p_filesz was not dumped and is no RAM
// here. QEMU writes 32-bit cores too: of guests that are not in long mode and
// have nothing at the top of 4 GiB (firmware mostly is there).
func (s *source) parseELF() (*parsed, error) {
	h, err := s.readELFHeader()
	if err != nil {
		return nil, err
	}
	progs, err := s.readProgHeaders(h)
	if err != nil {
		return nil, err
	}
	im := &parsed{}
	var segs []segment
	var noteBytes uint64
	for _, p := range progs {
		switch p.typ {
		case elf.PT_LOAD:
			if p.filesz == 0 || p.paddr == math.MaxUint64 {
				continue // not dumped, or with no physical address (kcore)
			}
			if p.memsz < p.filesz {
				return nil, s.errorf(p.at, "program header: %#x bytes in the file, %#x in memory", p.filesz, p.memsz)
			}
			if p.filesz > math.MaxUint64-p.paddr {
				return nil, s.errorf(p.at, "program header: %#x bytes at gpa %#x wrap around", p.filesz, p.paddr)
			}
			have, err := s.place(p.off, p.filesz, "ELF segment")
			if err != nil {
				return nil, err
			}
			segs = append(segs, segment{phys: hypervisor.PhysAddr(p.paddr), size: p.filesz, off: int64(p.off), have: have})
		case elf.PT_NOTE:
			if p.filesz > maxNoteBytes-noteBytes {
				return nil, s.errorf(p.at, "ELF notes: %#x bytes, more than %#x", p.filesz, maxNoteBytes)
			}
			noteBytes += p.filesz
			have, err := s.place(p.off, p.filesz, "ELF notes")
			if err != nil {
				return nil, err
			}
			b := make([]byte, have)
			if err := s.read(b, int64(p.off), "ELF notes"); have > 0 && err != nil {
				return nil, err
			}
			if err := s.parseNotes(im, b, int64(p.off), h.machine); err != nil {
				return nil, err
			}
		}
	}
	im.segments, err = s.sortSegments(segs, "ELF segment")
	return im, err
}

func (s *source) readELFHeader() (elfHeader, error) {
	var h elfHeader
	b := make([]byte, ehdrSize64)
	if err := s.read(b[:elf.EI_NIDENT], 0, "ELF identification"); err != nil {
		return h, err
	}
	if string(b[:4]) != elf.ELFMAG {
		return h, s.errorf(0, "ELF identification: bad magic %q", b[:4])
	}
	size := ehdrSize64
	switch elf.Class(b[elf.EI_CLASS]) {
	case elf.ELFCLASS64:
		h.is64 = true
	case elf.ELFCLASS32:
		size = ehdrSize32
	default:
		return h, s.errorf(elf.EI_CLASS, "ELF identification: unknown class %d", b[elf.EI_CLASS])
	}
	if elf.Data(b[elf.EI_DATA]) != elf.ELFDATA2LSB {
		return h, s.errorf(elf.EI_DATA, "ELF identification: not little-endian")
	}
	if err := s.read(b[:size], 0, "ELF header"); err != nil {
		return h, err
	}
	le := binary.LittleEndian
	if t := elf.Type(le.Uint16(b[16:])); t != elf.ET_CORE {
		return h, s.errorf(16, "ELF header: type %d is no core file", t)
	}
	h.machine = elf.Machine(le.Uint16(b[18:]))
	if h.machine != elf.EM_X86_64 && h.machine != elf.EM_386 {
		return h, s.errorf(18, "ELF header: machine %d is no x86", h.machine)
	}
	var shentsize uint16
	want := uint16(phdrSize64)
	if h.is64 {
		h.phoff, h.shoff = le.Uint64(b[32:]), le.Uint64(b[40:])
		h.phentsize, h.phnum, shentsize = le.Uint16(b[54:]), uint32(le.Uint16(b[56:])), le.Uint16(b[58:])
	} else {
		want = phdrSize32
		h.phoff, h.shoff = uint64(le.Uint32(b[28:])), uint64(le.Uint32(b[32:]))
		h.phentsize, h.phnum, shentsize = le.Uint16(b[42:]), uint32(le.Uint16(b[44:])), le.Uint16(b[46:])
	}
	if h.phentsize < want {
		return h, s.errorf(int64(size)-10, "ELF header: program headers of %d bytes", h.phentsize)
	}
	if h.phnum != pnXNUM {
		return h, nil
	}
	// sh_info of section header 0 has the number.
	infoAt, shsize := uint64(44), uint16(shdrSize64)
	if !h.is64 {
		infoAt, shsize = 28, shdrSize32
	}
	if h.shoff == 0 || h.shoff > math.MaxInt64-infoAt || shentsize < shsize {
		return h, s.errorf(int64(size)-8, "ELF header: number of program headers is in a section header that is not there")
	}
	var info [4]byte
	if err := s.read(info[:], int64(h.shoff+infoAt), "ELF section header 0"); err != nil {
		return h, err
	}
	h.phnum = le.Uint32(info[:])
	return h, nil
}

func (s *source) readProgHeaders(h elfHeader) ([]progHeader, error) {
	if h.phnum > maxPhdrs {
		return nil, s.errorf(0, "ELF header: %d program headers, more than %d", h.phnum, maxPhdrs)
	}
	size := uint64(h.phnum) * uint64(h.phentsize)
	if h.phoff > math.MaxInt64 || size > uint64(s.size) {
		return nil, s.errorf(0, "ELF header: %d program headers at %#x: file ends at %#x", h.phnum, h.phoff, s.size)
	}
	b := make([]byte, size)
	if err := s.read(b, int64(h.phoff), "ELF program headers"); err != nil {
		return nil, err
	}
	progs := make([]progHeader, h.phnum)
	le := binary.LittleEndian
	for i := range progs {
		at := i * int(h.phentsize)
		e := b[at : at+int(h.phentsize)]
		p := progHeader{typ: elf.ProgType(le.Uint32(e)), at: int64(h.phoff) + int64(at)}
		if h.is64 {
			p.off, p.paddr, p.filesz, p.memsz = le.Uint64(e[8:]), le.Uint64(e[24:]), le.Uint64(e[32:]), le.Uint64(e[40:])
		} else {
			p.off, p.paddr = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[12:]))
			p.filesz, p.memsz = uint64(le.Uint32(e[16:])), uint64(le.Uint32(e[20:]))
		}
		progs[i] = p
	}
	return progs, nil
}
