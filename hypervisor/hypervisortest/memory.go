package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

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
