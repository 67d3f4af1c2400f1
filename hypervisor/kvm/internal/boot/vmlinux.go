package boot

import (
	"crypto/rand"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// What a kernel's decompressor does behind decompressing (arch/x86/boot/compressed,
// misc.c and kaslr.c): it moves the segments to where the kernel shall be, and adds
// to addresses how far it was moved in virtual memory.
const (
	startKernelMap  = 0xffff_ffff_8000_0000 // __START_KERNEL_map
	kernelImageSize = 1 << 30               // KERNEL_IMAGE_SIZE with CONFIG_RANDOMIZE_BASE
	mostOfSegments  = 16
	mostOfRelocs    = 64 << 20
	kaslrFlag       = 1 << 1 // KASLR_FLAG of loadflags, for the kernel's own use
	minAlignment    = 2 << 20
)

// place is where a kernel shall be.
type place struct {
	pref hypervisor.PhysAddr // that it was linked for
	phys hypervisor.PhysAddr
	size uint64 // that it needs there
	// How far it is moved in virtual memory, when it has relocations.
	virt  uint64
	kaslr bool
}

// choosePlace chooses as the kernel's own decompressor does: at random, but for
// "nokaslr". end is the end of the memory that may be used.
func choosePlace(pref, end hypervisor.PhysAddr, size, align uint64, commandLine string) (place, error) {
	p := place{pref: pref, phys: pref, size: size}
	if align < minAlignment || align&(align-1) != 0 || uint64(pref)&(align-1) != 0 || pref+hypervisor.PhysAddr(size) > end {
		return p, fmt.Errorf("%d bytes at %v, aligned to %#x", size, pref, align)
	}
	if slices.Contains(strings.Fields(commandLine), "nokaslr") {
		return p, nil
	}
	if uint64(pref)+size > kernelImageSize {
		return p, fmt.Errorf("%d bytes are too many to be moved", size)
	}
	slots := func(room uint64) (uint64, error) {
		n, err := rand.Int(rand.Reader, new(big.Int).SetUint64(room/align+1))
		if err != nil {
			return 0, err
		}
		return n.Uint64() * align, nil
	}
	phys, err := slots(uint64(end-pref) - size)
	if err != nil {
		return p, err
	}
	virt, err := slots(kernelImageSize - uint64(pref) - size)
	if err != nil {
		return p, err
	}
	p.phys, p.virt, p.kaslr = pref+hypervisor.PhysAddr(phys), virt, true
	return p, nil
}

// stream is what is read in order.
type stream struct {
	io.Reader
	at uint64
}

func (s *stream) fill(p []byte) error {
	n, err := io.ReadFull(s, p)
	s.at += uint64(n)
	return err
}

func (s *stream) skipTo(at uint64) error {
	if at < s.at {
		return errors.New("parts of vmlinux overlap")
	}
	n, err := io.CopyN(io.Discard, s, int64(at-s.at))
	s.at += uint64(n)
	return err
}

// loadVmlinux puts what r decompresses to, length bytes, at its place and returns its 64-bit
// entry. After an error p's memory is zero again.
func loadVmlinux(mem Memory, r io.Reader, length uint64, p *place) (hypervisor.PhysAddr, error) {
	image, err := mem.View(p.phys, p.size)
	if err != nil {
		return 0, err
	}
	defer mem.Dirtied(p.phys, p.size)
	entry, err := fillVmlinux(image, &stream{Reader: io.LimitReader(r, int64(length))}, length, p)
	if err != nil {
		clear(image)
	}
	return entry, err
}

func fillVmlinux(image []byte, s *stream, length uint64, p *place) (entry hypervisor.PhysAddr, err error) {
	head := make([]byte, hypervisor.PageSize)
	if err := s.fill(head); err != nil {
		return 0, err
	}
	h, err := readHeader(head)
	if err != nil {
		return 0, err
	}
	for _, seg := range h.segments {
		at := seg.Paddr - uint64(p.pref)
		if seg.Paddr < uint64(p.pref) || at > p.size || seg.Memsz > p.size-at || seg.Filesz > seg.Memsz {
			return 0, fmt.Errorf("a segment of %d bytes at %#x", seg.Memsz, seg.Paddr)
		}
		if err := s.skipTo(seg.Off); err != nil {
			return 0, err
		}
		if err := s.fill(image[at : at+seg.Filesz]); err != nil {
			return 0, err
		}
	}
	at := h.entry - uint64(p.pref)
	if h.entry < uint64(p.pref) || at >= p.size {
		return 0, fmt.Errorf("its entry is at %#x", h.entry)
	}
	if err := s.skipTo(h.end); err != nil {
		return 0, err
	}
	if h.end > length || length-h.end > mostOfRelocs {
		return 0, fmt.Errorf("%d bytes behind %d of vmlinux", length-h.end, h.end)
	}
	relocs := make([]byte, length-h.end)
	if err := s.fill(relocs); err != nil {
		return 0, err
	}
	if len(relocs) == 0 { // built without CONFIG_RANDOMIZE_BASE
		p.virt, p.kaslr = 0, false
	} else if err := relocate(image, relocs, p); err != nil {
		return 0, err
	}
	return p.phys + hypervisor.PhysAddr(at), nil
}

// vmlinuxHeader is what is wanted of an ELF file's headers.
type vmlinuxHeader struct {
	entry    uint64
	segments []elf.Prog64 // PT_LOAD, by offset in the file
	end      uint64       // of the file
}

// readHeader reads it from a file's first page.
func readHeader(b []byte) (*vmlinuxHeader, error) {
	var h elf.Header64
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	const size = 56 // of Elf64_Phdr
	if string(h.Ident[:4]) != elf.ELFMAG || h.Ident[elf.EI_CLASS] != byte(elf.ELFCLASS64) || h.Machine != uint16(elf.EM_X86_64) ||
		h.Phentsize != size || h.Phnum == 0 || h.Phnum > mostOfSegments || h.Phoff > uint64(len(b)-mostOfSegments*size) ||
		h.Shentsize != 64 || h.Shoff > uint64(mostOfKernel) {
		return nil, errors.New("its payload is not the vmlinux that is known")
	}
	out := &vmlinuxHeader{entry: h.Entry, end: h.Shoff + uint64(h.Shnum)*uint64(h.Shentsize)}
	for i := range uint64(h.Phnum) {
		var p elf.Prog64
		if _, err := binary.Decode(b[h.Phoff+i*size:], binary.LittleEndian, &p); err != nil {
			return nil, err
		}
		if p.Type != uint32(elf.PT_LOAD) {
			continue
		}
		if p.Off < uint64(len(b)) || p.Off > uint64(mostOfKernel) || p.Filesz > uint64(mostOfKernel) {
			return nil, fmt.Errorf("a segment of %d bytes at %d in its payload", p.Filesz, p.Off)
		}
		out.segments = append(out.segments, p)
	}
	slices.SortFunc(out.segments, func(a, b elf.Prog64) int {
		if a.Off < b.Off {
			return -1
		}
		return 1
	})
	return out, nil
}

// relocate adds how far the kernel is moved to what its relocations name
// (arch/x86/tools/relocs.c, emit_relocs): lists of addresses, each with a zero in
// front, for 64-bit words, to Linux 6.14 for 32-bit words that become less, and for
// 32-bit words.
func relocate(image, relocs []byte, p *place) error {
	le := binary.LittleEndian
	if len(relocs)%4 != 0 || le.Uint32(relocs) != 0 {
		return fmt.Errorf("%d bytes of relocations", len(relocs))
	}
	var lists [][]byte
	start := 4
	for i := 4; i <= len(relocs); i += 4 {
		if i == len(relocs) || le.Uint32(relocs[i:]) == 0 {
			lists = append(lists, relocs[start:i])
			start = i + 4
		}
	}
	apply := func(list []byte, width uint64, f func(b []byte)) error {
		for i := 0; i < len(list); i += 4 {
			at := uint64(int64(int32(le.Uint32(list[i:])))) - startKernelMap - uint64(p.pref)
			if at > p.size-width {
				return fmt.Errorf("a relocation at %#x", le.Uint32(list[i:]))
			}
			f(image[at:])
		}
		return nil
	}
	var less []byte
	switch len(lists) {
	case 3:
		less = lists[1]
	case 2:
	default:
		return fmt.Errorf("%d lists of relocations", len(lists))
	}
	delta := uint32(p.virt)
	return errors.Join(
		apply(lists[0], 8, func(b []byte) { le.PutUint64(b, le.Uint64(b)+p.virt) }),
		apply(less, 4, func(b []byte) { le.PutUint32(b, le.Uint32(b)-delta) }),
		apply(lists[len(lists)-1], 4, func(b []byte) { le.PutUint32(b, le.Uint32(b)+delta) }),
	)
}

// unpack decompresses a bzImage to a place below end and returns its entry. An error
// says that the kernel is one that it does not understand to the last byte.
func unpack(mem Memory, c Config, head []byte, setup int64, pref, end hypervisor.PhysAddr, need uint64) (hypervisor.PhysAddr, *place, error) {
	if end > layout.LowRAMEnd {
		end = layout.LowRAMEnd // longMode's tables reach beyond
	}
	p, err := choosePlace(pref, end, need, uint64(binary.LittleEndian.Uint32(head[offKernelAlignment:])), c.CommandLine)
	if err != nil {
		return 0, nil, err
	}
	r, length, err := payload(c.Kernel, head, setup, need)
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	entry, err := loadVmlinux(mem, r, length, &p)
	return entry, &p, err
}
