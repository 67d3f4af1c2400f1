package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
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
		{"Pause", testPause},
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

// notRAM checks a result that must end in a hole at addr.
func notRAM(t *testing.T, call string, n, want int, err error, addr hypervisor.PhysAddr) {
	t.Helper()
	var at *hypervisor.AddressError
	if n != want || !errors.Is(err, hypervisor.ErrNotRAM) || !errors.As(err, &at) {
		t.Errorf("%s = %d, %v; want %d and an *AddressError that wraps ErrNotRAM", call, n, err, want)
	} else if at.Addr != addr {
		t.Errorf("%s: error names %v, the hole is at %v", call, at.Addr, addr)
	}
}

func testReadBounds(t *testing.T, _ Config, vm hypervisor.VM) {
	rs := vm.Ranges()
	for _, r := range rs {
		for _, before := range []uint64{1, 8, 4096, 4097, 1 << 20} {
			before = min(before, r.Size)
			start := r.End() - hypervisor.PhysAddr(before)
			p := make([]byte, before+1)
			n, err := vm.ReadPhys(p, start)
			notRAM(t, "ReadPhys over the end of "+r.String(), n, int(before), err, r.End())
			if n, err := vm.ReadPhys(p[:before], start); n != int(before) || err != nil {
				t.Errorf("ReadPhys up to the end of %v = %d, %v", r, n, err)
			}
		}
		for _, gpa := range []hypervisor.PhysAddr{r.Start, r.End(), r.End() - 1} {
			if n, err := vm.ReadPhys(nil, gpa); n != 0 || err != nil {
				t.Errorf("ReadPhys of nothing at %v = %d, %v", gpa, n, err)
			}
		}
		if r.Start > 0 {
			n, err := vm.ReadPhys(make([]byte, 16), r.Start-1)
			notRAM(t, "ReadPhys before "+r.String(), n, 0, err, r.Start-1)
		}
	}
	p := make([]byte, 16)
	for _, gpa := range []hypervisor.PhysAddr{1 << 51, 1 << 63, math.MaxUint64, math.MaxUint64 - 8} {
		if _, ok := hypervisor.FindRange(rs, gpa); !ok {
			n, err := vm.ReadPhys(p, gpa)
			notRAM(t, "ReadPhys at "+gpa.String(), n, 0, err, gpa)
		}
	}
}

// still pauses a live VM, if it can, for a comparison. It reports whether
// memory stands still.
func still(t *testing.T, vm hypervisor.VM) bool {
	t.Helper()
	if !hypervisor.IsLive(vm) {
		return true
	}
	p, err := hypervisor.As[hypervisor.Pauser](vm)
	if err != nil {
		return false
	}
	state, err := p.State(t.Context())
	if err == nil && state == hypervisor.StatePaused {
		return true
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Logf("not paused: %v", err)
		return false
	}
	return true
}

// goOn resumes a live VM that still paused.
func goOn(t *testing.T, vm hypervisor.VM) {
	t.Helper()
	if !hypervisor.IsLive(vm) {
		return
	}
	if p, err := hypervisor.As[hypervisor.Pauser](vm); err == nil {
		if err := p.Resume(context.WithoutCancel(t.Context())); err != nil {
			t.Logf("not resumed: %v", err)
		}
	}
}

// samples calls f with random pieces of RAM and with the first and last bytes of
// each range.
func samples(rs []hypervisor.Range, seed uint64, f func(gpa hypervisor.PhysAddr, size int)) {
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, r := range rs {
		f(r.Start, int(min(r.Size, 4096)))
		last := min(r.Size, 4096)
		f(r.End()-hypervisor.PhysAddr(last), int(last))
	}
	for range 400 {
		r := rs[rng.IntN(len(rs))]
		off := rng.Uint64N(r.Size)
		size := []uint64{1, 8, 100, 4096, 70_000, 1 << 20}[rng.IntN(6)]
		f(r.Start+hypervisor.PhysAddr(off), int(min(r.Size-off, size)))
	}
}

