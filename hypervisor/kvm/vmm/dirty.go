package vmm

import (
	"context"
	"errors"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// changes keeps who wants to know of written pages apart: the engine tells each
// page once, and both clients and saves want to hear of it.
type changes struct {
	mu       sync.Mutex
	tracking bool
	// clients and saves are the pages that each has not been told yet, a bit a
	// page of the memory's file; nil: it does not track.
	clients, saves []uint64
	// savedID is the state that saves counts from.
	savedID string
}

// pages returns an empty set for the machine's memory.
func (m *Machine) pages() []uint64 {
	return make([]uint64, (m.mem.Size()/hypervisor.PageSize+63)/64)
}

// track begins to track when no one did. Called with changes.mu held.
func (m *Machine) track(ctx context.Context) error {
	if m.changes.tracking {
		return m.collect(ctx) // what was written so far is for the others
	}
	if err := m.traps.StartDirty(ctx); err != nil {
		return err
	}
	m.changes.tracking = true
	return nil
}

// untrack ends the tracking when no one wants it. Called with changes.mu held.
func (m *Machine) untrack(ctx context.Context) error {
	if m.changes.clients != nil || m.changes.saves != nil || !m.changes.tracking {
		return nil
	}
	m.changes.tracking = false
	return m.traps.StopDirty(ctx)
}

// collect takes what the engine has and gives it to all. Called with changes.mu
// held.
func (m *Machine) collect(ctx context.Context) error {
	rs, err := m.traps.Dirty(ctx)
	if err != nil {
		return err
	}
	for _, set := range [][]uint64{m.changes.clients, m.changes.saves} {
		if set == nil {
			continue
		}
		for _, r := range rs {
			off, _, ok := m.mem.Offset(r.Start)
			if !ok {
				continue
			}
			for p := off / hypervisor.PageSize; p < (off+r.Size)/hypervisor.PageSize; p++ {
				set[p/64] |= 1 << (p % 64)
			}
		}
	}
	return nil
}

// rangesOf returns the pages of a set: sorted, merged.
func (m *Machine) rangesOf(set []uint64) []hypervisor.Range {
	var out []hypervisor.Range
	var first uint64 // page of the file at which the range begins
	for _, r := range m.mem.Ranges() {
		for i := range r.Size / hypervisor.PageSize {
			p := first + i
			if set[p/64]>>(p%64)&1 == 0 {
				continue
			}
			gpa := r.Start + hypervisor.PhysAddr(i*hypervisor.PageSize)
			if n := len(out); n > 0 && out[n-1].End() == gpa {
				out[n-1].Size += hypervisor.PageSize
			} else {
				out = append(out, hypervisor.Range{Start: gpa, Size: hypervisor.PageSize})
			}
		}
		first += r.Size / hypervisor.PageSize
	}
	return out
}

// StartDirty is hypervisor.DirtyTracker's.
func (m *Machine) StartDirty(ctx context.Context) error {
	if m.ended() {
		return hypervisor.ErrGone
	}
	m.changes.mu.Lock()
	defer m.changes.mu.Unlock()
	if err := m.track(ctx); err != nil {
		return err
	}
	m.changes.clients = m.pages()
	return nil
}

// Dirty is hypervisor.DirtyTracker's.
func (m *Machine) Dirty(ctx context.Context) ([]hypervisor.Range, error) {
	if m.ended() {
		return nil, hypervisor.ErrGone
	}
	m.changes.mu.Lock()
	defer m.changes.mu.Unlock()
	if m.changes.clients == nil {
		return nil, errors.New("dirty pages are not tracked: call StartDirty first")
	}
	if err := m.collect(ctx); err != nil {
		return nil, err
	}
	rs := m.rangesOf(m.changes.clients)
	clear(m.changes.clients)
	return rs, nil
}

// StopDirty is hypervisor.DirtyTracker's.
func (m *Machine) StopDirty(ctx context.Context) error {
	if m.ended() {
		return nil
	}
	m.changes.mu.Lock()
	defer m.changes.mu.Unlock()
	if m.changes.clients != nil {
		if err := m.collect(ctx); err != nil {
			return err
		}
	}
	m.changes.clients = nil
	return m.untrack(ctx)
}
