package trap

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// ept reports whether this machine's KVM has EPT, where INT3 exits for sure.
func ept() bool {
	b, err := os.ReadFile("/sys/module/kvm_intel/parameters/ept")
	return err == nil && strings.HasPrefix(string(b), "Y")
}

// npt is for what AMD's processors do otherwise, or QEMU's emulation of them.
func npt() bool {
	_, err := os.Stat("/sys/module/kvm_amd")
	return err == nil
}

// A breakpoint is hit each time, whether its instruction is done by the engine or
// stepped over; the guest's text is byte for byte as before when it is gone. Where
// INT3 does not exit, setting one says so.
func testBreakpoint(t *testing.T) {
	g := newGuest(t, 1, callGuest)
	code := functionHere(t)
	g.write(codeAt+0x1000, code)
	told := &events{}
	at := []hypervisor.PhysAddr{codeAt + 0x1000, codeAt + 0x1000 + 11} // push rbp; cpuid
	var ids []hypervisor.TrapID
	for _, gpa := range at {
		id, err := g.e.SetTrap(context.Background(), hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: gpa}, told.handle)
		if err != nil {
			if !g.e.Abilities().Breakpoint && !ept() && errors.Is(err, hypervisor.ErrNotSupported) {
				return // as it must be said
			}
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	if planted := g.read(codeAt+0x1000, len(code)); planted[0] != int3 || planted[11] != int3 {
		t.Errorf("nothing is planted: %x", planted)
	}
	g.run(1)
	if got := g.word(dataAt + 0x100); got != 3 {
		t.Errorf("the function ran %d times, want 3", got)
	}
	hits := map[hypervisor.PhysAddr]int{}
	for _, ev := range told.all() {
		if ev.Kind != hypervisor.TrapBreakpoint || ev.Registers.RIP != hypervisor.VirtAddr(ev.Addr) {
			t.Errorf("%s", show(ev))
		}
		hits[ev.Addr]++
	}
	for _, gpa := range at {
		if hits[gpa] != 3 {
			t.Errorf("%d hits at %v, want 3", hits[gpa], gpa)
		}
	}
	if err := g.e.RemoveTraps(context.Background(), ids...); err != nil {
		t.Fatal(err)
	}
	if left := g.read(codeAt+0x1000, len(code)); !bytes.Equal(left, code) {
		t.Errorf("the text is %x, was %x", left, code)
	}
}