func testReadTruth(t *testing.T, cfg Config, vm hypervisor.VM) {
	if cfg.ReadTruth == nil {
		t.Log("no ground truth was given")
		return
	}
	fixed := still(t, vm)
	defer goOn(t, vm)
	compared, differing := 0, 0
	samples(vm.Ranges(), 1, func(gpa hypervisor.PhysAddr, size int) {
		got, want, again := make([]byte, size), make([]byte, size), make([]byte, size)
		if n, err := vm.ReadPhys(got, gpa); n != size || err != nil {
			t.Errorf("ReadPhys(%d bytes, %v) = %d, %v", size, gpa, n, err)
			return
		}
		if err := cfg.ReadTruth(want, gpa); err != nil {
			t.Fatalf("ground truth of %d bytes at %v: %v", size, gpa, err)
		}
		compared++
		if bytes.Equal(got, want) {
			return
		}
		if !fixed {
			if _, err := vm.ReadPhys(again, gpa); err != nil || !bytes.Equal(got, again) {
				return // the guest is writing there
			}
		}
		differing++
		i := 0
		for got[i] == want[i] {
			i++
		}
		if differing <= 5 {
			t.Errorf("%d bytes at %v differ from the truth, first at %v: %#x, want %#x", size, gpa, gpa+hypervisor.PhysAddr(i), got[i], want[i])
		}
	})
	t.Logf("%d pieces compared, %d differ", compared, differing)
}

func testMap(t *testing.T, _ Config, vm hypervisor.VM) {
	m, err := hypervisor.As[hypervisor.Mapper](vm)
	if err != nil {
		t.Log(err)
		return
	}
	if !still(t, vm) {
		t.Log("a live VM that cannot be paused: a view and a read are of different moments")
		return
	}
	defer goOn(t, vm)
	rs := vm.Ranges()
	samples(rs, 2, func(gpa hypervisor.PhysAddr, size int) {
		view, err := m.MapPhys(gpa, uint64(size))
		if err != nil || len(view) == 0 || len(view) > size {
			t.Errorf("MapPhys(%v, %d) = %d bytes, %v", gpa, size, len(view), err)
			return
		}
		p := make([]byte, len(view))
		if n, err := vm.ReadPhys(p, gpa); n != len(p) || err != nil {
			t.Errorf("ReadPhys(%d bytes, %v) = %d, %v", len(p), gpa, n, err)
		}
		if !bytes.Equal(p, view) {
			t.Errorf("MapPhys and ReadPhys of %d bytes at %v differ", len(p), gpa)
		}
	})
	for _, r := range rs {
		// The views of a range, one behind the other, are the range.
		for at := r.Start; at < r.End(); {
			view, err := m.MapPhys(at, math.MaxUint64)
			if err != nil || len(view) == 0 || uint64(len(view)) > uint64(r.End()-at) {
				t.Fatalf("MapPhys(%v, everything) in range %v = %d bytes, %v", at, r, len(view), err)
			}
			at += hypervisor.PhysAddr(len(view))
		}
		view, err := m.MapPhys(r.End(), 4096)
		notRAM(t, "MapPhys behind "+r.String(), len(view), 0, err, r.End())
	}
	view, err := m.MapPhys(math.MaxUint64, math.MaxUint64)
	notRAM(t, "MapPhys at the last address", len(view), 0, err, math.MaxUint64)
}

func testWrite(t *testing.T, cfg Config, vm hypervisor.VM) {
	w, err := hypervisor.As[hypervisor.Writer](vm)
	if err != nil {
		t.Log(err)
		return
	}
	end := vm.Ranges()[len(vm.Ranges())-1].End()
	n, err := w.WritePhys([]byte{1}, end)
	notRAM(t, "WritePhys behind RAM", n, 0, err, end)
	if cfg.Scratch.Size == 0 {
		t.Log("no RAM that may be written was named")
		return
	}
	old, now := make([]byte, cfg.Scratch.Size), make([]byte, cfg.Scratch.Size)
	if err := hypervisor.ReadFull(vm, old, cfg.Scratch.Start); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, cfg.Scratch.Size)
	for i := range p {
		p[i] = old[i] ^ byte(i*7+1)
	}
	for _, b := range [][]byte{p, old} {
		if n, err := w.WritePhys(b, cfg.Scratch.Start); n != len(b) || err != nil {
			t.Fatalf("WritePhys = %d, %v", n, err)
		}
		if err := hypervisor.ReadFull(vm, now, cfg.Scratch.Start); err != nil || !bytes.Equal(b, now) {
			t.Errorf("what was written does not read back (%v)", err)
		}
	}
}

