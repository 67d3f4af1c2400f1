package trap

import (
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// readGuest reads what is watched and what is beside it.
const readGuest = `
	48 8b 43 10                   ; mov rax, [rbx+0x10]
	e7 99                         ; out 0x99, eax
	48 8b 43 40                   ; mov rax, [rbx+0x40]
	48 83 43 18 05                ; add qword ptr [rbx+0x18], 5
	e6 98                         ; out 0x98, al
	eb fe                         ; jmp $
`

func testRead(t *testing.T) {
	for _, c := range []struct {
		name  string
		verb  hypervisor.TrapVerb
		value []byte
		want  uint64
	}{
		{"continue", "", nil, 0x04030201},
		{"skip", hypervisor.TrapSkip, nil, 0xffffffff},
		{"emulate", hypervisor.TrapEmulate, []byte{0x99, 0x88, 0x77, 0x66}, 0x66778899},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, 1, readGuest)
			g.write(dataAt+0x10, []byte{1, 2, 3, 4, 5, 6, 7, 8})
			g.write(dataAt+0x18, []byte{0xff, 0, 0, 0, 0, 0, 0, 0})
			told := &events{answer: func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
				if ev.Addr == dataAt+0x10 {
					return hypervisor.TrapAnswer{Verb: c.verb, Value: c.value}
				}
				return hypervisor.TrapAnswer{}
			}}
			g.set(hypervisor.Trap{
				Kind: hypervisor.TrapPage, Access: hypervisor.AccessRead | hypervisor.AccessWrite, Addr: dataAt + 0x10, Size: 16,
			}, told.handle)
			g.run(1)
			if got := <-g.said; got != c.want {
				t.Errorf("the guest sees %#x, want %#x", got, c.want)
			}
			if got := g.word(dataAt + 0x18); got != 0x104 {
				t.Errorf("%#x is there", got)
			}
			evs := told.all()
			if len(evs) != 3 {
				t.Fatalf("%d events: %v", len(evs), evs)
			}
			for i, want := range []struct {
				access hypervisor.Access
				addr   hypervisor.PhysAddr
				rip    hypervisor.VirtAddr
				old    byte
			}{
				{hypervisor.AccessRead, dataAt + 0x10, codeAt, 1},
				{hypervisor.AccessRead, dataAt + 0x18, codeAt + 10, 0xff},
				// KVM has done the instruction by then: RIP is behind it (docs/TRAPS.md).
				{hypervisor.AccessWrite, dataAt + 0x18, codeAt + 15, 0xff},
			} {
				ev := evs[i]
				if ev.Access != want.access || ev.Addr != want.addr || uint64(ev.Virt) != uint64(want.addr) || ev.Size != 8 || ev.Old[0] != want.old ||
					ev.Registers.RIP != want.rip || ev.Mechanism != hypervisor.MechanismNoSlot {
					t.Errorf("event %d: %s", i, show(ev))
				}
			}
		})
	}
}

// callGuest calls a function on a page of its own three times.
const callGuest = `
	b9 03 00 00 00                ; mov ecx, 3
	e8 f6 0f 00 00                ; 1: call codeAt+0x1000
	ff c9                         ; dec ecx
	75 f7                         ; jnz 1b
	e6 98                         ; out 0x98, al
	eb fe                         ; jmp $
`

// functionHere is function; where an instruction that leaves the guest cannot be
// stepped (lab.EPT), RDTSC is in CPUID's place.
func functionHere(t *testing.T) []byte {
	t.Helper()
	code := assemble(t, function)
	if ept() {
		code[12] = 0x31
	}
	return code
}

// function is at codeAt+0x1000; it has what is done by the engine, and what needs
// the processor.
const function = `
	55                            ; push rbp
	48 89 e5                      ; mov rbp, rsp
	48 ff 83 00 01 00 00          ; inc qword ptr [rbx+0x100]
	0f a2                         ; cpuid: clobbers rbx, rcx
	bb 00 00 04 00                ; mov ebx, dataAt
	8b 8b 00 01 00 00             ; mov ecx, [rbx+0x100]
	f7 d9                         ; neg ecx
	83 c1 04                      ; add ecx, 4
	5d                            ; pop rbp
	c3                            ; ret
`

func testExecute(t *testing.T) {
	for _, c := range []struct {
		name string
		verb hypervisor.TrapVerb
		want uint64 // calls that the function counted
	}{
		{"continue", "", 3},
		{"skip", hypervisor.TrapSkip, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGuest(t, 1, callGuest)
			g.write(codeAt+0x1000, functionHere(t))
			told := &events{answer: func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
				if c.verb == hypervisor.TrapSkip && ev.Addr == codeAt+0x1000 {
					// As RET does.
					r := ev.Registers
					r.RIP = hypervisor.VirtAddr(g.word(r.RSP))
					r.RSP += 8
					return hypervisor.TrapAnswer{Registers: &r}
				}
				return hypervisor.TrapAnswer{}
			}}
			g.set(hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessExecute, Addr: codeAt + 0x1000, Size: 0x100}, told.handle)
			g.run(1)
			if got := g.word(dataAt + 0x100); got != c.want {
				t.Errorf("the function ran %d times, want %d", got, c.want)
			}
			var entries int
			var offsets []uint64
			for _, ev := range told.all() {
				if ev.Access != hypervisor.AccessExecute || ev.Virt != ev.Registers.RIP || uint64(ev.Addr) != uint64(ev.Virt) {
					t.Errorf("%s", show(ev))
				}
				if ev.Addr == codeAt+0x1000 {
					entries++
				}
				offsets = append(offsets, uint64(ev.Addr)-codeAt-0x1000)
			}
			if entries != 3 {
				t.Errorf("%d entries", entries)
			}
			// Every instruction of it, in order.
			if one := []uint64{0, 1, 4, 11, 13, 18, 24, 26, 29, 30}; c.verb == "" && !slices.Equal(offsets, slices.Concat(one, one, one)) {
				t.Errorf("executed at %d", offsets)
			}
		})
	}
}
