package trap

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// loopGuest calls function for ever.
const loopGuest = `
	e8 fb 0f 00 00                ; 1: call codeAt+0x1000
	eb f9                         ; jmp 1b
`

// Traps of all kinds come and go at random moments, as those of clients that die
// do: each time the guest's text is byte for byte what it was, and the guest runs
// on.
func testRemove(t *testing.T) {
	ctx := context.Background()
	rounds := 300
	switch {
	case ept():
		rounds = 40
	case labtest.InsideNested():
		rounds = 100
	}
	g := newGuest(t, 2, loopGuest)
	g.write(codeAt+0x1000, functionHere(t))
	text := g.read(codeAt, 0x2000)
	kinds := []hypervisor.Trap{
		{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt + 0x100, Size: 8, Mechanism: hypervisor.MechanismReadOnlySlot},
		{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt, Size: 4096, Mechanism: hypervisor.MechanismUserfault},
		{Kind: hypervisor.TrapPage, Access: hypervisor.AccessRead, Addr: dataAt + 0x100, Size: 8},
		{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessWrite, Virt: dataAt + 0x100, Size: 8, VCPU: hypervisor.AllVCPUs},
	}
	if !ept() { // what is stepped and leaves the guest there has a step told twice
		kinds = append(kinds,
			hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessExecute, Addr: codeAt + 0x1000, Size: 64},
			hypervisor.Trap{Kind: hypervisor.TrapStep, VCPU: 1})
	}
	if !losesRF() {
		kinds = append(kinds, hypervisor.Trap{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessExecute, Virt: codeAt + 0x1000, VCPU: hypervisor.AllVCPUs})
	}
	if g.e.Abilities().MSRFilter {
		kinds = append(kinds, hypervisor.Trap{Kind: hypervisor.TrapMSR, Access: hypervisor.AccessWrite, MSR: msrLSTAR})
	}
	if g.e.Abilities().Breakpoint {
		for _, off := range []hypervisor.PhysAddr{0, 1, 4, 11, 13, 29, 30} {
			if off == 4 && ept() {
				continue // it uses what page traps watch: the same
			}
			kinds = append(kinds, hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: codeAt + 0x1000 + off})
		}
	}
	if g.e.Abilities().Userfault != nil || ept() {
		kinds = append(kinds[:1], kinds[2:]...)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	g.start()
	var told atomic.Int64
	handler := func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
		told.Add(1)
		return hypervisor.TrapAnswer{}
	}
	for round := range rounds {
		var ids []hypervisor.TrapID
		var set []hypervisor.Trap
		for range 1 + random.IntN(3) {
			k := kinds[random.IntN(len(kinds))]
			ids, set = append(ids, g.set(k, handler)), append(set, k)
		}
		until, end := told.Load()+random.Int64N(8), time.Now().Add(time.Duration(random.IntN(20))*time.Millisecond)
		for told.Load() < until && time.Now().Before(end) {
		}
		if err := g.e.RemoveTraps(ctx, ids...); err != nil {
			t.Fatal(err)
		}
		n := told.Load()
		if got := g.read(codeAt, len(text)); !bytes.Equal(got, text) {
			t.Fatalf("round %d, %v: the text has changed: %x", round, set, got[0x1000:0x1020])
		}
		from := g.word(dataAt + 0x100)
		for end := time.Now().Add(patienceOfTests); g.word(dataAt+0x100) < from+3; {
			if time.Now().After(end) {
				t.Errorf("round %d: the guest stands after %+v", round, set)
				g.stuck()
			}
		}
		if m := told.Load(); m != n {
			t.Fatalf("round %d: %d events after the traps were removed", round, m-n)
		}
	}
	t.Logf("%d events in %d rounds", told.Load(), rounds)
}
