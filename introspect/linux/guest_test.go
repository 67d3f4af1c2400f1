package linux

import (
	"fmt"
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	driver "github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// What is said of real guests is compared with their own word, field by field, by
// the tests of package node: over all kernels, drivers and layouts of memory.

func TestMain(m *testing.M) {
	status := labtest.Run(m)
	// What was compiled for the guests.
	if err := os.RemoveAll(hooksDir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = max(status, 1)
	}
	os.Exit(status)
}

// bootTruth returns the shared guest of a suite, which says what it is.
func bootTruth(t testing.TB, suite lab.Suite) *lab.Guest {
	t.Helper()
	return labtest.Shared(t, lab.Config{
		Name: "linux-" + string(suite), Kernel: labtest.Kernel(t, suite),
		Shared: true, KASLR: true, Program: true,
	})
}

// liveRAM is a running guest's memory.
type liveRAM struct{ hypervisor.VM }

func (liveRAM) IsLive() bool { return true }

// MapPhys passes the image's own views on.
func (m liveRAM) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	return m.VM.(hypervisor.Mapper).MapPhys(gpa, limit)
}

// openRAM opens the memory of a guest that runs. Its RAM is below the hole, so a
// byte's offset in the file is its physical address.
func openRAM(t testing.TB, g *lab.Guest) hypervisor.VM {
	t.Helper()
	file, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	vm, err := driver.New(driver.Options{}).Open(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func openLive(t testing.TB, g *lab.Guest) *Guest {
	t.Helper()
	guest, err := Open(t.Context(), liveRAM{openRAM(t, g)}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return guest
}
