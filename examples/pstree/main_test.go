package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// The tree of a real guest's memory file is the guest's own.
func TestTree(t *testing.T) {
	g := labtest.Boot(t, lab.Config{
		Name: "pstree", Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 256 * lab.MiB, Shared: true, KASLR: true,
		Init: "sh -c 'sleep 1000001 & sh -c \"sleep 1000002; true\" & wait' &\n",
	})
	truth, err := g.Run(t.Context(), "ps -o pid,ppid,comm")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	ram, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(ram)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "guest.raw")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}

	var out bytes.Buffer
	if err := pstree(t.Context(), &out, file); err != nil {
		t.Fatal(err)
	}
	parents := map[int]int{} // of each process that was printed
	var above []int          // the line of ancestors of the last one
	for line := range strings.Lines(out.String()) {
		var pid int
		var comm string
		if _, err := fmt.Sscanf(line, "%d %q", &pid, &comm); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		if depth > len(above) {
			t.Fatalf("%q stands %d deep below %d", line, depth, len(above))
		}
		above = above[:depth]
		parents[pid] = 0
		if depth > 0 {
			parents[pid] = above[depth-1]
		}
		above = append(above, pid)
	}
	compared := 0
	for line := range strings.Lines(truth) {
		var pid, ppid int
		var comm string
		if n, _ := fmt.Sscan(line, &pid, &ppid, &comm); n < 3 || comm == "ps" || strings.HasPrefix(comm, "kworker") {
			continue // the heading, and what comes and goes
		}
		if got, ok := parents[pid]; !ok || got != ppid {
			t.Errorf("process %d (%s): parent %d, printed %v; the guest says %d", pid, comm, got, ok, ppid)
		}
		compared++
	}
	if compared < 20 || !strings.Contains(out.String(), "    ") {
		t.Errorf("%d processes compared:\n%s", compared, out.String())
	}
	if err := pstree(t.Context(), &out, "/dev/null"); err == nil {
		t.Error("no error for a file without a guest")
	}
}
