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
	return realModeWith(t, Config{VCPUs: vcpus, NoIRQChip: true, Shutdown: told}, code...)
}

func realModeWith(t *testing.T, cfg Config, code ...byte) *VM {
	t.Helper()
	labtest.NeedKVM(t)
	sys, err := kvmapi.Open("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Close() })
	mem, err := guestmem.New([]hypervisor.Range{{Start: 0, Size: 1 << 20}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	cfg.System, cfg.Memory = sys, mem
	vm, err := New(cfg)
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

func testExits(t *testing.T) {
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
func testStop(t *testing.T) {
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

func testExclusive(t *testing.T) {
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

func testCloseWhileStopped(t *testing.T) {
	vm := realMode(t, 2, nil, 0xeb, 0xfe)
	vm.Start()
	vm.Stop()
	vm.Halt()
}

// A message reaches the guest's handler, and one that is sent while its vector is
// masked reaches it when the mask is taken away.
func testInterrupts(t *testing.T) {
	const handler, table, table50 = 0x1800, 0x40 * 4, 0x50 * 4 // of interrupts 0x40 and 0x50, in real mode
	ends := make(chan struct{}, 8)
	vm := realModeWith(t, Config{VCPUs: 1},
		0xfb,       // sti
		0xf4,       // hlt
		0xeb, 0xfd, // jmp to hlt
	)
	mem := vm.Memory()
	for gpa, code := range map[hypervisor.PhysAddr][]byte{
		handler: {
			0xff, 0x06, 0x00, 0x20, // inc word [0x2000]
			0xe6, 0x80, // out 0x80, al
			0xcf, // iret; the message is an edge and the local APIC is in its reset state: no EOI reaches it
		},
		table:   {handler & 0xff, handler >> 8, 0, 0},
		table50: {handler & 0xff, handler >> 8, 0, 0},
	} {
		if _, err := mem.WritePhys(code, gpa); err != nil {
			t.Fatal(err)
		}
	}
	if err := vm.ports.Add(0x80, 1, told(func() { ends <- struct{}{} })); err != nil {
		t.Fatal(err)
	}
	v := vm.VCPUs()[0]
	r, err := v.Registers()
	if err != nil {
		t.Fatal(err)
	}
	r.SS.Selector, r.SS.Base, r.RSP = 0, 0, 0x3000
	if err := v.SetRegisters(&r); err != nil {
		t.Fatal(err)
	}
	// The local APIC is switched on by its spurious-interrupt register.
	lapic, err := v.KVM().LAPIC()
	if err != nil {
		t.Fatal(err)
	}
	lapic.Regs[0xf0], lapic.Regs[0xf1] = 0xff, 0x01
	if err := v.KVM().SetLAPIC(&lapic); err != nil {
		t.Fatal(err)
	}
	line, err := vm.NewVector()
	if err != nil {
		t.Fatal(err)
	}
	// The second one is of a higher priority: the first is never acknowledged.
	const message, vector40, vector50 = 0xfee0_0000, 0x40, 0x50
	vm.Start()
	if err := line.Route(message, vector40, false); err != nil {
		t.Fatal(err)
	}
	line.Signal()
	<-ends
	if err := line.Route(message, vector50, true); err != nil {
		t.Fatal(err)
	}
	line.Signal()
	select {
	case <-ends:
		t.Error("a masked vector's message got through")
	default:
	}
	if err := line.Route(message, vector50, false); err != nil {
		t.Fatal(err)
	}
	<-ends
	if err := line.Close(); err != nil {
		t.Error(err)
	}
	count, err := mem.View(0x2000, 1)
	if err != nil || count[0] != 2 {
		t.Errorf("the handler ran %d times, %v", count[0], err)
	}
}

type told func()

func (told) Read(uint64, []byte)    {}
func (f told) Write(uint64, []byte) { f() }

// A write to a doorbell's address wakes who waits, and does not exit.
func testDoorbell(t *testing.T) {
	ends := make(chan Reason, 1)
	vm := realMode(t, 1, func(r Reason) { ends <- r },
		0xb8, 0x00, 0xf0, // mov ax, 0xf000
		0x8e, 0xd8, // mov ds, ax
		0xc7, 0x06, 0x00, 0xff, 0x07, 0x00, // mov word [0xff00], 7: gpa 0xfff00
		0xc7, 0x06, 0x00, 0xff, 0x08, 0x00, // another value
		0xf4,
	)
	// Not RAM: the slot is made shorter.
	addr, _ := vm.Memory().KVMAddr(0)
	if err := vm.kvm.SetUserMemoryRegion(kvmapi.UserspaceMemoryRegion{Slot: 0}); err != nil {
		t.Fatal(err)
	}
	if err := vm.kvm.SetUserMemoryRegion(kvmapi.UserspaceMemoryRegion{Slot: 0, MemorySize: 0xf0000, UserspaceAddr: uint64(addr)}); err != nil {
		t.Fatal(err)
	}
	seven := uint64(7)
	bell, err := vm.NewDoorbell(0xfff00, 2, &seven)
	if err != nil {
		t.Fatal(err)
	}
	var other count
	if err := vm.mmio.Add(0xfff00, 2, &other); err != nil {
		t.Fatal(err)
	}
	rang := make(chan bool, 2)
	go func() {
		rang <- bell.Wait()
		rang <- bell.Wait()
	}()
	vm.Start()
	if !<-rang {
		t.Error("the doorbell is closed")
	}
	<-ends
	if n := other.writes.Load(); n != 1 {
		t.Errorf("%d writes reached the bus, want the one of another value", n)
	}
	if err := bell.Close(); err != nil {
		t.Error(err)
	}
	if <-rang {
		t.Error("a closed doorbell rang")
	}
}
