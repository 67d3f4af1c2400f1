package paging

import (
	"context"
	"iter"
	"math"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Mappings yields every page of [lo, hi) in ascending order of address; hi 0
// is the end of the address space. Pages that lie only partly in there are
// yielded whole.
//
// Holes that are worth telling of come between them, as an error with a Mapping
// of which Virt and Size say what the hole covers: a *NotMappedError of
// KindSwapped, KindReserved or KindUnreadable. Entries that are just empty are
// passed over.
//
// The iteration goes to the tables as it is consumed, keeps nothing, and reads
// each table page at one moment. It ends early, with a last error and an empty
// Mapping, when ctx is done (its error) or the tree is larger than WithMaxTables
// and WithMaxMappings allow (*LimitError).
func (as *AddressSpace) Mappings(ctx context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		if as.layout == nil {
			yield(Mapping{}, ErrBadRoot)
			return
		}
		w := &treeWalk{as: as, ctx: ctx, yield: yield, lo: lo, last: hi - 1}
		if hi != 0 && hi <= lo {
			return
		}
		w.table(0, as.root.CR3, 0, Write|User)
	}
}

// Runs is Mappings with neighbours of equal Permissions merged: virtually
// contiguous memory, wherever it lies physically. No run is longer than limit bytes
// (0: no limit). Errors come as from Mappings, with a Run that covers the hole.
func (as *AddressSpace) Runs(ctx context.Context, lo, hi hypervisor.VirtAddr, limit uint64) iter.Seq2[Run, error] {
	if limit == 0 {
		limit = math.MaxUint64
	}
	return func(yield func(Run, error) bool) {
		var run Run
		for m, err := range as.Mappings(ctx, lo, hi) {
			perms := m.Flags & Permissions
			if err == nil && run.Size > 0 && run.End() == m.Virt && run.Flags == perms && run.Size+m.Size <= limit {
				run.Size += m.Size
				continue
			}
			if run.Size > 0 && !yield(run, nil) {
				return
			}
			run = Run{}
			if err != nil {
				if !yield(Run{Virt: m.Virt, Size: m.Size}, err) {
					return
				}
				continue
			}
			run = Run{Virt: m.Virt, Size: m.Size, Flags: perms}
		}
		if run.Size > 0 {
			yield(run, nil)
		}
	}
}

// treeWalk is one iteration over the tables.
type treeWalk struct {
	as       *AddressSpace
	ctx      context.Context
	yield    func(Mapping, error) bool
	lo, last hypervisor.VirtAddr // both inclusive

	bufs            [5][hypervisor.PageSize]byte // one table per level, as it was read
	tables, yielded uint64
}

// table yields what the table of level index li at addr maps, from address base
// on. It reports whether to go on.
func (w *treeWalk) table(li int, addr hypervisor.PhysAddr, base hypervisor.VirtAddr, perms Flags) bool {
	l := w.as.layout
	lv := &l.levels[li]
	if err := w.ctx.Err(); err != nil {
		w.yield(Mapping{}, err)
		return false
	}
	if w.tables++; w.tables > w.as.maxTables {
		w.yield(Mapping{}, &LimitError{What: "table pages", Max: w.as.maxTables, At: max(base, w.lo)})
		return false
	}
	size := uint64(1) << lv.shift
	buf := w.bufs[li][:lv.entries*l.entrySize]
	n, err := w.as.readTable(buf, addr)
	for i := uint64(0); i < lv.entries; i++ {
		virt := base + hypervisor.VirtAddr(i<<lv.shift)
		if li == 0 && l.signed && uint64(virt)>>(l.vaBits-1) != 0 {
			virt |= hypervisor.VirtAddr(uint64(math.MaxUint64) << l.vaBits)
		}
		if virt+hypervisor.VirtAddr(size-1) < w.lo {
			continue
		}
		if virt > w.last {
			return true
		}
		off := i * l.entrySize
		if off+l.entrySize > uint64(n) {
			// The rest of the table is one hole.
			e := &NotMappedError{
				Addr: virt, Kind: KindUnreadable, Level: lv.number,
				Table: addr + hypervisor.PhysAddr(off), Err: err,
			}
			return w.emit(Mapping{Virt: virt, Size: size * (lv.entries - i)}, e)
		}
		entry := l.load(buf, i)
		if entry == 0 {
			continue
		}
		out := l.decode(lv, entry)
		p := l.permissions(lv, perms, entry)
		var ok bool
		switch {
		case out.kind != 0:
			ok = w.emit(Mapping{Virt: virt, Size: size}, &NotMappedError{
				Addr: virt, Kind: out.kind, Level: lv.number, Entry: entry,
				Table: addr + hypervisor.PhysAddr(off),
			})
		case out.page:
			ok = w.emit(Mapping{Virt: virt, Phys: out.phys, Size: size, Flags: out.flags(lv, p, entry)}, nil)
		default:
			ok = w.table(li+1, out.phys, virt, p)
		}
		if !ok {
			return false
		}
	}
	return true
}

func (w *treeWalk) emit(m Mapping, err error) bool {
	if limit := w.as.maxMappings; limit > 0 && w.yielded >= limit {
		w.yield(Mapping{}, &LimitError{What: "mappings", Max: limit, At: m.Virt})
		return false
	}
	w.yielded++
	return w.yield(m, err)
}

// readTable copies a table: the guest may change it while it is looked at.
func (as *AddressSpace) readTable(buf []byte, addr hypervisor.PhysAddr) (int, error) {
	if view := as.view(addr, uint64(len(buf))); len(view) >= len(buf) {
		return hypervisor.CopyView(buf, view)
	}
	return as.mem.ReadPhys(buf, addr)
}