func testPause(t *testing.T, _ Config, vm hypervisor.VM) {
	p, err := hypervisor.As[hypervisor.Pauser](vm)
	if err != nil {
		t.Log(err)
		return
	}
	ctx := t.Context()
	for _, step := range []struct {
		name string
		do   func(context.Context) error
		want hypervisor.State
	}{
		{"Pause", p.Pause, hypervisor.StatePaused},
		{"Pause again", p.Pause, hypervisor.StatePaused},
		{"Resume", p.Resume, hypervisor.StateRunning},
		{"Resume again", p.Resume, hypervisor.StateRunning},
	} {
		if err := step.do(ctx); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if s, err := p.State(ctx); s != step.want || err != nil {
			t.Errorf("State after %s = %s, %v; want %s", step.name, s, err, step.want)
		}
		if s := vm.Info().State; s != step.want {
			t.Errorf("Info().State after %s = %s, want %s", step.name, s, step.want)
		}
	}
}

func testConcurrent(t *testing.T, _ Config, vm hypervisor.VM) {
	rs := vm.Ranges()
	m, _ := vm.(hypervisor.Mapper)
	var wg sync.WaitGroup
	for g := range uint64(6) {
		wg.Go(func() {
			samples(rs, 10+g, func(gpa hypervisor.PhysAddr, size int) {
				size = min(size, 70_000)
				if n, err := vm.ReadPhys(make([]byte, size), gpa); n != size || err != nil {
					t.Errorf("ReadPhys(%d bytes, %v) = %d, %v", size, gpa, n, err)
				}
				if m != nil {
					if _, err := m.MapPhys(gpa, uint64(size)); err != nil {
						t.Errorf("MapPhys(%v, %d): %v", gpa, size, err)
					}
				}
				_ = vm.Ranges()
			})
			_ = vm.Info()
		})
	}
	wg.Wait()
}

func testClose(t *testing.T, cfg Config, vm hypervisor.VM) {
	// Close under readers: each read is good, or says that the handle is closed.
	start := vm.Ranges()[0].Start
	began := make(chan struct{}, 4)
	var wg sync.WaitGroup
	for range cap(began) {
		wg.Go(func() {
			p := make([]byte, 4096)
			for i := 0; ; i++ {
				n, err := vm.ReadPhys(p[:min(4096, vm.Ranges()[0].Size)], start)
				if i == 0 {
					began <- struct{}{}
				}
				if errors.Is(err, hypervisor.ErrClosed) && n == 0 {
					return
				} else if err != nil {
					t.Errorf("ReadPhys during Close = %d, %v", n, err)
					return
				}
			}
		})
	}
	for range cap(began) {
		<-began
	}
	if err := vm.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	wg.Wait()
	if err := vm.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if n, err := vm.ReadPhys(make([]byte, 1), start); n != 0 || !errors.Is(err, hypervisor.ErrClosed) {
		t.Errorf("ReadPhys after Close = %d, %v; want ErrClosed", n, err)
	}
	if m, ok := vm.(hypervisor.Mapper); ok {
		if _, err := m.MapPhys(start, 1); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("MapPhys after Close = %v, want ErrClosed", err)
		}
	}
	if w, ok := vm.(hypervisor.Writer); ok {
		if _, err := w.WritePhys([]byte{0}, start); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("WritePhys after Close = %v, want ErrClosed", err)
		}
	}
	if r, ok := vm.(hypervisor.RegisterReader); ok {
		if _, err := r.Registers(t.Context()); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("Registers after Close = %v, want ErrClosed", err)
		}
	}
	if p, ok := vm.(hypervisor.Pauser); ok {
		if err := p.Pause(t.Context()); !errors.Is(err, hypervisor.ErrClosed) {
			t.Errorf("Pause after Close = %v, want ErrClosed", err)
		}
	}
	if vm.Info().Name == "" {
		t.Error("Info after Close is empty")
	}
	before := openFiles(t)
	for range 8 {
		if err := cfg.Open(t).Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d file descriptors before 8 times Open and Close, %d after", before, after)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}
