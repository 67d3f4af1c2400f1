package core

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// count counts what reaches a handler.
type count struct{ reads, writes atomic.Uint64 }

func (c *count) Read(_ uint64, p []byte)  { c.reads.Add(1); p[0] = 0x5a }
func (c *count) Write(_ uint64, p []byte) { c.writes.Add(1) }

// realMode puts code at 0x1000 of a VM with 1 MiB, and lets each vCPU begin
// there in real mode.
func realMode(t *testing.T, vcpus int, told func(Reason), code ...byte) *VM {
	t.Helper()
	sys, err := kvmapi.Open("")
	if err != nil {
		labtest.Missing(t, "no KVM here: %v", err)
	}
	t.Cleanup(func() { sys.Close() })
	mem, err := guestmem.New([]hypervisor.Range{{Start: 0, Size: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	vm, err := New(Config{System: sys, Memory: mem, VCPUs: vcpus, NoIRQChip: true, Shutdown: told})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := vm.MapRAM(); err != nil {
		t.Fatal(err)
	}
	if _, err := mem.WritePhys(code, 0x1000); err != nil {
		t.Fatal(err)
	}
	for _, v := range vm.VCPUs() {
		r, err := v.Registers()
		if err != nil {
			t.Fatal(err)
		}
		r.RIP, r.RFLAGS = 0x1000, 2
		r.CS.Selector, r.CS.Base = 0, 0
		if err := v.SetRegisters(&r); err != nil {
			t.Fatal(err)
		}
	}
	return vm
}

func TestExits(t *testing.T) {
	reasons := make(chan Reason, 1)
	vm := realMode(t, 1, func(r Reason) { reasons <- r },
		0xba, 0x10, 0x05, // mov dx, 0x510
		0xb0, 0x42, // mov al, 0x42
		0xee,             // out dx, al
		0xec,             // in al, dx
		0xa2, 0x00, 0x20, // mov [0x2000], al
		0xf4, // hlt
	)
	var port count
	if err := vm.ports.Add(0x510, 1, &port); err != nil {
		t.Fatal(err)
	}
	vm.Start()
	if r := <-reasons; r.Kind != ReasonHalt {
		t.Fatalf("%+v", r)
	}
	vm.Halt()
	b, err := vm.Memory().View(0x2000, 1)
	if err != nil || b[0] != 0x5a || port.reads.Load() != 1 || port.writes.Load() != 1 {
		t.Errorf("%#x, %v; %d reads, %d writes", b, err, port.reads.Load(), port.writes.Load())
	}
}

// While the VM is stopped its vCPUs change nothing, and their registers are
// those between two instructions.
func TestStop(t *testing.T) {
	vm := realMode(t, 2, nil,
		0xff, 0x06, 0x00, 0x20, // inc word [0x2000]
		0xe6, 0x80, // out 0x80, al
		0xeb, 0xf8, // jmp back
	)
	vm.Start()
	view, err := vm.Memory().View(0x2000, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		vm.Stop()
		if err := vm.Settle(context.Background()); err != nil {
			t.Fatal(err)
		}
		before := [2]byte(view)
		for _, v := range vm.VCPUs() {
			r, err := v.Registers()
			if err != nil {
				t.Fatal(err)
			}
			if at := r.RIP - 0x1000; at != 0 && at != 4 && at != 6 {
				t.Fatalf("stop %d: rip %v", i, r.RIP)
			}
		}
		if after := [2]byte(view); after != before {
			t.Fatalf("stop %d: the guest went on: %v, %v", i, before, after)
		}
		exits := vm.VCPUs()[0].Exits() + vm.VCPUs()[1].Exits()
		vm.Go()
		for vm.VCPUs()[0].Exits()+vm.VCPUs()[1].Exits() < exits+4 {
			// It goes on, or the test's own deadline says that it does not.
			runtime.Gosched()
		}
	}
}

// alone counts how many vCPUs are in Exclusive at once.
type alone struct {
	count
	t      *testing.T
	inside atomic.Int32
	calls  atomic.Uint64
}

func (a *alone) MMIO(*VCPU, hypervisor.PhysAddr, []byte, bool) bool { return false }
func (a *alone) Debug(*VCPU) bool                                   { return false }
func (a *alone) MSR(*VCPU, bool) bool                               { return false }
func (a *alone) InternalError(*VCPU) bool                           { return false }
func (a *alone) Shutdown(*VCPU) bool                                { return false }
func (a *alone) Interrupted(*VCPU)                                  {}
func (a *alone) IO(v *VCPU, _ uint16, _ []byte, _ bool) bool {
	return v.vm.Exclusive(v, func() {
		if a.inside.Add(1) != 1 {
			a.t.Error("two vCPUs are alone")
		}
		for _, o := range v.vm.VCPUs() {
			if o != v && o.busy.Load() && o.started.Load() {
				a.t.Error("another vCPU is busy")
			}
		}
		v.vm.Exclusive(v, func() { a.calls.Add(1) })
		a.inside.Add(-1)
	})
}

func TestExclusive(t *testing.T) {
	vm := realMode(t, 3, nil, 0xe6, 0x80, 0xeb, 0xfc) // out 0x80, al; jmp back
	a := &alone{t: t}
	vm.hooks = a
	vm.Start()
	for a.calls.Load() < 300 {
		vm.Stop()
		n := a.calls.Load()
		if a.inside.Load() != 0 || a.calls.Load() != n {
			t.Error("a vCPU is alone in a stopped VM")
		}
		vm.Go()
	}
}

func TestCloseWhileStopped(t *testing.T) {
	vm := realMode(t, 2, nil, 0xeb, 0xfe)
	vm.Start()
	vm.Stop()
	vm.Halt()
}
