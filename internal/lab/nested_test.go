package lab_test

import (
	"os"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// In a guest that has KVM with nested paging.
func TestNested(t *testing.T) {
	k := labtest.Kernel(t, lab.Bookworm)
	labtest.NestedGroup(t, lab.NestedConfig{InnerKernel: k}, func(t *testing.T) {
		t.Run("kvm", innerKVM)
		t.Run("boot", innerBoot)
	})
}

func innerKVM(t *testing.T) {
	npt, err := os.ReadFile("/sys/module/kvm_amd/parameters/npt")
	if err != nil {
		t.Fatal(err)
	}
	if s := strings.TrimSpace(string(npt)); s != "Y" && s != "1" {
		t.Errorf("kvm_amd.npt = %s", s)
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// A guest under the inner KVM boots as one here does. Its serial line gives
// about a kilobyte a second, hence quiet and no truth program.
func innerBoot(t *testing.T) {
	g := labtest.Boot(t, lab.Config{
		Name: "inner", Kernel: labtest.Kernel(t, lab.Bookworm), Accel: "kvm",
		Memory: 256 * lab.MiB, Shared: true, QMP: true, KASLR: true, Append: "quiet",
	})
	kvm, err := g.HMP(t.Context(), "info kvm")
	if err != nil || !strings.Contains(kvm, "enabled") {
		t.Errorf("info kvm: %q, %v", kvm, err)
	}
	out, err := g.Run(t.Context(), "uname -r")
	if err != nil || strings.TrimSpace(out) != g.Config().Kernel.Release {
		t.Errorf("uname -r: %q, %v", out, err)
	}
}
