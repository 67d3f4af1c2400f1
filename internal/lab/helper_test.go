package lab_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// openRAM maps a guest's shared memory for the test's time.
func openRAM(t *testing.T, g *lab.Guest) []byte {
	t.Helper()
	path, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, int(g.Config().Memory), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			t.Error(err)
		}
	})
	return b
}
