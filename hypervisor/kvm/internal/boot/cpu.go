package boot

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// Bits of control registers and page table entries (Intel SDM 3A, 2.5 and 4.5).
const (
	cr0PE   = 1 << 0
	cr0ET   = 1 << 4
	cr0NE   = 1 << 5
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10

	present = 1 << 0
	write   = 1 << 1
	huge    = 1 << 7
)

// Attributes of segments: type, S, DPL, P, AVL, L, D/B, G as in descriptor bits
// 40 to 55.
const (
	code64 = 0xa09b
	code32 = 0xc09b
	data32 = 0xc093
	tss32  = 0x008b
)

// Selectors that the boot protocols name: __BOOT_CS and __BOOT_DS.
const (
	bootCS = 0x10
	bootDS = 0x18
)

// descriptor packs a flat segment of 4 GiB.
func descriptor(attributes uint64) uint64 {
	return 0xffff | attributes&0xf0ff<<40 | 0xf<<48
}

// flat returns registers with flat segments, and puts their table into memory.
func flat(mem Memory, codeAttributes uint16) (hypervisor.Registers, error) {
	gdt := make([]byte, 4*8)
	binary.LittleEndian.PutUint64(gdt[bootCS:], descriptor(uint64(codeAttributes)))
	binary.LittleEndian.PutUint64(gdt[bootDS:], descriptor(data32))
	if err := put(mem, gdt, layout.BootGDT); err != nil {
		return hypervisor.Registers{}, err
	}
	data := hypervisor.Segment{Selector: bootDS, Limit: 0xffff_ffff, Attributes: data32}
	return hypervisor.Registers{
		Valid:  hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl,
		RFLAGS: 2,
		RSP:    uint64(layout.BootStack),
		CS:     hypervisor.Segment{Selector: bootCS, Limit: 0xffff_ffff, Attributes: codeAttributes},
		DS:     data, ES: data, FS: data, GS: data, SS: data,
		TR:  hypervisor.Segment{Limit: 0x67, Attributes: tss32},
		GDT: hypervisor.Table{Base: hypervisor.VirtAddr(layout.BootGDT), Limit: uint16(len(gdt) - 1)},
		CR0: cr0PE | cr0ET | cr0NE,
	}, nil
}

// longMode is the state that the 64-bit protocol asks for: paging on, with the
// low 4 GiB mapped to themselves in pages of 2 MiB.
func longMode(mem Memory) (hypervisor.Registers, error) {
	const gigabytes, entries = 4, 512
	tables := make([]byte, (2+gigabytes)*hypervisor.PageSize)
	base := uint64(layout.BootTables)
	set := func(page, i int, v uint64) {
		binary.LittleEndian.PutUint64(tables[page*hypervisor.PageSize+8*i:], v)
	}
	set(0, 0, (base+hypervisor.PageSize)|present|write)
	for g := range gigabytes {
		set(1, g, (base+uint64(2+g)*hypervisor.PageSize)|present|write)
		for i := range entries {
			set(2+g, i, uint64(g*entries+i)<<21|present|write|huge)
		}
	}
	if err := put(mem, tables, layout.BootTables); err != nil {
		return hypervisor.Registers{}, err
	}
	r, err := flat(mem, code64)
	r.CR0 |= cr0PG
	r.CR3, r.CR4, r.EFER = base, cr4PAE, eferLME|eferLMA
	return r, err
}
