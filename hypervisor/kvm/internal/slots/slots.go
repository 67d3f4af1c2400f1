// Package slots gives a guest's RAM to KVM as memory slots: as few as the modes
// of its pages allow, split where a page's mode changes and merged again.
//
// KVM cannot make a slot read-only, writable, larger or smaller in place: it is
// deleted and made anew, and what the guest does there in between goes astray.
// Apply is therefore for a VM whose vCPUs all stand. The dirty log is switched
// in place.
//
// It must not import anything of Vantage but package hypervisor and its
// neighbour kvmapi.
package slots

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

// Mode is what KVM makes of a page.
type Mode uint8

// Modes, the weakest first.
const (
	RAM      Mode = iota
	ReadOnly      // writes exit
	None          // no memory: reads and writes exit, execution fails
)

// ErrBroken is wrapped when a change failed and could not be taken back: parts of
// the guest's RAM are missing, and it must not run.
var ErrBroken = errors.New("memory slots are incomplete")

// Area is a run of whole pages with one mode.
type Area struct {
	hypervisor.Range
	Mode Mode
}

// RAMRange is a range of the guest's RAM and where KVM finds it.
type RAMRange struct {
	hypervisor.Range
	Addr uintptr // host address of its first byte
}

// Slot is a memory slot that KVM has.
type Slot struct {
	ID uint32
	Area
	Addr uintptr
}

// Setter is kvmapi.VM.
type Setter interface {
	SetUserMemoryRegion(r kvmapi.UserspaceMemoryRegion) error
}

// Table is what KVM has been given. It is not safe for concurrent use.
type Table struct {
	kvm   Setter
	ram   []RAMRange
	limit int
	slots []Slot // by address
	log   bool   // the dirty log is on
	// Going is called for each slot before it is deleted (its dirty log goes with
	// it). An error ends the change.
	Going func(s Slot) error
}

// New makes a table of ram (sorted, whole pages); limit is how many slots KVM
// has (KVM_CAP_NR_MEMSLOTS). KVM is given nothing before the first Apply.
func New(kvm Setter, ram []RAMRange, limit int) *Table {
	return &Table{kvm: kvm, ram: ram, limit: limit}
}

// Slots returns the slots by address. The caller must not change it, and it is
// valid until the next Apply.
func (t *Table) Slots() []Slot { return t.slots }

// Plan returns the slots, without numbers, for RAM whose pages have the modes of
// areas (sorted, without overlap; RAM elsewhere).
func Plan(ram []RAMRange, areas []Area) []Slot {
	var out []Slot
	add := func(r RAMRange, start, end hypervisor.PhysAddr, m Mode) {
		if start >= end || m == None {
			return
		}
		addr := r.Addr + uintptr(start-r.Start)
		if n := len(out); n > 0 && out[n-1].Mode == m && out[n-1].End() == start && out[n-1].Addr+uintptr(out[n-1].Size) == addr {
			out[n-1].Size += uint64(end - start)
			return
		}
		out = append(out, Slot{Area: Area{hypervisor.Range{Start: start, Size: uint64(end - start)}, m}, Addr: addr})
	}
	for _, r := range ram {
		at := r.Start
		for len(areas) > 0 && areas[0].End() <= at {
			areas = areas[1:]
		}
		for _, a := range areas {
			if a.Start >= r.End() {
				break
			}
			start, end := max(a.Start, at), min(a.End(), r.End())
			add(r, at, start, RAM)
			add(r, start, end, a.Mode)
			at = end
		}
		add(r, at, r.End(), RAM)
	}
	return out
}

// Apply makes the pages' modes those of areas (see Plan). Slots that stay the
// same are not touched. On error nothing has changed, unless it wraps ErrBroken;
// hypervisor.ErrNoResources is wrapped when KVM has too few slots.
func (t *Table) Apply(areas []Area) error {
	next := Plan(t.ram, areas)
	if len(next) > t.limit {
		return fmt.Errorf("%d memory slots needed, KVM has %d: %w", len(next), t.limit, hypervisor.ErrNoResources)
	}
	type key struct {
		Area
		addr uintptr
	}
	have := make(map[key]uint32, len(t.slots))
	used := make(map[uint32]bool, len(t.slots))
	for _, s := range t.slots {
		have[key{s.Area, s.Addr}] = s.ID
	}
	var made []int // of next
	for i := range next {
		k := key{next[i].Area, next[i].Addr}
		if id, ok := have[k]; ok {
			next[i].ID = id
			used[id] = true
			delete(have, k)
		} else {
			made = append(made, i)
		}
	}
	var gone []Slot
	for _, s := range t.slots {
		if _, ok := have[key{s.Area, s.Addr}]; ok {
			gone = append(gone, s)
		}
	}
	id := uint32(0)
	for _, i := range made {
		for used[id] {
			id++
		}
		used[id] = true
		next[i].ID = id
	}
	if err := t.change(gone, made, next); err != nil {
		return err
	}
	t.slots = next
	return nil
}

// change deletes gone and makes those of next that made lists.
func (t *Table) change(gone []Slot, made []int, next []Slot) error {
	var undo []func() error
	fail := func(err error) error {
		for _, u := range slices.Backward(undo) {
			if uerr := u(); uerr != nil {
				return errors.Join(ErrBroken, err, uerr)
			}
		}
		return err
	}
	for _, s := range gone {
		if t.Going != nil {
			if err := t.Going(s); err != nil {
				return fail(err)
			}
		}
		if err := t.remove(s); err != nil {
			return fail(err)
		}
		undo = append(undo, func() error { return t.create(s) })
	}
	for _, i := range made {
		s := next[i]
		if err := t.create(s); err != nil {
			return fail(err)
		}
		undo = append(undo, func() error { return t.remove(s) })
	}
	return nil
}

func (t *Table) remove(s Slot) error {
	err := t.kvm.SetUserMemoryRegion(kvmapi.UserspaceMemoryRegion{Slot: s.ID, GuestPhysAddr: uint64(s.Start)})
	if err != nil {
		return fmt.Errorf("delete memory slot %v: %w", s.Range, err)
	}
	return nil
}

func (t *Table) create(s Slot) error {
	err := t.kvm.SetUserMemoryRegion(t.region(s, t.log))
	if err != nil {
		return fmt.Errorf("make memory slot %v: %w", s.Range, err)
	}
	return nil
}

func (t *Table) region(s Slot, log bool) kvmapi.UserspaceMemoryRegion {
	r := kvmapi.UserspaceMemoryRegion{
		Slot: s.ID, GuestPhysAddr: uint64(s.Start), MemorySize: s.Size, UserspaceAddr: uint64(s.Addr),
	}
	if s.Mode == ReadOnly {
		r.Flags |= kvmapi.MemReadonly
	}
	if log {
		r.Flags |= kvmapi.MemLogDirtyPages
	}
	return r
}

// Log switches the dirty log of all slots, and of those to come. The guest may
// run meanwhile.
func (t *Table) Log(on bool) error {
	for i, s := range t.slots {
		if err := t.kvm.SetUserMemoryRegion(t.region(s, on)); err != nil {
			err = fmt.Errorf("dirty log of memory slot %v: %w", s.Range, err)
			for _, back := range t.slots[:i] {
				err = errors.Join(err, t.kvm.SetUserMemoryRegion(t.region(back, !on)))
			}
			return err
		}
	}
	t.log = on
	return nil
}
