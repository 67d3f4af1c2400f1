package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

func testdata(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFlatView(t *testing.T) {
	ram := func(lo, hi uint64, kind, name string, off uint64) Region {
		return Region{Start: hypervisor.PhysAddr(lo), End: hypervisor.PhysAddr(hi), Type: kind, Name: name, Offset: off}
	}
	for _, tt := range []struct {
		file string
		want []Region // what is RAM
	}{
		{"mtree-pc-4g-kvm.txt", []Region{
			ram(0, 0xa0000, "ram", "pc.ram", 0),
			ram(0xc0000, 0xc0000000, "ram", "pc.ram", 0xc0000),
			ram(0xfd000000, 0xfe000000, "ram", "vga.vram", 0),
			ram(0xfffc0000, 0x100000000, "rom", "pc.bios", 0),
			ram(0x100000000, 0x140000000, "ram", "pc.ram", 0xc0000000),
		}},
		{"mtree-q35-4g-numa.txt", nil},
		{"mtree-pc-512m-reset.txt", []Region{
			ram(0, 0xa0000, "ram", "pc.ram", 0),
			ram(0xc0000, 0xe0000, "rom", "pc.rom", 0),
			ram(0xe0000, 0x100000, "rom", "pc.bios", 0x20000),
			ram(0x100000, 0x20000000, "ram", "pc.ram", 0x100000),
			ram(0xfffc0000, 0x100000000, "rom", "pc.bios", 0),
		}},
	} {
		all, err := FlatView(testdata(t, tt.file))
		if err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		got := slices.DeleteFunc(all, func(r Region) bool { return !r.RAM() })
		if tt.want != nil && !slices.Equal(got, tt.want) {
			t.Errorf("%s:\n got %v\nwant %v", tt.file, got, tt.want)
		}
		if tt.want != nil {
			continue
		}
		for _, w := range []Region{
			ram(0x40000000, 0x80000000, "ram", "b", 0),
			ram(0x100000000, 0x180000000, "ram", "b", 0x40000000),
		} {
			if !slices.Contains(got, w) {
				t.Errorf("%s: %v is missing in %v", tt.file, w, got)
			}
		}
	}
}

func TestFlatViewBad(t *testing.T) {
	if _, err := FlatView("unknown command: 'info mtree'\r\n"); !errors.Is(err, ErrNoFlatView) {
		t.Errorf("FlatView of nothing = %v", err)
	}
	const head = "FlatView #0\n Root memory region: system\n"
	if _, err := FlatView(head + "  0000-1fff (prio 0, ram): m\n  1000-2fff (prio 0, ram): m\n"); err == nil {
		t.Error("overlapping regions are taken")
	}
	// A line that is not understood does not hide the others, and the end of
	// the address space does not wrap.
	rs, err := FlatView(head + "  garbage\n  2000-1000 (prio 0, ram): m\n  1000-1fff (prio 0, ram): a @b c @10 KVM\n  2000-ffffffffffffffff (prio 0, ram): m\n")
	if err != nil || len(rs) != 1 || rs[0].Name != "a @b c" || rs[0].Offset != 0x10 {
		t.Errorf("FlatView = %v, %v", rs, err)
	}
}

func TestHostAddress(t *testing.T) {
	hva, name, err := HostAddress("Host virtual address for 0x10000000 (b (1)) is 0x7f46c3c00000\r\n")
	if hva != 0x7f46c3c00000 || name != "b (1)" || err != nil {
		t.Errorf("HostAddress = %#x, %q, %v", hva, name, err)
	}
	for _, bad := range []string{"", "No memory is mapped at address 0x0", "Memory at address 0xa0000 is not RAM", "(x) is 0xzz"} {
		if _, _, err := HostAddress(bad); err == nil {
			t.Errorf("HostAddress(%q) is taken", bad)
		}
	}
}

func FuzzFlatView(f *testing.F) {
	for _, name := range []string{"mtree-pc-4g-kvm.txt", "mtree-q35-4g-numa.txt", "mtree-pc-512m-reset.txt"} {
		f.Add(testdata(f, name))
	}
	f.Fuzz(func(t *testing.T, text string) {
		rs, err := FlatView(text)
		if err != nil {
			return
		}
		for i, r := range rs {
			if r.End <= r.Start || i > 0 && rs[i-1].End > r.Start {
				t.Fatalf("region %d of %v", i, rs)
			}
		}
		_, _, _ = HostAddress(text)
	})
}

func FuzzRegisters(f *testing.F) {
	f.Add(testdata(f, "registers-linux64.txt"))
	f.Add(testdata(f, "registers-bios-2cpu.txt"))
	f.Fuzz(func(t *testing.T, text string) {
		rs, err := ParseRegisters(text)
		if err == nil && len(rs) > strings.Count(text, "CPU#") {
			t.Fatalf("%d vCPUs", len(rs))
		}
	})
}
