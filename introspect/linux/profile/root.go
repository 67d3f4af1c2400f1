package profile

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

func leUint64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// findRoot returns the kernel's own page table: init_top_pgt, which must lead
// to the table that the image was read from.
func findRoot(im *image, syms *Symbols) (paging.Root, error) {
	s, err := syms.Lookup("init_top_pgt")
	if err != nil {
		// Kernels without CONFIG_KALLSYMS_ALL have no symbols for data.
		return searchRoot(im)
	}
	off, ok := im.offset(s.Addr)
	if !ok {
		return paging.Root{}, &SanityError{Symbol: s.Name, Addr: s.Addr, Want: "an address in the kernel's image"}
	}
	top := im.phys + hypervisor.PhysAddr(off)
	mode, ok := modeOf(im, top)
	if !ok {
		return paging.Root{}, &SanityError{Symbol: s.Name, Addr: s.Addr, Want: "a page table that maps the kernel's image"}
	}
	return paging.Root{Mode: mode, CR3: top, NX: true}, nil
}

// modeOf returns by how many levels the table top leads to the image's.
func modeOf(im *image, top hypervisor.PhysAddr) (paging.Mode, bool) {
	for _, mode := range []paging.Mode{paging.Mode4Level, paging.Mode5Level} {
		if t, err := level3Of(im.mem, top, mode); err == nil && t == im.table {
			return mode, true
		}
	}
	return 0, false
}

// searchRoot finds the kernel's page table in its image by structure: it leads
// to the image, and it maps something else of the kernel's half too, which
// early_top_pgt does not.
func searchRoot(im *image) (paging.Root, error) {
	for off := uint64(0); off < im.size; off += hypervisor.PageSize {
		top := im.phys + hypervisor.PhysAddr(off)
		mode, ok := modeOf(im, top)
		if !ok {
			continue
		}
		var p page
		if err := hypervisor.ReadFull(im.mem, p[:], top); err != nil {
			continue
		}
		for i := tableEntries / 2; i < tableEntries-1; i++ {
			if pointsToTable(p.entry(i)) {
				return paging.Root{Mode: mode, CR3: top, NX: true}, nil
			}
		}
	}
	return paging.Root{}, fmt.Errorf("%w: no page table in the image leads to it", ErrNoKernel)
}

// Where the direct map and vmemmap are without CONFIG_RANDOMIZE_MEMORY
// (asm/page_64_types.h, asm/pgtable_64_types.h).
const (
	pageOffset4 = 0xffff_8880_0000_0000 // __PAGE_OFFSET_BASE_L4
	pageOffset5 = 0xff11_0000_0000_0000 // __PAGE_OFFSET_BASE_L5
	vmemmap4    = 0xffff_ea00_0000_0000 // __VMEMMAP_BASE_L4
	vmemmap5    = 0xffd4_0000_0000_0000 // __VMEMMAP_BASE_L5
)

// findBases fills in PageOffset and VmemmapBase.
func (k *Kernel) findBases(ctx context.Context) {
	k.PageOffset, k.VmemmapBase = pageOffset4, vmemmap4
	if k.Root.Mode == paging.Mode5Level {
		k.PageOffset, k.VmemmapBase = pageOffset5, vmemmap5
	}
	if v, err := k.readPointer("vmemmap_base"); err == nil {
		k.VmemmapBase = v
	}
	if v, err := k.readPointer("page_offset_base"); err == nil && k.isDirectMap(v) {
		k.PageOffset = v
		return
	}
	if k.isDirectMap(k.PageOffset) {
		return
	}
	// The direct map is the lowest thing in the kernel's half that maps the
	// image, but for what is there of the LDT.
	const maxLooks = 4096
	looks := 0
	lo := hypervisor.VirtAddr(0xffff_8000_0000_0000)
	if k.Root.Mode == paging.Mode5Level {
		lo = 0xff00_0000_0000_0000
	}
	for m, err := range k.Space.Mappings(ctx, lo, k.VmemmapBase) {
		if looks++; looks > maxLooks || ctx.Err() != nil {
			return
		}
		if err != nil {
			continue
		}
		if base := m.Virt - hypervisor.VirtAddr(m.Phys); base&(1<<30-1) == 0 && k.isDirectMap(base) {
			k.PageOffset = base
			return
		}
	}
}

// isDirectMap reports whether physical memory is mapped from base on.
func (k *Kernel) isDirectMap(base hypervisor.VirtAddr) bool {
	m, err := k.Space.Translate(base + hypervisor.VirtAddr(k.PhysBase))
	return err == nil && m.At(base+hypervisor.VirtAddr(k.PhysBase)) == k.PhysBase
}

// readPointer reads the 8-byte variable name.
func (k *Kernel) readPointer(name string) (hypervisor.VirtAddr, error) {
	s, err := k.Symbols.Lookup(name)
	if err != nil {
		return 0, err
	}
	var b [8]byte
	if _, err := k.Space.ReadVirt(b[:], s.Addr); err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return hypervisor.VirtAddr(leUint64(b[:])), nil
}
