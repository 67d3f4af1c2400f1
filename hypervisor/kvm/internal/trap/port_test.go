package trap

import (
	"slices"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// portGuest writes to a port of a device, reads it and says what it has read by
// memory.
const portGuest = `
	b8 44 33 22 11                ; mov eax, 0x11223344
	e7 99                         ; out 0x99, eax
	e5 99                         ; in eax, 0x99
	89 43 10                      ; mov [rbx+0x10], eax
	e6 98                         ; out 0x98, al
	eb fe                         ; jmp $
`

func testPort(t *testing.T) {
	for _, c := range []struct {
		name   string
		verb   hypervisor.TrapVerb
		value  []byte
		device []uint64 // what it was told
		reads  uint64
	}{
		{"continue", "", nil, []uint64{0x11223344}, 0x5a5a5a5a},
		{"skip", hypervisor.TrapSkip, nil, nil, 0xffffffff},
		{"emulate", hypervisor.TrapEmulate, []byte{1, 2, 3, 4}, []uint64{0x04030201}, 0x04030201},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, 1, portGuest)
			told := &events{answer: verb(c.verb, c.value...)}
			g.set(hypervisor.Trap{Kind: hypervisor.TrapPort, Access: hypervisor.AccessRead | hypervisor.AccessWrite, Port: portOut}, told.handle)
			g.run(1)
			close(g.said)
			var device []uint64
			for v := range g.said {
				device = append(device, v)
			}
			if !slices.Equal(device, c.device) {
				t.Errorf("the device was told %#x, want %#x", device, c.device)
			}
			if got := g.word(dataAt + 0x10); got != c.reads {
				t.Errorf("the guest reads %#x, want %#x", got, c.reads)
			}
			evs := told.all()
			if len(evs) != 2 {
				t.Fatalf("%d events", len(evs))
			}
			for i, ev := range evs {
				access := []hypervisor.Access{hypervisor.AccessWrite, hypervisor.AccessRead}[i]
				value := []uint64{0x11223344, 0}[i]
				if ev.Kind != hypervisor.TrapPort || ev.Access != access || ev.Port != portOut || ev.Size != 4 || ev.Value != value ||
					ev.Registers.RIP != hypervisor.VirtAddr(codeAt+5+2*i) {
					t.Errorf("event %d: %s port %#x value %#x", i, show(ev), ev.Port, ev.Value)
				}
			}
		})
	}
}

// A guest without handlers of exceptions shuts its processor down: that is told
// before the machine ends for it.
func testShutdown(t *testing.T) {
	g := newGuest(t, 1, "0f 0b") // ud2
	told := &events{}
	g.set(hypervisor.Trap{Kind: hypervisor.TrapShutdown}, told.handle)
	g.expected = true
	g.start()
	select {
	case <-g.end:
	case <-time.After(patienceOfTests):
		g.stuck()
	}
	evs := told.all()
	if len(evs) != 1 || evs[0].Kind != hypervisor.TrapShutdown || evs[0].Registers.CR3 != tablesAt && !npt() {
		t.Fatalf("%d events: %v", len(evs), evs)
	}
}
