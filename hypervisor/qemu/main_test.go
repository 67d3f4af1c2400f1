package qemu_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	if os.Getenv(nobodyEnv) != "" {
		os.Exit(asNobody())
	}
	before := openFDs()
	status := labtest.Run(m)
	if status == 0 {
		if after := openFDs(); after > before {
			fmt.Fprintf(os.Stderr, "%d file descriptors before the tests, %d after\n", before, after)
			status = 1
		}
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}

// openFDs counts this process's descriptors, those of the runtime's poller
// aside: it makes them once and keeps them.
func openFDs() int {
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range es {
		if l, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && l != "anon_inode:[eventpoll]" && l != "anon_inode:[eventfd]" {
			n++
		}
	}
	return n
}
