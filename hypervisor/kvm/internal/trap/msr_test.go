package trap

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const msrLSTAR = 0xc000_0082

// msrGuest writes LSTAR, reads it back and tells its lower half; STAR besides.
const msrGuest = `
	b9 81 00 00 c0                ; mov ecx, STAR
	0f 32                         ; rdmsr
	b9 82 00 00 c0                ; mov ecx, LSTAR
	b8 44 33 22 11                ; mov eax, 0x11223344
	83 ca ff                      ; or edx, -1
	0f 30                         ; wrmsr
	31 c0                         ; xor eax, eax
	0f 32                         ; rdmsr
	e7 99                         ; out 0x99, eax
	e6 98                         ; out 0x98, al
	eb fe                         ; jmp $
`

// faultHandler tells a number that no MSR has.
const faultHandler = `
	b8 0d 0d 0d 0d                ; mov eax, 0x0d0d0d0d
	e7 99                         ; out 0x99, eax
	e6 98                         ; out 0x98, al
	eb fe                         ; jmp $
`

// gate makes a trap gate of the handler at handlers: interrupts stay on, see lab.EPT.
func (g *guest) gate(vector int, at uint64) {
	var b [16]byte
	binary.LittleEndian.PutUint16(b[0:], uint16(at))
	binary.LittleEndian.PutUint16(b[2:], 8)
	b[5] = 0x8f
	binary.LittleEndian.PutUint16(b[6:], uint16(at>>16))
	g.write(idtAt+uint64(vector)*16, b[:])
}

func testMSR(t *testing.T) {
	const wrmsr, rdmsr = codeAt + 20, codeAt + 24
	written := uint64(0xffff_ffff_1122_3344)
	for _, c := range []struct {
		name   string
		access hypervisor.Access // that the verb is for
		verb   hypervisor.TrapVerb
		value  []byte
		says   uint64 // lower half
		holds  uint64
		events int
	}{
		{"continue", hypervisor.AccessWrite, "", nil, 0x11223344, written, 2},
		{"skip", hypervisor.AccessWrite, hypervisor.TrapSkip, nil, 0, 0, 2},
		{"deny", hypervisor.AccessWrite, hypervisor.TrapDeny, nil, 0x0d0d0d0d, 0, 1},
		{"emulate", hypervisor.AccessWrite, hypervisor.TrapEmulate, []byte{9, 8, 7, 6, 0, 0, 0, 0}, 0x06070809, 0x06070809, 2},
		{"read/deny", hypervisor.AccessRead, hypervisor.TrapDeny, nil, 0x0d0d0d0d, written, 2},
		{"read/emulate", hypervisor.AccessRead, hypervisor.TrapEmulate, []byte{1, 2, 3, 4}, 0x04030201, written, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, 1, msrGuest)
			withoutNested(t, !g.e.Abilities().MSRFilter, "does not filter MSRs")
			g.write(handlers, assemble(t, faultHandler))
			g.gate(13, handlers)
			told := &events{answer: func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
				if ev.Access == c.access {
					return hypervisor.TrapAnswer{Verb: c.verb, Value: c.value}
				}
				return hypervisor.TrapAnswer{}
			}}
			g.set(hypervisor.Trap{Kind: hypervisor.TrapMSR, Access: hypervisor.AccessRead | hypervisor.AccessWrite, MSR: msrLSTAR}, told.handle)
			g.run(1)
			if got := <-g.said; got != c.says {
				t.Errorf("the guest says %#x, want %#x", got, c.says)
			}
			g.vm.Stop()
			if got, ok := g.e.readMSR(g.vm.VCPUs()[0], msrLSTAR); !ok || got != c.holds {
				t.Errorf("LSTAR is %#x, want %#x", got, c.holds)
			}
			evs := told.all()
			if len(evs) != c.events {
				t.Fatalf("%d events, want %d", len(evs), c.events)
			}
			ev := evs[0]
			if ev.Kind != hypervisor.TrapMSR || ev.Access != hypervisor.AccessWrite || ev.MSR != msrLSTAR || ev.Value != written ||
				binary.LittleEndian.Uint64(ev.Old) != 0 || ev.Registers.RIP != wrmsr {
				t.Errorf("write: %s msr %#x value %#x", show(ev), ev.MSR, ev.Value)
			}
			if c.events == 2 && (evs[1].Access != hypervisor.AccessRead || evs[1].MSR != msrLSTAR || evs[1].Registers.RIP != rdmsr) {
				t.Errorf("read: %s msr %#x", show(evs[1]), evs[1].MSR)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		g := newGuest(t, 1, msrGuest)
		for name, want := range map[string]hypervisor.Trap{
			"x2APIC":   {Access: hypervisor.AccessWrite, MSR: 0x800},
			"too many": {Access: hypervisor.AccessWrite, MSR: 0x1000, Count: 0x8000},
			"execute":  {Access: hypervisor.AccessExecute, MSR: msrLSTAR},
		} {
			want.Kind = hypervisor.TrapMSR
			if _, err := g.e.SetTrap(context.Background(), want, (&events{}).handle); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		if _, err := g.e.SetTrap(context.Background(), hypervisor.Trap{Kind: "cpuid"}, (&events{}).handle); !errors.Is(err, hypervisor.ErrNotSupported) {
			t.Errorf("cpuid: %v", err)
		}
		g.run(1) // as if nothing had been asked
		if got := <-g.said; got != 0x11223344 {
			t.Errorf("the guest says %#x", got)
		}
	})
}
