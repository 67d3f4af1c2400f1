package boot

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// PVH (xen/include/public/elfnote.h, arch-x86/hvm/start_info.h).
const (
	notePhys32Entry = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	startInfoMagic  = 0x336ec578
	sizeStartInfo   = 56
	sizeModule      = 32
	sizeMemoryEntry = 24
	mostOfNotes     = 1 << 20
)

// loadELF boots a vmlinux by its PVH entry.
func loadELF(mem Memory, c Config) (regs hypervisor.Registers, err error) {
	f, err := elf.NewFile(io.NewSectionReader(c.Kernel, 0, c.Kernel.Size))
	if err != nil {
		return regs, fmt.Errorf("%w: %w", ErrNotKernel, err)
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return regs, fmt.Errorf("%w: this is an ELF file of type %v for %v: want an executable for x86-64", ErrNotKernel, f.Type, f.Machine)
	}
	entry, err := pvhEntry(f)
	if err != nil {
		return regs, err
	}
	var end hypervisor.PhysAddr
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Memsz == 0 {
			continue
		}
		start := hypervisor.PhysAddr(p.Paddr)
		if p.Filesz > p.Memsz || p.Memsz > uint64(mostOfKernel) || start < layout.Megabyte || start > 1<<40 {
			return regs, fmt.Errorf("%w: a segment of %d bytes at %v", ErrNotKernel, p.Memsz, start)
		}
		segment := start + hypervisor.PhysAddr(p.Memsz)
		if segment > lowRAM(mem) {
			return regs, fmt.Errorf("%w: the kernel alone needs memory up to %v: give it at least %d MiB", ErrMemory, segment, uint64(segment)>>20+1)
		}
		if err := read(mem, c.Kernel, int64(p.Off), int64(p.Filesz), start); err != nil {
			return regs, fmt.Errorf("read kernel: %w", err)
		}
		zero, err := mem.View(start+hypervisor.PhysAddr(p.Filesz), p.Memsz-p.Filesz)
		if err != nil && p.Memsz > p.Filesz {
			return regs, fmt.Errorf("%w: %w", ErrMemory, err)
		}
		clear(zero)
		mem.Dirtied(start+hypervisor.PhysAddr(p.Filesz), p.Memsz-p.Filesz)
		end = max(end, segment)
	}
	if entry < layout.Megabyte || entry >= end {
		return regs, fmt.Errorf("%w: its PVH entry %v is in none of its segments", ErrNotKernel, entry)
	}
	// The kernel's brk and early page tables follow its image.
	initrd, err := placeInitrd(mem, c.Initrd, (end+(2<<20)-1)&^(2<<20-1)+8<<20, layout.LowRAMEnd)
	if err != nil {
		return regs, err
	}
	if len(c.CommandLine) > 2047 { // COMMAND_LINE_SIZE of x86
		return regs, fmt.Errorf("the command line has %d bytes, this kernel takes 2047", len(c.CommandLine))
	}
	if err := put(mem, append([]byte(c.CommandLine), 0), layout.CommandLine); err != nil {
		return regs, err
	}
	if err := put(mem, startInfo(mem, c, initrd), layout.BootParams); err != nil {
		return regs, err
	}
	regs, err = flat(mem, code32)
	regs.RIP = hypervisor.VirtAddr(entry)
	regs.RBX = uint64(layout.BootParams)
	return regs, err
}

// pvhEntry returns the physical address of the kernel's 32-bit entry.
func pvhEntry(f *elf.File) (hypervisor.PhysAddr, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > mostOfNotes {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := io.ReadFull(p.Open(), b); err != nil {
			return 0, fmt.Errorf("read kernel: notes: %w", err)
		}
		for len(b) >= 12 {
			name, desc, kind := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
			b = b[12:]
			nameLen, descLen := (uint64(name)+3)&^3, (uint64(desc)+3)&^3
			if nameLen+descLen > uint64(len(b)) {
				break
			}
			value := b[nameLen : nameLen+descLen]
			if kind == notePhys32Entry && name == 4 && string(b[:4]) == "Xen\x00" {
				switch {
				case desc == 4:
					return hypervisor.PhysAddr(binary.LittleEndian.Uint32(value)), nil
				case desc == 8:
					return hypervisor.PhysAddr(binary.LittleEndian.Uint64(value)), nil
				}
			}
			b = b[nameLen+descLen:]
		}
	}
	return 0, fmt.Errorf("%w: this ELF file has no PVH entry: build the kernel with CONFIG_PVH=y, or boot its bzImage", ErrNotKernel)
}

// startInfo is struct hvm_start_info, with the tables that it points to behind it.
func startInfo(mem Memory, c Config, initrd hypervisor.PhysAddr) []byte {
	le := binary.LittleEndian
	table := memoryMap(mem)
	b := make([]byte, sizeStartInfo+sizeModule+len(table)*sizeMemoryEntry)
	modules, entries := sizeStartInfo, sizeStartInfo+sizeModule
	le.PutUint32(b, startInfoMagic)
	le.PutUint32(b[4:], 1)
	if initrd != 0 {
		le.PutUint32(b[12:], 1)
		le.PutUint64(b[16:], uint64(layout.BootParams)+uint64(modules))
		le.PutUint64(b[modules:], uint64(initrd))
		le.PutUint64(b[modules+8:], uint64(c.Initrd.Size))
	}
	le.PutUint64(b[24:], uint64(layout.CommandLine))
	le.PutUint64(b[32:], uint64(c.RSDP))
	le.PutUint64(b[40:], uint64(layout.BootParams)+uint64(entries))
	le.PutUint32(b[48:], uint32(len(table)))
	for i, e := range table {
		at := b[entries+i*sizeMemoryEntry:]
		le.PutUint64(at, uint64(e.start))
		le.PutUint64(at[8:], e.size)
		le.PutUint32(at[16:], e.kind)
	}
	return b
}
