package linux

import (
	"path"
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
)

// overlay is memory with bytes changed, as by a guest that lies.
type overlay struct {
	hypervisor.Memory
	patches []patched
}

type patched struct {
	at hypervisor.PhysAddr
	b  []byte
}

func (o *overlay) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	n, err := o.Memory.ReadPhys(p, gpa)
	for _, c := range o.patches {
		lo, hi := max(c.at, gpa), min(c.at+hypervisor.PhysAddr(len(c.b)), gpa+hypervisor.PhysAddr(n))
		if lo < hi {
			copy(p[lo-gpa:hi-gpa], c.b[lo-c.at:])
		}
	}
	return n, err
}

func resume(t testing.TB, g *lab.Guest) {
	if err := g.Resume(t.Context()); err != nil {
		t.Error(err)
	}
}

// A real guest's list of processes is broken from outside.
func TestRealGuestThatLies(t *testing.T) {
	for _, suite := range []lab.Suite{lab.Bookworm, lab.Trixie} {
		t.Run(string(suite), func(t *testing.T) { testLies(t, bootTruth(t, suite)) })
	}
}

func testLies(t *testing.T, g *lab.Guest) {
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer resume(t, g)
	lied := &overlay{Memory: openRAM(t, g)}
	guest, err := Open(t.Context(), lied, Options{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := guest.Processes(t.Context(), ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n := len(l.Processes)
	tasks := make([]hypervisor.VirtAddr, n)
	for i, p := range l.Processes {
		tasks[i] = p.KernelAddress + hypervisor.VirtAddr(guest.lay.task.tasks.off)
	}
	poke := func(at, value hypervisor.VirtAddr) {
		t.Helper()
		phys, err := guest.KernelSpace().PhysOf(at)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 8)
		for i := range b {
			b[i] = byte(value >> (8 * i))
		}
		lied.patches = append(lied.patches, patched{phys, b})
	}
	victim := slices.IndexFunc(l.Processes, func(p Process) bool { return path.Base(p.Exe) == "cron" })
	if victim < 1 {
		t.Fatal("no victim")
	}
	unlink := func() {
		lk, err := guest.r.readLinks(tasks[victim])
		if err != nil {
			t.Fatal(err)
		}
		poke(lk.prev, lk.next)
		poke(lk.next+8, lk.prev)
	}
	for _, tt := range []struct {
		name            string
		lie             func()
		hidden, partial bool
	}{
		{"unlinked", unlink, true, false},
		{"cycle", func() { poke(tasks[n/2], tasks[n/4]) }, false, true},
		{"unlinked behind a cycle", func() { unlink(); poke(tasks[n/2], tasks[n/4]) }, true, true},
		{"wild pointer", func() { poke(tasks[n/2], 0x4141414141414141) }, false, true},
		{"user pointer", func() { poke(tasks[n/2], 0x7fff_0000_1000) }, false, true},
		{"zero", func() { poke(tasks[n/2], 0) }, false, true},
		{"not mapped", func() { poke(tasks[n/2], 0xffff_a000_dead_0000) }, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lied.patches = nil
			tt.lie()
			l, err := guest.Processes(t.Context(), ProcessOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Processes) != n {
				t.Errorf("%d processes, want %d", len(l.Processes), n)
			}
			for i, p := range l.Processes {
				if p.Hidden != (tt.hidden && i == victim) {
					t.Errorf("process %d (%q): hidden %v, seen in %v", p.PID, p.Comm, p.Hidden, p.SeenIn)
				}
			}
			if l.Coverage.Complete() == tt.partial {
				t.Errorf("coverage: %v", l.Coverage.Problems())
			}
		})
	}
}
