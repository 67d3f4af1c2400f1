package node

import (
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
	"github.com/vantage-vmi/vantage/scanner"
)

func TestCutOut(t *testing.T) {
	in := []scanner.Area{{Start: 10, End: 20, Name: "a"}, {Start: 30, End: 40, Name: "b"}}
	for _, c := range []struct {
		lo, hi int
		want   []scanner.Area
	}{
		{0, 5, in},
		{20, 30, in},
		{0, 50, nil},
		{12, 15, []scanner.Area{{Start: 10, End: 12, Name: "a"}, {Start: 15, End: 20, Name: "a"}, in[1]}},
		{15, 35, []scanner.Area{{Start: 10, End: 15, Name: "a"}, {Start: 35, End: 40, Name: "b"}}},
		{10, 20, in[1:]},
	} {
		got := cutOut(in, hypervisor.VirtAddr(c.lo), hypervisor.VirtAddr(c.hi))
		if !slices.EqualFunc(got, c.want, func(a, b scanner.Area) bool { return a == b }) {
			t.Errorf("without [%d, %d): %v, want %v", c.lo, c.hi, got, c.want)
		}
	}
}

// The parts that a guest's kernel said it freed are not scanned as the kernel's,
// and its code and data are.
func TestFreedKernelMemory(t *testing.T) {
	g := labtest.Boot(t, lab.Config{Name: "freed", Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 256 * lab.MiB, Shared: true, KASLR: true})
	file, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := image.New(image.Options{}).Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	guest, err := New(Options{}).Linux(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	k := guest.Kernel()
	target, ok := kernelTarget(t.Context(), vm, guest).(scanner.KernelTarget)
	if !ok {
		t.Fatal("no kernel target")
	}
	scanned := func(name string, off int) bool {
		va, err := k.Symbol(name)
		if err != nil {
			t.Fatal(err)
		}
		va += hypervisor.VirtAddr(off)
		return slices.ContainsFunc(target.Areas, func(a scanner.Area) bool { return a.Start <= va && va < a.End })
	}
	for name, off := range map[string]int{"_etext": 0x2000, "__end_rodata": 0x2000, "__init_begin": 0, "linux_banner": 0, "init_task": 0, "_text": 0, "_sdata": 0, "__end_bss_decrypted": 0} {
		freed := name == "_etext" || name == "__end_rodata" || name == "__init_begin"
		if got := scanned(name, off); got == freed {
			t.Errorf("%s+%#x is scanned: %v", name, off, got)
		}
	}
}
