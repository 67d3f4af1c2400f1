package qemu_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// pmemsave returns a reader of a lab guest's memory by QEMU itself.
func pmemsave(t *testing.T, g *lab.Guest) func(p []byte, gpa hypervisor.PhysAddr) error {
	t.Helper()
	name := filepath.Join(tempDir(t), "pmem")
	return func(p []byte, gpa hypervisor.PhysAddr) error {
		if _, err := g.Monitor(t.Context(), "pmemsave", map[string]any{"val": uint64(gpa), "size": len(p), "filename": name}); err != nil {
			return err
		}
		b, err := os.ReadFile(name)
		if err == nil && len(b) != len(p) {
			err = fmt.Errorf("pmemsave wrote %d of %d bytes", len(b), len(p))
		}
		copy(p, b)
		return err
	}
}

// A Linux guest with memory above 4 GiB: what the driver reads is what QEMU
// saves, with and without QMP, private and shared.
func TestLinuxGuest(t *testing.T) {
	labtest.NeedRoot(t)
	for _, tt := range []struct {
		machine lab.Machine
		memory  uint64
		shared  bool
		qmp     bool
		ranges  []hypervisor.Range
	}{
		{lab.PC, 4 * lab.GiB, false, false, []hypervisor.Range{{Start: 0, Size: 3 << 30}, {Start: 4 << 30, Size: 1 << 30}}},
		{lab.Q35, 3 * lab.GiB, true, true, []hypervisor.Range{{Start: 0, Size: 2 << 30}, {Start: 4 << 30, Size: 1 << 30}}},
	} {
		t.Run(fmt.Sprintf("%s/shared=%v/qmp=%v", tt.machine, tt.shared, tt.qmp), func(t *testing.T) {
			g := labtest.Boot(t, lab.Config{
				Name: "driver-qemu", Kernel: labtest.Kernel(t, lab.Bookworm), KASLR: true,
				Machine: tt.machine, Memory: tt.memory, CPUs: 2, Shared: tt.shared, QMP: tt.qmp,
			})
			d := qemu.New(qemu.Options{})
			if err := g.Pause(t.Context()); err != nil { // the truth is of the same moment
				t.Fatal(err)
			}
			cfg := hypervisortest.Config{
				Open: func(t testing.TB) hypervisor.VM {
					vm, err := d.Open(t.Context(), fmt.Sprint(g.PID()))
					if err != nil {
						t.Fatal(err)
					}
					if !tt.shared && !tt.qmp { // what it lacks it lacks by this handle's type
						return bare{vm.(*qemu.VM)}
					}
					return vm
				},
				Driver:    d,
				Missing:   "no-such-vm",
				Ranges:    tt.ranges,
				ReadTruth: pmemsave(t, g),
			}
			hypervisortest.Conformance(t, cfg)
		})
	}
}

// bare hides all capabilities.
type bare struct{ plain }

type plain interface {
	hypervisor.VM
	hypervisor.Live
}
