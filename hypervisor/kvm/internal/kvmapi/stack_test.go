package kvmapi

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// What the kernel fills in arrives wherever the stack of the caller ends: a stack
// that grows in the call moves.
func TestStackMoves(t *testing.T) {
	labtest.NeedKVM(t)
	sys, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	vm, err := sys.CreateVM()
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	v, err := vm.CreateVCPU(0)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	want := Regs{RAX: 1, RBX: 2, R15: 3, RIP: 4, RFLAGS: 2}
	if err := v.SetRegs(&want); err != nil {
		t.Fatal(err)
	}
	for depth := range 1000 {
		done := make(chan struct{})
		go func() { // with a new stack, which is small
			defer close(done)
			var got Regs
			if at(depth, v, &got); got != want {
				t.Errorf("at depth %d: %+v", depth, got)
			}
		}()
		<-done
	}
}

// at calls Regs so many frames down.
//
//go:noinline
func at(depth int, v *VCPU, got *Regs) {
	if depth > 0 {
		at(depth-1, v, got)
		return
	}
	*got, _ = v.Regs()
}
