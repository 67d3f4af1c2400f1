package qemu_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/kvmrun"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/monitor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Registers of a VM under this machine's own KVM, whose firmware has come to
// rest: passive and by QEMU's monitor.
func TestPassiveRegisters(t *testing.T) {
	labtest.NeedRoot(t)
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no KVM on this machine: %v", err) // the nested bed's test does not depend on it
	}
	_ = f.Close()
	m := start(t, false, "-accel", "kvm", "-machine", "pc", "-m", "128", "-smp", "2")
	vm := m.open(qemu.Options{NoQMP: true})
	awaitBoot(t, m)
	checkPassive(t, m, vm)
}

// checkPassive compares passive register reads with the monitor's.
func checkPassive(t *testing.T, m *machine, vm *qemu.VM) {
	t.Helper()
	regs, err := vm.Registers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	const rounds = 50
	for range rounds {
		if regs, err = vm.Registers(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v per read of %d vCPUs", time.Since(begin)/rounds, len(regs))
	m.execute("stop")
	truth, err := monitor.ParseRegisters(m.hmp("info registers -a"))
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) != len(truth) {
		t.Fatalf("%d vCPUs, QEMU has %d", len(regs), len(truth))
	}
	for i := range regs {
		a, b := regs[i], truth[i]
		if a.VCPU != b.VCPU || a.Valid != b.Valid {
			t.Errorf("vCPU %d (%b), QEMU says %d (%b)", a.VCPU, a.Valid, b.VCPU, b.Valid)
		}
		// What does not change while the machine runs.
		if a.GDT != b.GDT || a.IDT != b.IDT || a.TR != b.TR || a.EFER != b.EFER || a.CR4 != b.CR4 {
			t.Errorf("vCPU %d: %+v, QEMU says %+v", i, a, b)
		}
	}
	// A VM that is paused makes no exit.
	if _, err := vm.Registers(t.Context()); !errors.Is(err, kvmrun.ErrNotRunning) {
		t.Errorf("Registers of a paused VM = %v, want ErrNotRunning", err)
	}
	m.execute("cont")
	if _, err := vm.Registers(t.Context()); err != nil {
		t.Errorf("after cont: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := vm.Registers(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}

// awaitBoot waits until the firmware has loaded its tables for good: until the
// BIOS has written the reset vector into shadow RAM.
func awaitBoot(t *testing.T, m *machine) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	var p [16]byte
	for p[0] != 0xea {
		if time.Now().After(deadline) {
			t.Fatal("the firmware does not come up")
		}
		if err := m.read(p[:], 0xffff0); err != nil {
			t.Fatal(err)
		}
	}
}
