package trap

import (
	"bytes"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// storeGuest writes 8 bytes at dataAt+0x10 and beside it, and tells what is there.
const storeGuest = `
	48 b8 88 77 66 55 44 33 22 11 ; mov rax, 0x1122334455667788
	48 89 43 10                   ; mov [rbx+0x10], rax
	48 89 43 20                   ; mov [rbx+0x20], rax
	48 8b 43 10                   ; mov rax, [rbx+0x10]
	e6 99                         ; out 0x99, al
	e6 98                         ; out 0x98, al
	eb fe                         ; jmp $
`

func testReadOnlySlot(t *testing.T) { testWrite(t, hypervisor.MechanismReadOnlySlot) }

func testUserfault(t *testing.T) { testWrite(t, hypervisor.MechanismUserfault) }

// testWrite traps a write with each verb.
func testWrite(t *testing.T, m hypervisor.Mechanism) {
	old := []byte{1, 2, 3, 4, 5, 6, 7, 8}
	stored := []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11}
	for _, c := range []struct {
		name   string
		verb   hypervisor.TrapVerb
		value  []byte
		want   []byte
		paused bool
	}{
		{"continue", "", nil, stored, false},
		{"skip", hypervisor.TrapSkip, nil, old, false},
		{"deny", hypervisor.TrapDeny, nil, old, false},
		{"emulate", hypervisor.TrapEmulate, []byte{9, 8, 7, 6, 5, 4, 3, 2}, []byte{9, 8, 7, 6, 5, 4, 3, 2}, false},
		{"short", hypervisor.TrapEmulate, []byte{9}, []byte{9, 0, 0, 0, 0, 0, 0, 0}, false},
		{"pause", hypervisor.TrapPause, nil, stored, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, 1, storeGuest)
			g.needs(m)
			g.write(dataAt+0x10, old)
			told := &events{answer: verb(c.verb, c.value...)}
			g.set(hypervisor.Trap{
				Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt + 0x10, Size: 8, Mechanism: m,
			}, told.handle)
			g.start()
			if c.paused {
				g.awaitPause()
				if got := g.read(dataAt+0x10, 8); !bytes.Equal(got, c.want) {
					t.Errorf("paused with %x there", got)
				}
				g.vm.Go()
			}
			g.wait(1)
			if got := g.read(dataAt+0x10, 8); !bytes.Equal(got, c.want) {
				t.Errorf("%x is there, want %x", got, c.want)
			}
			if got := byte(<-g.said); got != c.want[0] {
				t.Errorf("the guest sees %#x", got)
			}
			if got := g.read(dataAt+0x20, 8); !bytes.Equal(got, stored) {
				t.Errorf("beside it %x is there", got)
			}
			evs := told.all()
			if len(evs) != 1 {
				t.Fatalf("%d events", len(evs))
			}
			ev := evs[0]
			if ev.Kind != hypervisor.TrapPage || ev.Access != hypervisor.AccessWrite || ev.Addr != dataAt+0x10 || ev.Virt != dataAt+0x10 ||
				ev.Size != 8 || !bytes.Equal(ev.Old, old) || !bytes.Equal(ev.New, stored) || ev.Mechanism != m || ev.Sequence != 1 {
				t.Errorf("%s", show(ev))
			}
			if ev.Landed && (m == hypervisor.MechanismReadOnlySlot || labtest.InsideNested()) {
				t.Error("it has landed")
			}
			if all := hypervisor.KnownAddr | hypervisor.KnownVirt | hypervisor.KnownOld | hypervisor.KnownNew | hypervisor.KnownRIP; ev.Known != all {
				t.Errorf("known %b", ev.Known)
			}
			if ev.Registers.RIP != codeAt+10 || ev.Registers.RAX != 0x1122334455667788 || ev.Registers.CR3 != tablesAt {
				t.Errorf("rip %v, rax %#x, cr3 %#x", ev.Registers.RIP, ev.Registers.RAX, ev.Registers.CR3)
			}
		})
	}
}

// needs skips the test where the host lacks a mechanism.
func (g *guest) needs(m hypervisor.Mechanism) {
	g.t.Helper()
	if err := g.e.Abilities().Userfault; m == hypervisor.MechanismUserfault && err != nil {
		labtest.Missing(g.t, "%v", err)
	}
}

// awaitPause returns when a trap's answer has paused the VM.
func (g *guest) awaitPause() {
	g.t.Helper()
	for !g.vm.Stopped() {
		select {
		case r := <-g.end:
			g.t.Fatalf("the guest ended: %+v", r)
		default:
		}
	}
	g.vm.Stop() // returns when all stand
	g.vm.Go()
}
