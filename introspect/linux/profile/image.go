package profile

import (
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// image is a kernel's image as the kernel's own page table maps it: virtually
// and physically contiguous, with holes where the kernel gave memory back.
type image struct {
	mem    hypervisor.Memory
	table  hypervisor.PhysAddr // level3_kernel_pgt, or what stands for it
	virt   hypervisor.VirtAddr // of the first mapped byte: _text
	phys   hypervisor.PhysAddr
	size   uint64 // from the first mapped byte to behind the last one
	rodata []span // read-only, not executable
	mapped uint64 // bytes, holes not counted
}

// span is a run of an image's bytes, from its start.
type span struct{ off, size uint64 }

var errNotAnImage = errors.New("page table maps no kernel image")

// readImage reads the image's mapping from level3, a table that covers the
// last 512 GiB of the address space. It returns errNotAnImage, or why the
// tables could not be read.
func readImage(mem hypervisor.Memory, level3 hypervisor.PhysAddr) (*image, error) {
	var p page
	if err := hypervisor.ReadFull(mem, p[:], level3); err != nil {
		return nil, fmt.Errorf("read kernel page table: %w", err)
	}
	e := p.entry(imageEntry)
	if !pointsToTable(e) {
		return nil, errNotAnImage
	}
	if err := hypervisor.ReadFull(mem, p[:], hypervisor.PhysAddr(e&entryAddr)); err != nil {
		return nil, fmt.Errorf("read kernel page table: %w", err)
	}
	im := &image{mem: mem, table: level3}
	for i := range tableEntries {
		e := p.entry(i)
		va := hypervisor.VirtAddr(kernelMap + uint64(i)*largePage)
		switch {
		case e&entryPresent == 0:
		case e&entryLarge != 0:
			im.add(va, e&entryAddr&^(largePage-1), largePage, e)
		default:
			im.addSmall(va, e)
		}
	}
	// The smallest kernel has more than 4 MiB of text, data and tables.
	if im.mapped < 2*largePage || uint64(im.virt)%largePage != 0 || uint64(im.phys)%largePage != 0 {
		return nil, errNotAnImage
	}
	return im, nil
}

// addSmall adds the pages of the table that entry e points to.
func (im *image) addSmall(va hypervisor.VirtAddr, e uint64) {
	var p page
	if hypervisor.ReadFull(im.mem, p[:], hypervisor.PhysAddr(e&entryAddr)) != nil {
		return // a hole: what needs it will say so
	}
	for i := range tableEntries {
		pe := p.entry(i)
		if pe&entryPresent == 0 {
			continue
		}
		im.add(va+hypervisor.VirtAddr(i*hypervisor.PageSize), pe&entryAddr, hypervisor.PageSize, pe&(e|^uint64(entryWrite))|e&entryNX)
	}
}

// add adds size bytes at va, mapped to pa by entry e; calls come in order of va.
func (im *image) add(va hypervisor.VirtAddr, pa, size, e uint64) {
	if im.mapped == 0 {
		im.virt, im.phys = va, hypervisor.PhysAddr(pa)
	}
	off := uint64(va - im.virt)
	if pa != uint64(im.phys)+off {
		return // not of the image: modules of a kernel without KASLR
	}
	im.mapped += size
	im.size = off + size
	if e&entryWrite != 0 || e&entryNX == 0 {
		return
	}
	if n := len(im.rodata); n > 0 && im.rodata[n-1].off+im.rodata[n-1].size == off {
		im.rodata[n-1].size += size
		return
	}
	im.rodata = append(im.rodata, span{off, size})
}

// holdsItsTable reports whether the table that the image was read from lies in
// the image itself, as the kernel's does. A stale copy's does not.
func (im *image) holdsItsTable() bool {
	return im.table >= im.phys && uint64(im.table-im.phys) < im.size
}

// searched returns where the kernel's tables are looked for, the likely places
// first: early in boot and with rodata=off all of the image can be written to.
func (im *image) searched() []span {
	return append(im.rodata[:len(im.rodata):len(im.rodata)], span{0, im.size})
}

// contains reports whether va lies in the image.
func (im *image) contains(va hypervisor.VirtAddr) bool {
	return va >= im.virt && uint64(va-im.virt) < im.size
}

// view returns size bytes from offset off: guest memory itself where possible,
// else a copy. It is only for searching: the guest may change it.
func (im *image) view(off, size uint64) ([]byte, error) {
	if off > im.size || size > im.size-off {
		return nil, fmt.Errorf("image offset %#x, size %#x: outside of the image", off, size)
	}
	if m, ok := im.mem.(hypervisor.Mapper); ok {
		if b, err := m.MapPhys(im.phys+hypervisor.PhysAddr(off), size); err == nil && uint64(len(b)) == size {
			return b, nil
		}
	}
	return im.copy(off, size)
}

// copy returns a private copy of size bytes from offset off.
func (im *image) copy(off, size uint64) ([]byte, error) {
	if off > im.size || size > im.size-off {
		return nil, fmt.Errorf("image offset %#x, size %#x: outside of the image", off, size)
	}
	b := make([]byte, size)
	if err := hypervisor.ReadFull(im.mem, b, im.phys+hypervisor.PhysAddr(off)); err != nil {
		return nil, err
	}
	return b, nil
}

// offset returns va's offset in the image.
func (im *image) offset(va hypervisor.VirtAddr) (uint64, bool) {
	return uint64(va - im.virt), im.contains(va)
}
