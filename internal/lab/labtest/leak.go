package labtest

import (
	"fmt"
	"io"
	"os"

	"go.uber.org/goleak"
)

// leaks tells w of goroutines, and of descriptors that were not open before, and
// returns the exit status.
func leaks(w io.Writer, before map[string]int) int {
	status := 0
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(w, err)
		status = 1
	}
	for name, n := range openFiles() {
		if n > before[name] {
			fmt.Fprintf(w, "labtest: %d descriptors of %q are left open\n", n-before[name], name)
			status = 1
		}
	}
	return status
}

// openFiles counts this process's descriptors by what they are of, those of the
// runtime's poller aside: it makes them once and keeps them.
func openFiles() map[string]int {
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	open := map[string]int{}
	for _, e := range es {
		name, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || name == "anon_inode:[eventpoll]" || name == "anon_inode:[eventfd]" {
			continue
		}
		open[name]++
	}
	return open
}
