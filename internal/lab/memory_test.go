package lab_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Guests with every layout of memory, three of them at once.
func TestLayouts(t *testing.T) {
	k := labtest.Kernel(t, lab.Bookworm)
	for _, c := range []struct {
		cfg     lab.Config
		low     uint64 // where RAM below 4 GiB ends
		la57    string
		private bool
	}{
		{cfg: lab.Config{Name: "pc-private", Machine: lab.PC, Memory: 256 * lab.MiB}, low: 256 * lab.MiB, private: true},
		{cfg: lab.Config{Name: "pc-5G", Machine: lab.PC, Memory: 5 * lab.GiB, Shared: true}, low: 3 * lab.GiB},
		{cfg: lab.Config{Name: "q35-5G-la57", Machine: lab.Q35, Memory: 5 * lab.GiB, Shared: true, LA57: true, CPUs: 2, KASLR: true}, low: 2 * lab.GiB, la57: "la57\n"},
	} {
		c.cfg.Kernel = k
		t.Run(c.cfg.Name, func(t *testing.T) {
			t.Parallel()
			g := labtest.Boot(t, c.cfg)
			layout, err := g.Layout(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var low, high uint64
			for _, r := range layout {
				if r.Start >= 4*lab.GiB {
					high += r.Size
				} else {
					low = max(low, r.Start+r.Size)
				}
			}
			if low != c.low || low+high != c.cfg.Memory {
				t.Errorf("RAM ends at %#x below 4 GiB, %#x bytes above: %+v", low, high, layout)
			}
			if _, err := g.RAMFile(); c.private != errors.Is(err, os.ErrNotExist) {
				t.Errorf("RAMFile: %v", err)
			}
			out, err := g.Run(t.Context(), "grep -ow -m1 la57 /proc/cpuinfo; grep -c ^processor /proc/cpuinfo")
			if want := fmt.Sprintf("%s%d\n", c.la57, g.Config().CPUs); err != nil || out != want {
				t.Errorf("the guest's processors: %q, %v, want %q", out, err, want)
			}
		})
	}
}

// A dump is what the guest's memory is.
func TestDumps(t *testing.T) {
	ctx := t.Context()
	g := labtest.Boot(t, lab.Config{Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 128 * lab.MiB, Shared: true})
	if err := g.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "mem.raw")
	if err := g.DumpRaw(ctx, path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := openRAM(t, g)
	if len(got) != len(want) {
		t.Fatalf("%d bytes, want %d", len(got), len(want))
	}
	layout, err := g.Layout(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range layout {
		if !bytes.Equal(got[r.Start:][:r.Size], want[r.RAM:][:r.Size]) {
			t.Errorf("%+v differs", r)
		}
	}
	if _, err := os.Stat(path + ".elf-tmp"); !os.IsNotExist(err) {
		t.Errorf("the dump it was made from is still there: %v", err)
	}
}
