package hypervisortest

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// trapLog keeps what a handler was told, and answers.
type trapLog struct {
	mu     sync.Mutex
	events []hypervisor.TrapEvent
	answer hypervisor.TrapAnswer
}

func (l *trapLog) handle(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, *ev)
	return l.answer
}

// take returns the events since the last take, and sets the next answers' verb.
func (l *trapLog) take(next hypervisor.TrapVerb) []hypervisor.TrapEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	evs := l.events
	l.events, l.answer.Verb = nil, next
	return evs
}

func testTraps(t *testing.T, cfg Config, vm hypervisor.VM) {
	tr, err := hypervisor.As[hypervisor.Trapper](vm)
	if err != nil {
		t.Log(err)
		return
	}
	ctx := t.Context()
	log := &trapLog{}
	end := vm.Ranges()[len(vm.Ranges())-1].End()
	hole := hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: end, Size: 8}
	if _, err := tr.SetTrap(ctx, hole, log.handle); !errors.Is(err, hypervisor.ErrNotRAM) {
		t.Errorf("a trap behind RAM: %v, want ErrNotRAM", err)
	}
	if err := tr.RemoveTrap(ctx, 1<<60); err == nil {
		t.Error("a trap that is not there was removed")
	}
	if cfg.Scratch.Size < 64 {
		t.Log("no RAM that may be written was named")
		return
	}
	before := make([]byte, cfg.Scratch.Size)
	if err := hypervisor.ReadFull(vm, before, cfg.Scratch.Start); err != nil {
		t.Fatal(err)
	}
	watch := hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: cfg.Scratch.Start + 16, Size: 8}
	id, err := tr.SetTrap(ctx, watch, log.handle)
	if err != nil {
		t.Fatal(err)
	}
	unchanged(t, vm, cfg, before, "a trap that is set")
	if cfg.GuestWrite != nil {
		testTrapEvents(t, cfg, vm, log, id, watch)
	}
	if err := tr.RemoveTrap(ctx, id); err != nil {
		t.Errorf("RemoveTrap: %v", err)
	}
	if err := tr.RemoveTrap(ctx, id); err == nil {
		t.Error("a trap was removed twice")
	}
	if cfg.GuestWrite != nil {
		log.take("")
		if err := cfg.GuestWrite(before[16:24], watch.Addr); err != nil {
			t.Fatal(err)
		}
		if evs := log.take(""); len(evs) != 0 {
			t.Errorf("%d events of a trap that was removed", len(evs))
		}
	}
	unchanged(t, vm, cfg, before, "traps that came and went")
}

// unchanged checks that the scratch RAM holds want.
func unchanged(t *testing.T, vm hypervisor.VM, cfg Config, want []byte, what string) {
	t.Helper()
	now := make([]byte, len(want))
	if err := hypervisor.ReadFull(vm, now, cfg.Scratch.Start); err != nil || !bytes.Equal(now, want) {
		t.Errorf("%s changed the guest's memory (%v)", what, err)
	}
}

// testTrapEvents lets the guest store into, beside and across what is watched.
func testTrapEvents(t *testing.T, cfg Config, vm hypervisor.VM, log *trapLog, id hypervisor.TrapID, watch hypervisor.Trap) {
	old := make([]byte, 8)
	if err := hypervisor.ReadFull(vm, old, watch.Addr); err != nil {
		t.Fatal(err)
	}
	value := make([]byte, 8)
	for i := range value {
		value[i] = ^old[i]
	}
	now := make([]byte, 8)
	var sequence uint64
	for _, c := range []struct {
		name string
		verb hypervisor.TrapVerb
		want []byte
	}{
		{"nothing", "", value}, // the zero answer is continue
		{"continue", hypervisor.TrapContinue, old},
		{"skip", hypervisor.TrapSkip, old},
	} {
		log.take(c.verb)
		p := value
		if c.name == "continue" {
			p = old
		}
		if err := cfg.GuestWrite(p, watch.Addr); err != nil {
			t.Fatal(err)
		}
		evs := log.take("")
		if len(evs) != 1 {
			t.Fatalf("%d events of one store", len(evs))
		}
		ev := evs[0]
		if ev.Trap != id || ev.Kind != hypervisor.TrapPage || ev.Access != hypervisor.AccessWrite || ev.Sequence <= sequence {
			t.Errorf("event %+v, want trap %d and a sequence above %d", ev, id, sequence)
		}
		sequence = ev.Sequence
		if ev.Known.Has(hypervisor.KnownAddr) && ev.Addr != watch.Addr {
			t.Errorf("event at %v, want %v", ev.Addr, watch.Addr)
		}
		if ev.Known.Has(hypervisor.KnownNew) && !bytes.Equal(ev.New, p) {
			t.Errorf("event of %x, want %x", ev.New, p)
		}
		if err := hypervisor.ReadFull(vm, now, watch.Addr); err != nil || !bytes.Equal(now, c.want) {
			t.Errorf("answer %s of a store of %x: memory holds %x, want %x (%v)", c.name, p, now, c.want, err)
		}
	}
	// Beside what is watched, in its page: done, and not told.
	beside := cfg.Scratch.Start + 32
	if err := hypervisor.ReadFull(vm, now, beside); err != nil {
		t.Fatal(err)
	}
	if err := cfg.GuestWrite(now, beside); err != nil {
		t.Fatal(err)
	}
	if evs := log.take(""); len(evs) != 0 {
		t.Errorf("told of a store beside what is watched: %+v", evs)
	}
}

func testDirty(t *testing.T, cfg Config, vm hypervisor.VM) {
	d, err := hypervisor.As[hypervisor.DirtyTracker](vm)
	if err != nil {
		t.Log(err)
		return
	}
	ctx := t.Context()
	if err := d.StartDirty(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.StopDirty(ctx); err != nil {
			t.Errorf("StopDirty: %v", err)
		}
	}()
	dirty := func() []hypervisor.Range {
		t.Helper()
		rs, err := d.Dirty(ctx)
		if err != nil {
			t.Fatal(err)
		}
		norm, err := hypervisor.NormalizeRanges(rs)
		if err != nil || len(norm) != len(rs) {
			t.Errorf("dirty ranges are not sorted and merged: %v (%v)", rs, err)
		}
		for _, r := range rs {
			if r.Start.Offset() != 0 || r.Size%hypervisor.PageSize != 0 {
				t.Errorf("dirty range %v is not of whole pages", r)
			}
		}
		return rs
	}
	dirty()
	if cfg.GuestWrite == nil || cfg.Scratch.Size < 64 {
		t.Log("nothing makes the guest write")
		return
	}
	p := make([]byte, 8)
	if err := hypervisor.ReadFull(vm, p, cfg.Scratch.Start); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := cfg.GuestWrite(p, cfg.Scratch.Start); err != nil {
			t.Fatal(err)
		}
		if _, ok := hypervisor.FindRange(dirty(), cfg.Scratch.Start); !ok {
			t.Errorf("page %v was written and is not dirty", cfg.Scratch.Start)
		}
	}
}
