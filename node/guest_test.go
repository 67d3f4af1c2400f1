package node_test

import (
	"strconv"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
	"github.com/vantage-vmi/vantage/internal/linuxtest"
	"github.com/vantage-vmi/vantage/node"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func newNode(t *testing.T) *node.Node {
	t.Helper()
	return node.New(node.Options{
		Drivers:  []node.Driver{qemu.New(qemu.Options{}), image.New(image.Options{})},
		CacheDir: t.TempDir(),
	})
}

// TestGuestsAgainstTheirOwnWord looks into running guests from outside, and
// compares every field with what a program in the guest says it is. Each of the
// ways in which a VM may be set up is in at least two of them.
func TestGuestsAgainstTheirOwnWord(t *testing.T) {
	for _, c := range []struct {
		name    string
		suite   lab.Suite
		flavour lab.Flavour
		levels  int
		cfg     lab.Config
	}{
		{"5.10 pc shared QMP KASLR", lab.Bullseye, lab.Cloud, 4, lab.Config{Machine: lab.PC, Shared: true, QMP: true, KASLR: true}},
		{"6.1 q35 private no-QMP no-KASLR", lab.Bookworm, lab.Cloud, 4, lab.Config{Machine: lab.Q35}},
		{"6.1 pc shared no-QMP KASLR 6G", lab.Bookworm, lab.Cloud, 4, lab.Config{Machine: lab.PC, Shared: true, KASLR: true, Memory: 6 * lab.GiB, CPUs: 2}},
		{"6.12 pc private QMP KASLR 5-levels PTI 5G", lab.Trixie, lab.Cloud, 5, lab.Config{
			Machine: lab.PC, QMP: true, KASLR: true, LA57: true, Append: "pti=on", Memory: 5 * lab.GiB,
		}},
		{"6.12 q35 shared QMP no-KASLR 3G", lab.Trixie, lab.Cloud, 4, lab.Config{Machine: lab.Q35, Shared: true, QMP: true, Memory: 3 * lab.GiB}},
		{"7.x q35 private no-QMP KASLR 4G", lab.Sid, lab.Cloud, 4, lab.Config{Machine: lab.Q35, KASLR: true, Memory: 4 * lab.GiB}},
		{"6.12 generic q35 shared no-QMP KASLR 5-levels", lab.Trixie, lab.Generic, 5, lab.Config{Machine: lab.Q35, Shared: true, KASLR: true, LA57: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Name = "node-" + string(c.suite) + "-" + string(c.cfg.Machine)
			c.cfg.Kernel = labtest.KernelOf(t, c.suite, c.flavour)
			c.cfg.Program = true
			g := labtest.Boot(t, c.cfg)
			n := newNode(t)
			vm, err := n.Open(t.Context(), "qemu:"+strconv.Itoa(g.PID()))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := vm.Close(); err != nil {
					t.Error(err)
				}
			}()
			checkCapabilities(t, vm, g)
			// The second time the profile is taken from the cache.
			for _, cache := range []string{"cold", "warm"} {
				t.Run(cache, func(t *testing.T) {
					guest, err := n.Linux(t.Context(), vm)
					if err != nil {
						t.Fatal(err)
					}
					if got, want := guest.Kernel().FromCache, cache == "warm"; got != want {
						t.Errorf("profile from cache: %t, want %t", got, want)
					}
					linuxtest.Compare(t, guest, g, c.levels)
				})
			}
		})
	}
}

// checkCapabilities holds the driver to what it must offer of a VM that was
// started so.
func checkCapabilities(t *testing.T, vm hypervisor.VM, g *lab.Guest) {
	t.Helper()
	cfg := g.Config()
	if got := vm.Info(); got.Name != g.Name() || got.MemoryBytes != cfg.Memory || got.PID != g.PID() || got.VCPUs != cfg.CPUs {
		t.Errorf("info %+v of %s with %d bytes, %d CPUs", got, g.Name(), cfg.Memory, cfg.CPUs)
	}
	layout, err := g.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range layout {
		if b := make([]byte, 8); hypervisor.ReadFull(vm, b, hypervisor.PhysAddr(r.Start+r.Size-8)) != nil {
			t.Errorf("the end of RAM %#x+%#x cannot be read", r.Start, r.Size)
		}
	}
	_, err = vm.(hypervisor.Mapper).MapPhys(0, hypervisor.PageSize)
	if (err == nil) != cfg.Shared {
		t.Errorf("zero-copy view of shared=%t memory: %v", cfg.Shared, err)
	}
}
