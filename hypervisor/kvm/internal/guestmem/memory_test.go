package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func split(t *testing.T) *Memory {
	t.Helper()
	m, err := New([]hypervisor.Range{{Start: 1 << 32, Size: 67 * 4096}, {Start: 0, Size: 130 * 4096}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestMappings(t *testing.T) {
	m := split(t)
	want := []byte("seen by all")
	if n, err := m.WritePhys(want, 1<<32+5); n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	kvms, err := m.KVMView(1<<32+5, uint64(len(want)))
	if err != nil || !bytes.Equal(kvms, want) {
		t.Errorf("KVM sees %q, %v", kvms, err)
	}
	got := make([]byte, len(want))
	if _, err := m.File().ReadAt(got, 130*4096+5); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has %q, %v", got, err)
	}
	addr, ok := m.KVMAddr(1<<32 + 5)
	if gpa, back := m.KVMAddrToPhys(addr); !ok || !back || gpa != 1<<32+5 {
		t.Errorf("address %#x is of gpa %v, %v", addr, gpa, back)
	}
	for _, c := range []struct {
		gpa  hypervisor.PhysAddr
		size uint64
	}{{130 * 4096, 1}, {130*4096 - 1, 2}, {1<<32 + 67*4096 - 1, 2}, {0, 1 << 63}, {1<<64 - 1, 1}, {1<<32 + 1, 1<<64 - 1}} {
		if v, err := m.View(c.gpa, c.size); !errors.Is(err, hypervisor.ErrNotRAM) {
			t.Errorf("View(%v, %d) = %d bytes, %v", c.gpa, c.size, len(v), err)
		}
	}
	if n, err := m.ReadPhys(make([]byte, 10), 130*4096-4); n != 4 || !errors.Is(err, hypervisor.ErrNotRAM) {
		t.Errorf("read across the end: %d, %v", n, err)
	}
}

// No one can take the memory away under the guest.
func TestSealed(t *testing.T) {
	m := split(t)
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", m.File().Fd()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs := os.NewFile(uintptr(fd), "as a client has it")
	defer theirs.Close()
	for _, size := range []int64{0, 4096, 1 << 30} {
		if err := theirs.Truncate(size); err == nil {
			t.Errorf("truncated to %d", size)
		}
	}
	if _, err := theirs.WriteAt([]byte{1}, 0); err == nil {
		t.Error("written")
	}
}

func TestDirty(t *testing.T) {
	m := split(t)
	m.Dirtied(0, 4096) // not tracked yet
	m.TrackDirty(true)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		want := map[hypervisor.Frame]bool{}
		for range 20 {
			r := m.Ranges()[rng.IntN(2)]
			off := rng.Uint64N(r.Size)
			n := min(rng.Uint64N(3*4096), r.Size-off)
			m.Dirtied(r.Start+hypervisor.PhysAddr(off), n)
			for b := uint64(0); b < n; b++ {
				want[(r.Start + hypervisor.PhysAddr(off+b)).Frame()] = true
			}
		}
		var got []hypervisor.Frame
		m.TakeDirty(func(f hypervisor.Frame) { got = append(got, f) })
		if !slices.IsSorted(got) || len(got) != len(want) {
			t.Fatalf("%d frames, want %d: %v", len(got), len(want), got)
		}
		for _, f := range got {
			if !want[f] {
				t.Errorf("frame %#x was not written", f)
			}
		}
	}
	m.Dirtied(1<<33, 4096) // no RAM
	m.TakeDirty(func(f hypervisor.Frame) { t.Errorf("frame %#x", f) })
}

func TestNewRefuses(t *testing.T) {
	for _, rs := range [][]hypervisor.Range{nil, {{Start: 0, Size: 100}}, {{Start: 1, Size: 4096}}, {{Start: 0, Size: 8192}, {Start: 4096, Size: 4096}}} {
		if m, err := New(rs, nil); err == nil {
			t.Errorf("%v is taken", rs)
			m.Close()
		}
	}
}
