package trap

import (
	"context"
	"errors"
	"math/bits"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	kvmslots "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/slots"
)

// dirty is the tracking of written pages.
type dirty struct {
	manual bool // KVM protects again when it is told to

	mu   sync.Mutex
	on   bool
	late map[hypervisor.Frame]struct{} // of slots that are gone
}

// errDirty is returned when the tracking is not as it would have to be.
var errDirty = errors.New("dirty pages are tracked already")

// StartDirty is hypervisor.DirtyTracker's.
func (e *Engine) StartDirty(context.Context) error {
	e.change.Lock()
	defer e.change.Unlock()
	if e.closed {
		return hypervisor.ErrClosed
	}
	d := &e.dirty
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.on {
		return errDirty
	}
	d.late = map[hypervisor.Frame]struct{}{}
	e.mem.TrackDirty(true)
	e.table.Lock()
	err := e.table.Log(true)
	e.table.Unlock()
	if err != nil {
		e.mem.TrackDirty(false)
		return err
	}
	d.on = true
	return nil
}

// StopDirty is hypervisor.DirtyTracker's.
func (e *Engine) StopDirty(context.Context) error {
	e.change.Lock()
	defer e.change.Unlock()
	d := &e.dirty
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on {
		return nil
	}
	e.table.Lock()
	err := e.table.Log(false)
	e.table.Unlock()
	e.mem.TrackDirty(false)
	d.on, d.late = false, nil
	return err
}

// Dirty is hypervisor.DirtyTracker's. It does not stop the guest.
func (e *Engine) Dirty(context.Context) ([]hypervisor.Range, error) {
	e.change.Lock()
	defer e.change.Unlock()
	d := &e.dirty
	d.mu.Lock()
	on, late := d.on, d.late
	d.late = map[hypervisor.Frame]struct{}{}
	d.mu.Unlock()
	if !on {
		return nil, errors.New("dirty pages are not tracked: call StartDirty first")
	}
	all := newPages(e.mem.Ranges())
	for f := range late {
		all.add(f)
	}
	// The slots may change in the instant between two of them, for a step: what
	// goes then is kept by keepLog, for the next call or below.
	e.table.Lock()
	for _, s := range e.table.Slots() {
		if err := e.takeLog(s, true, all.add); err != nil {
			e.table.Unlock()
			return nil, err
		}
	}
	e.table.Unlock()
	e.mem.TakeDirty(all.add)
	return all.ranges(), nil
}

// takeLog calls f with the pages that a slot's log names. again protects them
// again.
func (e *Engine) takeLog(s kvmslots.Slot, again bool, f func(hypervisor.Frame)) error {
	pages := s.Size / hypervisor.PageSize
	log := make([]uint64, (pages+63)/64)
	if err := e.kvm.DirtyLog(s.ID, log); err != nil {
		return err
	}
	first := s.Start.Frame()
	begin := -1 // of a run of words that are to be cleared
	flush := func(end int) error {
		if begin < 0 || !again || !e.dirty.manual {
			begin = -1
			return nil
		}
		n := min(uint64(end-begin)*64, pages-uint64(begin)*64)
		err := e.kvm.ClearDirtyLog(s.ID, uint64(begin)*64, uint32(n), log[begin:end])
		begin = -1
		return err
	}
	for i, w := range log {
		if w == 0 {
			if err := flush(i); err != nil {
				return err
			}
			continue
		}
		if begin < 0 {
			begin = i
		}
		for ; w != 0; w &= w - 1 {
			f(first + hypervisor.Frame(i*64+bits.TrailingZeros64(w)))
		}
	}
	return flush(len(log))
}

// keepLog saves the log of a slot that goes. All vCPUs stand, and the table is
// locked.
func (e *Engine) keepLog(s kvmslots.Slot) error {
	d := &e.dirty
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.on {
		return nil
	}
	return e.takeLog(s, false, func(f hypervisor.Frame) { d.late[f] = struct{}{} })
}

// pages is a set of pages of RAM.
type pages struct {
	ram     []hypervisor.Range
	bitmaps [][]uint64
}

func newPages(ranges []hypervisor.Range) *pages {
	p := &pages{ram: ranges}
	for _, r := range ranges {
		p.bitmaps = append(p.bitmaps, make([]uint64, (r.Size/hypervisor.PageSize+63)/64))
	}
	return p
}

func (p *pages) add(f hypervisor.Frame) {
	for i, r := range p.ram {
		if r.Contains(f.Addr()) {
			n := uint64(f - r.Start.Frame())
			p.bitmaps[i][n/64] |= 1 << (n % 64)
			return
		}
	}
}

// ranges returns the pages as sorted, merged ranges.
func (p *pages) ranges() []hypervisor.Range {
	var out []hypervisor.Range
	for i, r := range p.ram {
		for j, w := range p.bitmaps[i] {
			for ; w != 0; w &= w - 1 {
				at := r.Start + hypervisor.PhysAddr(uint64(j*64+bits.TrailingZeros64(w))*hypervisor.PageSize)
				if n := len(out); n > 0 && out[n-1].End() == at {
					out[n-1].Size += hypervisor.PageSize
					continue
				}
				out = append(out, hypervisor.Range{Start: at, Size: hypervisor.PageSize})
			}
		}
	}
	return out
}
