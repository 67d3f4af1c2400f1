package lab_test

import (
	"os"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// In a guest whose KVM has EPT.
func TestEPT(t *testing.T) {
	labtest.NestedGroup(t, lab.NestedConfig{Bed: lab.EPT, Memory: 768 * lab.MiB}, func(t *testing.T) {
		t.Run("kvm", func(t *testing.T) {
			ept, err := os.ReadFile("/sys/module/kvm_intel/parameters/ept")
			if err != nil || strings.TrimSpace(string(ept)) != "Y" {
				t.Errorf("kvm_intel.ept = %q, %v", ept, err)
			}
			f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		})
	})
}
