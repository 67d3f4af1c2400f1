package qemu_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/kvmrun"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/monitor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// TestNested runs under KVM with nested paging.
func TestNested(t *testing.T) {
	labtest.NeedRoot(t)
	labtest.NestedGroup(t, lab.NestedConfig{InnerKernel: labtest.Kernel(t, lab.Bookworm)}, func(t *testing.T) {
		t.Run("firmware", testFirmware)
		t.Run("linux", testLinux)
	})
}

// Registers of a VM whose firmware has come to rest; its second vCPU waits to
// be started.
func testFirmware(t *testing.T) {
	m := start(t, false, "-accel", "kvm", "-machine", "pc", "-m", "128", "-smp", "2")
	awaitRest(t, m)
	checkPassive(t, m.target(), m.hmp)
}

// awaitRest waits until the firmware has found nothing to boot: it then halts,
// and only its timer wakes it.
func awaitRest(t *testing.T, m *machine) {
	t.Helper()
	const enough = 5
	deadline := time.Now().Add(60 * time.Second)
	for halted := 0; halted < enough; <-time.After(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the firmware does not come to rest")
		}
		if halted++; !strings.Contains(m.hmp("info registers"), "HLT=1") {
			halted = 0
		}
	}
}

// Registers of a Linux guest.
func testLinux(t *testing.T) {
	g := labtest.Boot(t, lab.Config{
		Name: "passive", Kernel: labtest.Kernel(t, lab.Bookworm), Accel: "kvm",
		Memory: 256 * lab.MiB, QMP: true, KASLR: true,
		// Each byte on the console is an exit, and about one in 100,000 of the
		// emulated SVM's exits goes wrong: a guest that prints its whole boot
		// hangs or triple-faults half of the time.
		Append: "quiet",
	})
	regs := checkPassive(t, "passive", func(line string) string {
		s, err := g.HMP(t.Context(), line)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
	for _, r := range regs {
		if r.EFER&(1<<10) == 0 || r.CR0>>31 != 1 || r.CR3 == 0 || r.GDT.Limit == 0 || r.IDT.Limit != 0xfff {
			t.Errorf("vCPU %d does not run 64-bit Linux: %+v", r.VCPU, r)
		}
	}
	// QEMU's map has another look under KVM, and the monitor gives registers too.
	vm, err := qemu.New(qemu.Options{}).Open(t.Context(), "passive")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	if rs := vm.Ranges(); len(rs) != 1 || rs[0] != (hypervisor.Range{Start: 0, Size: 256 << 20}) {
		t.Errorf("Ranges = %v", rs)
	}
	if err := vm.(hypervisor.Pauser).Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	truth := pmemsave(t, g)
	got, want := make([]byte, 16<<20), make([]byte, 16<<20)
	for _, gpa := range []hypervisor.PhysAddr{1 << 20, 240 << 20} {
		if err := errors.Join(hypervisor.ReadFull(vm, got, gpa), truth(want, gpa)); err != nil {
			t.Fatal(err)
		}
		if i := diff(got, want); i >= 0 {
			t.Errorf("byte at %#x is %#x, QEMU says %#x", uint64(gpa)+uint64(i), got[i], want[i])
		}
	}
	paused, err := vm.(hypervisor.RegisterReader).Registers(t.Context())
	if err != nil || len(paused) != 1 || paused[0].GDT != regs[0].GDT {
		t.Errorf("Registers by the monitor: %+v, %v", paused, err)
	}
}

// checkPassive compares passive register reads with the monitor's.
func checkPassive(t *testing.T, target string, hmp func(string) string) []hypervisor.Registers {
	t.Helper()
	vm, err := qemu.New(qemu.Options{NoQMP: true}).Open(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	rr, err := hypervisor.As[hypervisor.RegisterReader](vm)
	if err != nil {
		t.Fatal(err)
	}
	regs, err := rr.Registers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 30
	begin := time.Now()
	for range rounds {
		if regs, err = rr.Registers(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%v per read of %d vCPUs", time.Since(begin)/rounds, len(regs))
	p, err := proc.Open(vm.Info().PID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if masks, err := kvmrun.ValidRegs(p); err != nil || slices.Max(masks) != 0 {
		t.Errorf("kvm_valid_regs is left at %#x, %v", masks, err)
	}

	hmp("stop")
	truth, err := monitor.ParseRegisters(hmp("info registers -a"))
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) != len(truth) {
		t.Fatalf("%d vCPUs, QEMU has %d", len(regs), len(truth))
	}
	for i, a := range regs {
		b := truth[i]
		if a.VCPU != b.VCPU || a.Valid != b.Valid {
			t.Errorf("vCPU %d (%b), QEMU says %d (%b)", a.VCPU, a.Valid, b.VCPU, b.Valid)
		}
		// What does not change from one moment to the next.
		if a.GDT != b.GDT || a.IDT != b.IDT || a.TR.Base != b.TR.Base || a.TR.Selector != b.TR.Selector || a.EFER != b.EFER || a.CR4 != b.CR4 {
			t.Errorf("vCPU %d:\n     %+v\nQEMU says\n     %+v", i, a, b)
		}
	}
	// A paused VM makes no exit.
	if _, err := rr.Registers(t.Context()); !errors.Is(err, kvmrun.ErrNotRunning) {
		t.Errorf("Registers of a paused VM = %v, want ErrNotRunning", err)
	}
	if masks, err := kvmrun.ValidRegs(p); err != nil || slices.Max(masks) != 0 {
		t.Errorf("kvm_valid_regs of a paused VM is left at %#x, %v", masks, err)
	}
	hmp("cont")
	if _, err := rr.Registers(t.Context()); err != nil {
		t.Errorf("Registers after cont: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := rr.Registers(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Registers with a cancelled context: %v", err)
	}
	return regs
}
