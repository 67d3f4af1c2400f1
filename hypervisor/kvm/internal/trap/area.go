package trap

import (
	"cmp"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	kvmslots "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/slots"
)

// area is a run of pages that the same traps watch.
type area struct {
	first, last hypervisor.Frame
	mode        kvmslots.Mode
	protect     bool // by userfaultfd
	traps       []*trap
}

func (a *area) size() uint64 { return uint64(a.last-a.first+1) * hypervisor.PageSize }

// find returns the area that f is in, or nil.
func (e *Engine) find(f hypervisor.Frame) *area {
	lo, hi := 0, len(e.areas)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if e.areas[mid].last < f {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(e.areas) && e.areas[lo].first <= f {
		return &e.areas[lo]
	}
	return nil
}

// plan makes areas of traps on pages and the pages of breakpoints.
func plan(list []*trap) []area {
	type edge struct {
		at    hypervisor.Frame
		begin bool
		trap  *trap
	}
	var edges []edge
	for _, t := range list {
		if t.Kind == hypervisor.TrapPage || t.Kind == hypervisor.TrapBreakpoint {
			edges = append(edges, edge{t.first, true, t}, edge{t.last + 1, false, t})
		}
	}
	slices.SortStableFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var out []area
	var active []*trap
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			if e := edges[i]; e.begin {
				active = append(active, e.trap)
			} else {
				active = slices.DeleteFunc(active, func(t *trap) bool { return t == e.trap })
			}
		}
		if len(active) == 0 {
			continue
		}
		a := area{first: at, last: edges[i].at - 1}
		for _, t := range active {
			switch {
			case t.Kind == hypervisor.TrapBreakpoint, t.Mechanism == hypervisor.MechanismReadOnlySlot:
				a.mode = max(a.mode, kvmslots.ReadOnly)
			case t.Mechanism == hypervisor.MechanismNoSlot:
				a.mode = kvmslots.None
			default:
				a.protect = true
			}
			if t.Kind == hypervisor.TrapPage {
				a.traps = append(a.traps, t)
			}
		}
		slices.SortFunc(a.traps, func(x, y *trap) int { return cmp.Compare(x.id, y.id) })
		// What slots catch, userfaultfd need not.
		a.protect = a.protect && a.mode == kvmslots.RAM
		out = append(out, a)
	}
	return out
}

// slotAreas are the areas that are not RAM, without those of pages in open.
func slotAreas(areas []area, open []hypervisor.Frame) []kvmslots.Area {
	var out []kvmslots.Area
	add := func(first, end hypervisor.Frame, m kvmslots.Mode) {
		if first < end {
			out = append(out, kvmslots.Area{
				Range: hypervisor.Range{Start: first.Addr(), Size: uint64(end-first) * hypervisor.PageSize}, Mode: m,
			})
		}
	}
	for _, a := range areas {
		if a.mode == kvmslots.RAM {
			continue
		}
		at := a.first
		for _, f := range open { // sorted
			if f >= at && f <= a.last {
				add(at, f, a.mode)
				at = f + 1
			}
		}
		add(at, a.last+1, a.mode)
	}
	return out
}

// applySlots gives KVM the slots for e.areas, but for open pages (sorted).
func (e *Engine) applySlots(areas []area, open []hypervisor.Frame) error {
	e.table.Lock()
	defer e.table.Unlock()
	if err := e.table.Apply(slotAreas(areas, open)); err != nil {
		return e.broken(err)
	}
	return nil
}

// rebuildPages makes areas, memory slots, protection and breakpoints those of
// list.
func (e *Engine) rebuildPages(list []*trap) error {
	next := plan(list)
	if err := e.applySlots(next, nil); err != nil {
		return err
	}
	if err := e.applyProtection(e.areas, next); err != nil {
		return err
	}
	e.areas = next
	e.rebuildSites(list)
	return nil
}
