package hypervisortest

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Config tells Conformance what it tests. Only Open is needed; the more is
// given, the more is compared.
type Config struct {
	// Open opens the VM anew, to be closed by the suite. It is called many times,
	// often with an earlier handle still open.
	Open func(t testing.TB) hypervisor.VM

	// Driver is checked to open the VM's URI again. nil: not tested.
	Driver hypervisor.Driver
	// Missing is a target that Driver must not find. "": not tested.
	Missing string

	// Ranges is the RAM that the VM is known to have. nil: not compared.
	Ranges []hypervisor.Range
	// ReadTruth reads guest memory by another way than the driver: all of p at
	// gpa, which is RAM. nil: not compared. For a live VM it is called while
	// the VM is paused; without a Pauser what differs between two reads is not
	// compared.
	ReadTruth func(p []byte, gpa hypervisor.PhysAddr) error

	// Want are capabilities the VM must have.
	Want Capability
	// Lacks are capabilities that it must not have.
	Lacks Capability
	// Scratch is RAM that may be written, for a VM that has hypervisor.Writer.
	// Its content is put back. A Size of 0: writing is not tested.
	Scratch hypervisor.Range
	// GuestWrite makes the guest of the handle that was opened last store p at
	// gpa, which is in Scratch, with one instruction, and returns when that is
	// done: what traps and dirty pages are told of. nil: not tested.
	GuestWrite func(p []byte, gpa hypervisor.PhysAddr) error
}

// Conformance tests that a driver's VM does what package hypervisor promises.
// Run it with the race detector.
func Conformance(t *testing.T, cfg Config) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(*testing.T, Config, hypervisor.VM)
	}{
		{"Info", testInfo},
		{"Ranges", testRanges},
		{"Capabilities", testCapabilities},
		{"ReadBounds", testReadBounds},
		{"ReadTruth", testReadTruth},
		{"Map", testMap},
		{"Write", testWrite},
		{"Registers", testRegisters},
		{"SetRegisters", testSetRegisters},
		{"Pause", testPause},
		{"Traps", testTraps},
		{"Dirty", testDirty},
		{"Concurrent", testConcurrent},
		{"Close", testClose},
	} {
		t.Run(c.name, func(t *testing.T) {
			vm := cfg.Open(t)
			defer func() {
				if err := vm.Close(); err != nil {
					t.Errorf("Close: %v", err)
				}
			}()
			c.run(t, cfg, vm)
		})
	}
}

func testInfo(t *testing.T, cfg Config, vm hypervisor.VM) {
	info := vm.Info()
	if info.Name == "" || info.Driver == "" {
		t.Errorf("Info has no name or driver: %+v", info)
	}
	if !strings.HasPrefix(info.URI, info.Driver+":") {
		t.Errorf("Info.URI = %q, want the scheme %q", info.URI, info.Driver)
	}
	switch info.State {
	case hypervisor.StateRunning, hypervisor.StatePaused, hypervisor.StateUnknown:
		if info.PID == 0 && info.Driver != "fake" {
			t.Errorf("Info.PID = 0 of a VM in state %s", info.State)
		}
	case hypervisor.StateStatic:
		if info.PID != 0 || hypervisor.IsLive(vm) {
			t.Errorf("static VM: PID = %d, live = %v", info.PID, hypervisor.IsLive(vm))
		}
	default:
		t.Errorf("Info.State = %q", info.State)
	}
	if got := hypervisor.TotalSize(vm.Ranges()); info.MemoryBytes != got {
		t.Errorf("Info.MemoryBytes = %d, Ranges have %d", info.MemoryBytes, got)
	}
	if cfg.Driver == nil {
		return
	}
	scheme, target, _ := strings.Cut(info.URI, ":")
	if name := cfg.Driver.Name(); scheme != name || info.Driver != name {
		t.Errorf("driver %q gave Info %+v", name, info)
	}
	again, err := cfg.Driver.Open(t.Context(), target)
	if err != nil {
		t.Fatalf("Open of the VM's own URI %q: %v", info.URI, err)
	}
	defer func() { _ = again.Close() }()
	if a := again.Info(); a.Name != info.Name || a.MemoryBytes != info.MemoryBytes || a.PID != info.PID {
		t.Errorf("opened by its URI: %+v, want %+v", a, info)
	}
	if cfg.Missing != "" {
		if _, err := cfg.Driver.Open(t.Context(), cfg.Missing); !errors.Is(err, hypervisor.ErrNotFound) {
			t.Errorf("Open(%q) = %v, want ErrNotFound", cfg.Missing, err)
		}
	}
}

func testRanges(t *testing.T, cfg Config, vm hypervisor.VM) {
	rs := vm.Ranges()
	if len(rs) == 0 {
		t.Fatal("no ranges")
	}
	for i, r := range rs {
		if r.Size == 0 || r.Size > math.MaxUint64-uint64(r.Start) {
			t.Errorf("range %d is %#x bytes at %v", i, r.Size, r.Start)
		}
		if i > 0 && rs[i-1].End() >= r.Start {
			t.Errorf("ranges %v and %v are not sorted, or not merged", rs[i-1], r)
		}
	}
	if cfg.Ranges == nil {
		return
	}
	if len(rs) != len(cfg.Ranges) {
		t.Fatalf("Ranges() = %v, want %v", rs, cfg.Ranges)
	}
	for i := range rs {
		if rs[i] != cfg.Ranges[i] {
			t.Errorf("Ranges()[%d] = %v, want %v", i, rs[i], cfg.Ranges[i])
		}
	}
}

func testCapabilities(t *testing.T, cfg Config, vm hypervisor.VM) {
	testAs[hypervisor.Mapper](t, cfg, vm, CanMap)
	testAs[hypervisor.Writer](t, cfg, vm, CanWrite)
	testAs[hypervisor.Pauser](t, cfg, vm, CanPause)
	testAs[hypervisor.RegisterReader](t, cfg, vm, CanRegisters)
	testAs[hypervisor.RegisterWriter](t, cfg, vm, CanSetRegisters)
	testAs[hypervisor.Trapper](t, cfg, vm, CanTrap)
	testAs[hypervisor.DirtyTracker](t, cfg, vm, CanDirty)
	// One that nobody has.
	testAs[interface{ VantageConformance() }](t, Config{}, vm, CanNothing)
}

func testAs[T any](t *testing.T, cfg Config, vm hypervisor.VM, c Capability) {
	t.Helper()
	_, err := hypervisor.As[T](vm)
	if err == nil {
		if cfg.Lacks&c != 0 {
			t.Errorf("VM has %T", *new(T))
		}
		return
	}
	if cfg.Want&c != 0 {
		t.Errorf("VM lacks a capability that it must have: %v", err)
	}
	var missing *hypervisor.NotSupportedError
	if !errors.As(err, &missing) || !errors.Is(err, hypervisor.ErrNotSupported) {
		t.Fatalf("As = %v, want a *NotSupportedError", err)
	}
	if missing.What == "" || missing.Remedy == "" || missing.Driver != vm.Info().Driver {
		t.Errorf("As = %#v: what, driver or remedy is missing", missing)
	}
}
