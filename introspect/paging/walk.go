package paging

import (
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// walk walks the tables for va and keeps what it found.
func (as *AddressSpace) walk(va hypervisor.VirtAddr) (*tlbEntry, error) {
	e := &tlbEntry{}
	fromLast, err := as.walkTo(va, e, true)
	if err != nil {
		return nil, err
	}
	as.tlb.insert(va, fromLast, e)
	return e, nil
}

// Walk translates va as Translate does, but uses and keeps nothing that was
// translated before: it reads one entry of each table. It is for address spaces
// of which little is read, once. Errors as those of Translate.
func (as *AddressSpace) Walk(va hypervisor.VirtAddr) (Mapping, error) {
	if as.layout == nil {
		return Mapping{}, fmt.Errorf("translate gva %#x: %w: %v", uint64(va), ErrBadRoot, as.root.Mode)
	}
	var e tlbEntry
	_, err := as.walkTo(va, &e, false)
	return e.Mapping, err
}

// walkTo fills e with the translation of va, and returns how far from the last
// level the page was found. With keep it starts at the last-level table where
// that is known, and keeps that.
func (as *AddressSpace) walkTo(va hypervisor.VirtAddr, e *tlbEntry, keep bool) (fromLast int, err error) {
	l := as.layout
	if !l.canonical(va) {
		return 0, &NotMappedError{Addr: va, Kind: KindNonCanonical}
	}
	// Before the first read: what a Flush overtakes must not be found later.
	epoch := as.tlb.epoch.Load()
	first, table, perms := 0, as.root.CR3, Write|User
	var view []byte
	if keep {
		if t := as.tlb.lookupTable(va); t != nil && t.epoch == epoch {
			first, table, perms, view = len(l.levels)-1, t.table, t.perms, t.view
		}
	}
	for i := first; i < len(l.levels); i++ {
		lv := &l.levels[i]
		index := uint64(va) >> lv.shift & (lv.entries - 1)
		addr := table + hypervisor.PhysAddr(index*l.entrySize)
		entry, err := as.readEntry(addr, view, index)
		if err != nil {
			return 0, &NotMappedError{Addr: va, Kind: KindUnreadable, Level: lv.number, Table: addr, Err: err}
		}
		out := l.decode(lv, entry)
		if out.kind != 0 {
			return 0, &NotMappedError{Addr: va, Kind: out.kind, Level: lv.number, Entry: entry, Table: addr}
		}
		perms = l.permissions(lv, perms, entry)
		size := uint64(1) << lv.shift
		virt := va &^ hypervisor.VirtAddr(size-1)
		if out.page {
			e.epoch = epoch
			e.Mapping = Mapping{Virt: virt, Phys: out.phys, Size: size, Flags: out.flags(lv, perms, entry)}
			if keep {
				// A page that is no RAM has no view; ReadPhys says so to who reads it.
				e.view = as.view(out.phys, size)
			}
			return len(l.levels) - 1 - i, nil
		}
		table = out.phys
		if lv.number == 2 && keep {
			if view = as.view(table, hypervisor.PageSize); len(view) < hypervisor.PageSize {
				view = nil // all of it or nothing
			}
			as.tlb.tables.store(va, &tableEntry{virt: virt, size: size, epoch: epoch, table: table, perms: perms, view: view})
		}
	}
	// Not reached: an entry of the last level is a page or a hole.
	return 0, &NotMappedError{Addr: va, Kind: KindReserved}
}

// readEntry reads the entry at addr, which is entry index of view where there
// is a view of its table.
func (as *AddressSpace) readEntry(addr hypervisor.PhysAddr, view []byte, index uint64) (uint64, error) {
	size := as.layout.entrySize
	var buf [8]byte
	switch off := index * size; {
	case off+size <= uint64(len(view)):
		view = view[off:]
	default:
		view = as.view(addr, size)
	}
	if uint64(len(view)) >= size {
		if _, err := hypervisor.CopyView(buf[:size], view); err != nil {
			return 0, err
		}
		return binary.LittleEndian.Uint64(buf[:]), nil
	}
	b := make([]byte, 8) // buf would escape through the interface on every call
	if err := hypervisor.ReadFull(as.mem, b[:size], addr); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}
