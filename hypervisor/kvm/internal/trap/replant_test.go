package trap

import (
	"context"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// patchGuest calls a function on a page of its own over and over. Told so at
// [RBP], it patches the function's first byte to NOP (1), or ends (2).
const patchGuest = `
	e8 fb 0f 00 00                ; 1: call codeAt+0x1000
	8b 45 00                      ; mov eax, [rbp]
	85 c0                         ; test eax, eax
	74 f4                         ; jz 1b
	c7 45 00 00 00 00 00          ; mov dword ptr [rbp], 0
	83 f8 02                      ; cmp eax, 2
	74 0d                         ; je 2f
	c6 05 e1 0f 00 00 90          ; mov byte ptr [codeAt+0x1000], 0x90
	e6 99                         ; out 0x99, al
	eb dd                         ; jmp 1b
	90 90
	e6 98                         ; 2: out 0x98, al
	eb fe                         ; jmp $
`

// needBreakpoints skips where INT3 does not leave the guest.
func (g *guest) needBreakpoints() {
	g.t.Helper()
	if !g.e.Abilities().Breakpoint {
		g.t.Skip("INT3 does not leave the guest here: TestUnderEPT does this")
	}
}

// counted lets one wait for events.
type counted struct {
	hits, lost chan hypervisor.TrapEvent
}

func newCounted() counted {
	return counted{make(chan hypervisor.TrapEvent, 64), make(chan hypervisor.TrapEvent, 64)}
}

func (c counted) handle(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
	to := c.hits
	if ev.Lost {
		to = c.lost
	}
	select {
	case to <- *ev:
	default:
	}
	return hypervisor.TrapAnswer{}
}

// next drops what is there and waits for a hit behind it.
func (c counted) next(g *guest) {
	g.t.Helper()
	for range len(c.hits) {
		<-c.hits
	}
	await(g, c.hits)
}

// await returns what comes from c.
func await[T any](g *guest, c <-chan T) (v T) {
	g.t.Helper()
	select {
	case v = <-c:
	case <-time.After(patienceOfTests):
		g.stuck()
	}
	return v
}

// The guest patches an instruction that has a breakpoint: it is planted again, and
// what the guest wrote is there when it is gone. Where other code comes, the
// breakpoint is told as lost, and the code is left alone.
func testReplant(t *testing.T) {
	const at = codeAt + 0x1000
	g := newGuest(t, 1, patchGuest)
	g.needBreakpoints()
	g.write(at, assemble(t, "f8 ff 43 10 c3")) // clc; inc dword ptr [rbx+0x10]; ret
	told := newCounted()
	trap := hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: at}
	id := g.set(trap, told.handle)
	g.start()
	told.next(g)
	g.write(moreAt, []byte{1})
	await(g, g.said)
	// Nothing else plants than what waits for the guest to be done with its patch.
	for end := time.Now().Add(patienceOfTests); g.read(at, 1)[0] != int3; {
		if time.Now().After(end) {
			g.stuck()
		}
	}
	told.next(g)
	clients := []byte{int3}
	if g.e.Original(clients, at); clients[0] != 0x90 {
		t.Errorf("the guest's byte is %#x, and it wrote 0x90", clients[0])
	}
	if err := g.e.RemoveTrap(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if got := g.read(at, 1)[0]; got != 0x90 {
		t.Errorf("%#x is left, and the guest wrote 0x90", got)
	}

	// As when a device reads other code into the page.
	id = g.set(trap, told.handle)
	told.next(g)
	other := assemble(t, "66 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 90 ff 43 10 c3")
	g.write(at, other)
	g.e.deviceWrote(at, uint64(len(other)))
	ev := await(g, told.lost)
	if ev.Kind != hypervisor.TrapBreakpoint || ev.Addr != at || ev.Trap != id {
		t.Errorf("lost is %s", show(ev))
	}
	if err := g.e.RemoveTrap(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	if got := g.read(at, len(other)); string(got) != string(other) {
		t.Errorf("%x is left, and %x was written", got, other)
	}
	g.write(moreAt, []byte{2})
	g.wait(1)
}

// Two processors run through the same breakpoints: each call of each is told,
// whether the engine does the instruction or the processor does it alone.
func testTwoProcessors(t *testing.T) {
	const calls = 100
	g := newGuest(t, 2, callGuest)
	g.needBreakpoints()
	g.write(codeAt+1, []byte{calls})
	g.write(codeAt+0x1000, assemble(t, "90 0f 31 f0 48 ff 43 10 c3")) // nop; rdtsc; lock inc qword ptr [rbx+0x10]; ret
	told := &events{}
	for _, off := range []hypervisor.PhysAddr{0, 1} {
		g.set(hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: codeAt + 0x1000 + off}, told.handle)
	}
	g.run(2)
	if got := g.word(dataAt + 0x10); got != 2*calls {
		t.Errorf("the function ran %d times, want %d", got, 2*calls)
	}
	type hit struct {
		vcpu int
		addr hypervisor.PhysAddr
	}
	hits := map[hit]int{}
	for _, ev := range told.all() {
		hits[hit{ev.VCPU, ev.Addr}]++
	}
	for vcpu := range 2 {
		for _, off := range []hypervisor.PhysAddr{0, 1} {
			if got := hits[hit{vcpu, codeAt + 0x1000 + off}]; got != calls {
				t.Errorf("vCPU %d: %d hits at +%d, want %d", vcpu, got, off, calls)
			}
		}
	}
}

// The guest's own INT3 goes to its own handler, with breakpoints elsewhere and on
// that very instruction.
func testOwnINT3(t *testing.T) {
	g := newGuest(t, 1, `
		cc                            ; int3
		90                            ; nop
		cc                            ; int3
		e6 98                         ; out 0x98, al
		eb fe                         ; jmp $
	`)
	g.needBreakpoints()
	g.gate(3, handlers)
	g.write(handlers, assemble(t, "48 ff 43 20 48 cf")) // inc qword ptr [rbx+0x20]; iretq
	told := &events{}
	for _, off := range []hypervisor.PhysAddr{1, 2} {
		g.set(hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: codeAt + off}, told.handle)
	}
	g.run(1)
	if got := g.word(dataAt + 0x20); got != 2 {
		t.Errorf("the guest's handler ran %d times, want 2", got)
	}
	evs := told.all()
	if len(evs) != 2 || evs[0].Addr != codeAt+1 || evs[1].Addr != codeAt+2 {
		t.Errorf("%d events: %v", len(evs), evs)
	}
}
