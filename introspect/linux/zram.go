package linux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

var (
	// errZramSlot: the kernel has taken the page back, and not yet told its
	// page table; or it is a page of zeros that only the swap table knows of.
	errZramSlot = errors.New("the zram device has nothing at this place")
	errZramAway = errors.New("the zram device has written the page to its backing device")
)

const (
	// zramSizeBits is ZRAM_FLAG_SHIFT (drivers/block/zram/zram_drv.h): below
	// lies the length of what is stored, above lie flags.
	zramSizeBits = hypervisor.PageShift + 1
	maxModuleBTF = 16 << 20
	zsMagic      = 0x58 // ZSPAGE_MAGIC, mm/zsmalloc.c
	zsAllocated  = 1    // OBJ_ALLOCATED_TAG
	// zsIndexBits is how many bits of an object's place are not its frame's
	// number: of 64, 40 are (MAX_POSSIBLE_PHYSMEM_BITS - PAGE_SHIFT).
	zsIndexBits = 24
	zsHandleLen = 8 // ZS_HANDLE_SIZE
)

// zramFields is where the facts of a zram device and its allocator lie: in the
// types of the two modules.
type zramFields struct {
	table, pool, comp, compName, disksize field // in zram
	handle, flags                         field // in zram_table_entry
	entrySize                             uint64
	same, backing, huge                   uint64 // bits of flags
	poolClasses                           field  // in zs_pool
	classSize                             field  // in size_class
	zsClass, zsHuge, zsMagic              profile.Field
}

// zramDevice is a zram device.
type zramDevice struct {
	f           *zramFields
	table, pool hypervisor.VirtAddr
	pages       uint64
	algorithm   string
	buf         []byte
}

