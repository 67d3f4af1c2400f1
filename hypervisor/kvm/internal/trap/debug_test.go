package trap

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// losesRF reports a KVM whose guests' kernels are user space, which has no RF.
func losesRF() bool {
	_, err := os.Stat("/sys/module/kvm_pvm")
	return err == nil
}

// Debug registers tell of an instruction before it runs, and of a write behind
// it; there are four.
func testHardware(t *testing.T) {
	withoutNested(t, losesRF(), "stops at a debug register's instruction over and over")
	g := newGuest(t, 1, callGuest)
	g.write(codeAt+0x1000, functionHere(t))
	told := &events{}
	var ids []hypervisor.TrapID
	for _, want := range []hypervisor.Trap{
		{Access: hypervisor.AccessExecute, Virt: codeAt + 0x1000 + 13}, // mov ebx
		{Access: hypervisor.AccessWrite, Virt: dataAt + 0x100, Size: 8},
		{Access: hypervisor.AccessRead | hypervisor.AccessWrite, Virt: dataAt + 0x200, Size: 4},
		{Access: hypervisor.AccessExecute, Virt: codeAt + 0x800},
	} {
		want.Kind, want.VCPU = hypervisor.TrapHardware, hypervisor.AllVCPUs
		ids = append(ids, g.set(want, told.handle))
	}
	fifth := hypervisor.Trap{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessExecute, Virt: codeAt}
	if _, err := g.e.SetTrap(context.Background(), fifth, told.handle); !errors.Is(err, hypervisor.ErrNoResources) {
		t.Errorf("a fifth one: %v", err)
	}
	g.run(1)
	if got := g.word(dataAt + 0x100); got != 3 {
		t.Errorf("the function ran %d times, want 3", got)
	}
	evs := told.all()
	if len(evs) != 6 {
		t.Fatalf("%d events, want 6", len(evs))
	}
	for i, ev := range evs {
		ok := ev.Kind == hypervisor.TrapHardware && ev.VCPU == 0
		if i%2 == 0 { // inc: registers are behind it
			ok = ok && ev.Trap == ids[1] && ev.Access == hypervisor.AccessWrite && ev.Addr == dataAt+0x100 && ev.Landed &&
				ev.Registers.RIP == codeAt+0x1000+11 && ev.New[0] == byte(i/2+1)
		} else {
			ok = ok && ev.Trap == ids[0] && ev.Access == hypervisor.AccessExecute && ev.Addr == codeAt+0x1000+13 && ev.Registers.RIP == codeAt+0x1000+13
		}
		if !ok {
			t.Errorf("event %d: %s", i, show(ev))
		}
	}
	if err := g.e.RemoveTraps(context.Background(), ids...); err != nil {
		t.Fatal(err)
	}
	g.set(fifth, told.handle)
}

// A function that a debug register stops at can be left out.
func testHardwareSkip(t *testing.T) {
	g := newGuest(t, 1, callGuest)
	g.write(codeAt+0x1000, functionHere(t))
	told := &events{answer: func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
		r := ev.Registers // as RET does
		r.RIP, r.RSP = hypervisor.VirtAddr(g.word(r.RSP)), r.RSP+8
		return hypervisor.TrapAnswer{Registers: &r}
	}}
	g.set(hypervisor.Trap{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessExecute, Virt: codeAt + 0x1000, VCPU: 0}, told.handle)
	g.run(1)
	if got := g.word(dataAt + 0x100); got != 0 || len(told.all()) != 3 {
		t.Errorf("the function ran %d times, want 0; %d events, want 3", got, len(told.all()))
	}
}

// Every instruction is told, in order, at its end.
func testStep(t *testing.T) {
	g := newGuest(t, 1, callGuest)
	g.write(codeAt+0x1000, functionHere(t))
	told := &events{}
	id := g.set(hypervisor.Trap{Kind: hypervisor.TrapStep, VCPU: hypervisor.AllVCPUs}, told.handle)
	g.run(1)
	if err := g.e.RemoveTrap(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	n := len(told.all())
	if got := g.word(dataAt + 0x100); got != 3 {
		t.Errorf("the function ran %d times, want 3", got)
	}
	var want []uint64
	for range 3 {
		want = append(want, 5)
		for _, off := range []uint64{0, 1, 4, 11, 13, 18, 24, 26, 29, 30} {
			want = append(want, 0x1000+off)
		}
		want = append(want, 10, 12)
	}
	want = append(want, 14)
	var got []uint64
	for _, ev := range told.all() {
		if ev.Kind != hypervisor.TrapStep || ev.Registers.RIP != ev.Virt || ev.Registers.RFLAGS&0x100 != 0 {
			t.Errorf("%s", show(ev))
		}
		got = append(got, uint64(ev.Virt)-codeAt)
	}
	if ept() && len(got) > 0 && got[0] == 0 {
		got = got[1:] // in front of the first one: its page was not mapped yet
	}
	if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("stepped to %x,\nwant %x", got, want)
	}
	// It has ended: the guest runs on without.
	g.vm.Stop()
	g.vm.Go()
	if m := len(told.all()); m != n {
		t.Errorf("%d steps after the end", m-n)
	}
}

// A step that an answer asks for is told once, at the end of the instruction
// behind the trapped one: one that KVM does itself, or one that the processor does.
func testStepOne(t *testing.T) {
	// mov [rbx+0x10], rax; inc rax; out 0x98, al; jmp $
	const other = "48 89 43 10 48 ff c0 e6 98 eb fe"
	type step struct {
		code string
		end  hypervisor.VirtAddr
	}
	cases := map[string]step{"emulated": {storeGuest, codeAt + 18}, "stepped": {other, codeAt + 7}}
	if ept() {
		delete(cases, "emulated") // Bochs has a step told twice there: see lab.EPT
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, 1, c.code)
			told := &events{}
			told.answer = func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
				if ev.Kind == hypervisor.TrapPage {
					return hypervisor.TrapAnswer{Verb: hypervisor.TrapStepOne}
				}
				return hypervisor.TrapAnswer{}
			}
			g.set(hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt + 0x10, Size: 8}, told.handle)
			g.run(1)
			evs := told.all()
			if len(evs) != 2 || evs[0].Kind != hypervisor.TrapPage || evs[1].Kind != hypervisor.TrapStep {
				t.Fatalf("%d events: %v", len(evs), evs)
			}
			if got := evs[1].Registers.RIP; got != c.end {
				t.Errorf("the step ended at %v, want %v", got, c.end)
			}
		})
	}
}
