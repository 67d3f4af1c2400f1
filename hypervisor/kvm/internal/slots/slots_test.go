package slots

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kvm is a fake that refuses what KVM refuses (kvm_main.c,
// __kvm_set_memory_region), and fails when it is told to.
type kvm struct {
	slots map[uint32]kvmapi.UserspaceMemoryRegion
	calls int
	fail  map[int]bool // calls that fail
}

func (k *kvm) SetUserMemoryRegion(r kvmapi.UserspaceMemoryRegion) error {
	k.calls++
	if k.fail[k.calls] {
		return unix.ENOMEM
	}
	old, ok := k.slots[r.Slot]
	if r.MemorySize == 0 {
		if !ok {
			return unix.EINVAL
		}
		delete(k.slots, r.Slot)
		return nil
	}
	if ok && (old.MemorySize != r.MemorySize || old.UserspaceAddr != r.UserspaceAddr ||
		old.GuestPhysAddr != r.GuestPhysAddr || (old.Flags^r.Flags)&kvmapi.MemReadonly != 0) {
		return unix.EINVAL
	}
	for id, o := range k.slots {
		if id != r.Slot && r.GuestPhysAddr < o.GuestPhysAddr+o.MemorySize && o.GuestPhysAddr < r.GuestPhysAddr+r.MemorySize {
			return unix.EEXIST
		}
	}
	k.slots[r.Slot] = r
	return nil
}

const page = hypervisor.PageSize

// ram has a hole, two ranges that touch in the guest but not on the host, and
// two that touch in both.
var ram = []RAMRange{ //nolint:gochecknoglobals // a constant
	{hypervisor.Range{Start: 0, Size: 16 * page}, 0x7000_0000},
	{hypervisor.Range{Start: 32 * page, Size: 8 * page}, 0x8000_0000},
	{hypervisor.Range{Start: 40 * page, Size: 8 * page}, 0x9000_0000},
	{hypervisor.Range{Start: 48 * page, Size: 8 * page}, 0x9000_0000 + 8*page},
}

// check compares what KVM has with modes, page by page, and the number of slots
// with that of runs.
func check(k *kvm, tab *Table, modes map[uint64]Mode, log bool) error {
	seen := map[uint64]bool{}
	for id, s := range k.slots {
		for p := s.GuestPhysAddr / page; p < (s.GuestPhysAddr+s.MemorySize)/page; p++ {
			seen[p] = true
			r := ramOf(p)
			if r == nil || s.UserspaceAddr+(p*page-s.GuestPhysAddr) != uint64(r.Addr)+p*page-uint64(r.Start) {
				return fmt.Errorf("page %d is at %#x", p, s.UserspaceAddr)
			}
			want := uint32(0)
			if modes[p] == ReadOnly {
				want = kvmapi.MemReadonly
			}
			if log {
				want |= kvmapi.MemLogDirtyPages
			}
			if modes[p] == None || s.Flags != want {
				return fmt.Errorf("page %d: slot %d has flags %d, mode %d", p, id, s.Flags, modes[p])
			}
		}
	}
	runs, last := 0, None
	for p := range uint64(60) {
		m := modes[p]
		if ramOf(p) == nil {
			m = None
		}
		if seen[p] != (m != None) {
			return fmt.Errorf("page %d: mode %d, in a slot %v", p, m, seen[p])
		}
		if m != None && (m != last || p == 40) {
			runs++
		}
		last = m
	}
	if len(k.slots) != runs || len(tab.Slots()) != runs {
		return fmt.Errorf("%d slots, told %d, for %d runs", len(k.slots), len(tab.Slots()), runs)
	}
	for _, s := range tab.Slots() {
		if k.slots[s.ID].GuestPhysAddr != uint64(s.Start) {
			return fmt.Errorf("slot %d is not that", s.ID)
		}
	}
	return nil
}

func ramOf(p uint64) *RAMRange {
	for i, r := range ram {
		if r.Contains(hypervisor.PhysAddr(p * page)) {
			return &ram[i]
		}
	}
	return nil
}

func areas(modes map[uint64]Mode) []Area {
	var out []Area
	for p := range uint64(60) {
		if modes[p] != RAM {
			out = append(out, Area{hypervisor.Range{Start: hypervisor.PhysAddr(p * page), Size: page}, modes[p]})
		}
	}
	return out
}

// Random changes: every page has the mode that it was given, with as few slots
// as there are runs; what fails changes nothing.
func TestRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	k := &kvm{slots: map[uint32]kvmapi.UserspaceMemoryRegion{}}
	tab := New(k, ram, 1000)
	going := 0
	tab.Going = func(s Slot) error {
		if _, ok := k.slots[s.ID]; !ok {
			t.Errorf("slot %d is gone already", s.ID)
		}
		going++
		return nil
	}
	modes := map[uint64]Mode{}
	log := false
	if err := tab.Apply(nil); err != nil {
		t.Fatal(err)
	}
	failures := 0
	for i := range 5000 {
		next := map[uint64]Mode{}
		for p, m := range modes {
			next[p] = m
		}
		start, n := rnd.Uint64N(60), rnd.Uint64N(6)
		m := Mode(rnd.IntN(3))
		for p := start; p < start+n; p++ {
			next[p] = m
		}
		k.fail = nil
		if rnd.IntN(4) == 0 {
			k.fail = map[int]bool{k.calls + 1 + rnd.IntN(6): true}
		}
		if rnd.IntN(10) == 0 {
			if tab.Log(!log) == nil {
				log = !log
			}
		}
		switch err := tab.Apply(areas(next)); {
		case err == nil:
			modes = next
		case errors.Is(err, unix.ENOMEM) && !errors.Is(err, ErrBroken):
			failures++
		default:
			t.Fatal(err)
		}
		if err := check(k, tab, modes, log); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if failures < 100 || going == 0 {
		t.Errorf("%d failures were tried, %d slots went", failures, going)
	}
	if err := tab.Apply(nil); err != nil {
		t.Fatal(err)
	}
	if err := check(k, tab, nil, log); err != nil {
		t.Error(err)
	}
}

// What is not touched is left alone: KVM throws away all it has mapped when a
// slot goes.
func TestUnchanged(t *testing.T) {
	k := &kvm{slots: map[uint32]kvmapi.UserspaceMemoryRegion{}}
	tab := New(k, ram, 1000)
	two := []Area{{hypervisor.Range{Start: 2 * page, Size: page}, ReadOnly}, {hypervisor.Range{Start: 34 * page, Size: page}, ReadOnly}}
	if err := tab.Apply(two); err != nil {
		t.Fatal(err)
	}
	calls := k.calls
	if err := tab.Apply(two); err != nil || k.calls != calls {
		t.Errorf("%d calls for no change, %v", k.calls-calls, err)
	}
	// The second range's three slots become one; the first range's stay.
	if err := tab.Apply(two[:1]); err != nil || k.calls != calls+4 {
		t.Errorf("%d calls, %v", k.calls-calls, err)
	}
}

func TestLimits(t *testing.T) {
	k := &kvm{slots: map[uint32]kvmapi.UserspaceMemoryRegion{}}
	tab := New(k, ram, 4)
	if err := tab.Apply(nil); err != nil {
		t.Fatal(err)
	}
	err := tab.Apply([]Area{{hypervisor.Range{Start: 2 * page, Size: page}, ReadOnly}})
	if !errors.Is(err, hypervisor.ErrNoResources) {
		t.Error(err)
	}
	if err := check(k, tab, nil, false); err != nil {
		t.Error(err)
	}
	// Neither the change nor its undoing works.
	k.fail = map[int]bool{k.calls + 2: true, k.calls + 3: true}
	if err := tab.Apply([]Area{{hypervisor.Range{Start: 2 * page, Size: page}, None}}); !errors.Is(err, ErrBroken) {
		t.Error(err)
	}
}