// moduleTypes returns the kernel's types and those of a module, from the
// kernel's own list of them (kernel/bpf/btf.c).
func (s *swapLook) moduleTypes(name string) (*profile.Types, error) {
	f, m, r := s.f, &s.g.lay.module, &s.g.r
	if f.modules == 0 || !f.btfList.ok || !f.btfModule.ok || !f.btfBTF.ok || !f.btfData.ok || !f.btfSize.ok || !m.name.ok {
		return nil, fmt.Errorf("%w: this kernel keeps no types of modules", profile.ErrNoBTF)
	}
	var data, size uint64
	_, err := r.walkList(context.Background(), f.modules, forward, maxModules, func(node, _ hypervisor.VirtAddr) (links, error) {
		o, _, err := r.object(nil, node-hypervisor.VirtAddr(f.btfList.off), spanOf(f.btfList, f.btfModule, f.btfBTF))
		if err != nil {
			return links{}, err
		}
		mod, btf := o.ptr(f.btfModule), o.ptr(f.btfBTF)
		if r.check(node, mod, 8) == nil && r.check(node, btf, 8) == nil {
			if n, err := r.cstring(mod+hypervisor.VirtAddr(m.name.off), int(m.name.size)); err == nil && n == name {
				b, _, err := r.object(nil, btf, spanOf(f.btfData, f.btfSize))
				if err != nil {
					return links{}, err
				}
				data, size = b.uint(f.btfData), b.uint(f.btfSize)
				return links{}, errPathFound
			}
		}
		return o.links(f.btfList), nil
	})
	if data == 0 {
		if err == nil {
			err = profile.ErrNoBTF
		}
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	if size > maxModuleBTF {
		return nil, fmt.Errorf("types of module %s: %w: %d bytes", name, ErrLimit, size)
	}
	if err := r.check(f.modules, hypervisor.VirtAddr(data), 1); err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	blob := make([]byte, size)
	if err := r.full(blob, hypervisor.VirtAddr(data)); err != nil {
		return nil, fmt.Errorf("types of module %s: %w", name, err)
	}
	return s.g.kernel.Types.WithModule(blob)
}

// zramFields looks the facts up.
func (s *swapLook) zramFields() (*zramFields, error) {
	zram, err := s.moduleTypes("zram")
	if err != nil {
		return nil, err
	}
	zs := s.g.kernel.Types
	if !zs.Has("zspage.magic") { // else it is built in
		if zs, err = s.moduleTypes("zsmalloc"); err != nil {
			return nil, err
		}
	}
	f := &zramFields{}
	lost, _, problems := lookUpFacts(zram, []fact{
		{&f.table, 8, must, []string{"zram.table"}},
		{&f.pool, 8, must, []string{"zram.mem_pool"}},
		{&f.disksize, 8, must, []string{"zram.disksize"}},
		{&f.comp, 0, may, []string{"zram.comp_algs"}},      // since 6.2: names
		{&f.compName, 0, may, []string{"zram.compressor"}}, // until then: its text
		{&f.handle, 8, must, []string{"zram_table_entry.handle"}},
		{&f.flags, 0, must, []string{"zram_table_entry.flags", "zram_table_entry.attr.flags"}}, // moved in 6.17
	})
	lost2, _, problems2 := lookUpFacts(zs, []fact{
		{&f.poolClasses, 0, must, []string{"zs_pool.size_class"}},
		{&f.classSize, 4, must, []string{"size_class.size"}},
	})
	if lost = append(lost, lost2...); len(lost) > 0 || !f.comp.ok && !f.compName.ok {
		return nil, fmt.Errorf("zram: %w: %q", profile.ErrNoType, lost)
	}
	if err := errors.Join(append(problems, problems2...)...); err != nil {
		return nil, err
	}
	for name, to := range map[string]*profile.Field{"zspage.class": &f.zsClass, "zspage.huge": &f.zsHuge, "zspage.magic": &f.zsMagic} {
		if *to, err = zs.Field(name); err != nil {
			return nil, err
		}
		if to.Offset > maxOffset || to.BitSize == 0 || to.BitOffset+to.BitSize > 32 {
			return nil, fmt.Errorf("%s: %w", name, ErrTorn)
		}
	}
	if f.entrySize, err = zram.Size("zram_table_entry"); err != nil {
		return nil, err
	}
	if f.entrySize < 16 || f.entrySize > 256 || f.handle.off+8 > f.entrySize || f.flags.off+f.flags.size > f.entrySize {
		return nil, fmt.Errorf("zram_table_entry: %w: %d bytes", ErrTorn, f.entrySize)
	}
	for name, to := range map[string]*uint64{"ZRAM_SAME": &f.same, "ZRAM_WB": &f.backing, "ZRAM_HUGE": &f.huge} {
		n, err := zram.EnumValue("zram_pageflags", name)
		if err != nil {
			return nil, err
		}
		if n < zramSizeBits || n > 31 {
			return nil, fmt.Errorf("%s: %w: bit %d", name, ErrTorn, n)
		}
		*to = uint64(n)
	}
	return f, nil
}

// openZram reads the struct zram at addr.
func (s *swapLook) openZram(addr hypervisor.VirtAddr) (*zramDevice, error) {
	r := &s.g.r
	if err := r.check(s.f.infos, addr, 8); err != nil {
		return nil, fmt.Errorf("zram: %w", err)
	}
	f, err := s.zramFields()
	if err != nil {
		return nil, err
	}
	o, _, err := r.object(nil, addr, spanOf(f.table, f.pool, f.disksize, f.comp, f.compName))
	if err != nil {
		return nil, fmt.Errorf("zram: %w", err)
	}
	z := &zramDevice{f: f, table: o.ptr(f.table), pool: o.ptr(f.pool), pages: o.uint(f.disksize) / hypervisor.PageSize}
	for _, p := range []hypervisor.VirtAddr{z.table, z.pool} {
		if err := r.check(addr, p, 8); err != nil {
			return nil, fmt.Errorf("zram: %w", err)
		}
	}
	if f.comp.ok {
		name := o.ptr(field{off: f.comp.off, size: 8, ok: true}) // the first; others are for what is compressed again
		if z.algorithm, err = r.cstring(name, 64); err != nil {
			return nil, fmt.Errorf("zram: algorithm: %w", err)
		}
	} else {
		z.algorithm = cString(o.bytes(f.compName))
	}
	return z, nil
}

// page reads page number index of the device.
func (z *zramDevice) page(s *swapLook, page []byte, index uint64) error {
	if index >= z.pages {
		return fmt.Errorf("zram page %d of %d: %w", index, z.pages, ErrTorn)
	}
	o, buf, err := s.g.r.object(z.buf, z.table+hypervisor.VirtAddr(index*z.f.entrySize), spanOf(z.f.handle, z.f.flags))
	z.buf = buf
	if err != nil {
		return fmt.Errorf("zram table: %w", err)
	}
	handle, flags := o.uint(z.f.handle), o.uint(z.f.flags)
	size := flags & (1<<zramSizeBits - 1)
	switch {
	case flags>>z.f.backing&1 != 0:
		return errZramAway
	case flags>>z.f.same&1 != 0:
		for i := 0; i+8 <= len(page); i += 8 {
			binary.LittleEndian.PutUint64(page[i:], handle)
		}
		return nil
	case handle == 0:
		return errZramSlot
	case size == 0 || size > hypervisor.PageSize:
		return fmt.Errorf("zram page of %d bytes: %w", size, ErrTorn)
	}
	data := make([]byte, size)
	if err := z.object(s, data, hypervisor.VirtAddr(handle)); err != nil {
		return fmt.Errorf("zram object: %w", err)
	}
	if size == hypervisor.PageSize {
		copy(page, data) // it could not be compressed
		return nil
	}
	return s.decoder.decode(page, data, z.algorithm)
}

// object reads the object of zsmalloc behind handle into data.
func (z *zramDevice) object(s *swapLook, data []byte, handle hypervisor.VirtAddr) error {
	r, pf := &s.g.r, s.pages.f
	if err := r.check(z.table, handle, 8); err != nil {
		return err
	}
	place, err := r.u64(handle)
	if err != nil {
		return err
	}
	first := s.g.kernel.VmemmapBase + hypervisor.VirtAddr(place>>zsIndexBits*pf.pageSize)
	zspage, err := r.ptr(first + hypervisor.VirtAddr(s.f.pagePrivate.off))
	if err != nil {
		return err
	}
	if err := r.check(first, zspage, 8); err != nil {
		return err
	}
	bits := func(f profile.Field) (uint64, error) {
		v, err := r.u32(zspage + hypervisor.VirtAddr(f.Offset))
		return uint64(v) >> f.BitOffset & (1<<f.BitSize - 1), err
	}
	magic, err := bits(z.f.zsMagic)
	if err == nil && magic != zsMagic {
		err = &PointerError{Where: first, Value: zspage, Err: ErrTorn}
	}
	if err != nil {
		return err
	}
	huge, err := bits(z.f.zsHuge)
	if err != nil {
		return err
	}
	if huge != 0 {
		return z.pieces(s, data, first, 0)
	}
	class, err := bits(z.f.zsClass)
	if err != nil {
		return err
	}
	if class*8+8 > z.f.poolClasses.size {
		return fmt.Errorf("class %d: %w", class, ErrTorn)
	}
	at, err := r.ptr(z.pool + hypervisor.VirtAddr(z.f.poolClasses.off+class*8))
	if err != nil {
		return err
	}
	if err := r.check(z.pool, at, 4); err != nil {
		return err
	}
	size, err := r.u32(at + hypervisor.VirtAddr(z.f.classSize.off))
	if err != nil {
		return err
	}
	if size == 0 || size > hypervisor.PageSize || uint64(len(data))+zsHandleLen > uint64(size) {
		return fmt.Errorf("%d bytes in a class of %d: %w", len(data), size, ErrTorn)
	}
	// The object's number is shifted by a bit in some kernels. An object
	// begins with its own handle, which tells.
	index := place & (1<<zsIndexBits - 1)
	for _, n := range []uint64{index, index >> 1} {
		var head [zsHandleLen]byte
		off := n * uint64(size) % hypervisor.PageSize
		if err = z.pieces(s, head[:], first, off); err != nil {
			continue
		}
		if binary.LittleEndian.Uint64(head[:]) == uint64(handle)|zsAllocated {
			return z.pieces(s, data, first, off+zsHandleLen)
		}
		err = fmt.Errorf("object %#x: %w", uint64(handle), ErrTorn)
	}
	return err
}

// pieces reads data at off in the page of the struct page first, and on in the
// next page of its zspage.
func (z *zramDevice) pieces(s *swapLook, data []byte, first hypervisor.VirtAddr, off uint64) error {
	page := first
	for len(data) > 0 {
		if off >= hypervisor.PageSize {
			// What is the page's index elsewhere is the next page here.
			next, err := s.g.r.ptr(page + hypervisor.VirtAddr(s.pages.f.index.off))
			if err != nil {
				return err
			}
			page, off = next, off-hypervisor.PageSize
			continue
		}
		phys, err := s.pages.physOf(page)
		if err != nil {
			return err
		}
		n := min(uint64(len(data)), hypervisor.PageSize-off)
		if got, err := s.g.mem.ReadPhys(data[:n], phys+hypervisor.PhysAddr(off)); uint64(max(got, 0)) < n {
			return fmt.Errorf("read of a page of zsmalloc: %w", errors.Join(err, hypervisor.ErrUnreadable))
		}
		data, off = data[n:], off+n
	}
	return nil
}
