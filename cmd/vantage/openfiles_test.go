package main

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// The files and the memory of a guest's first process, by the commands.
func TestFilesAndMaps(t *testing.T) {
	g := labtest.Boot(t, lab.Config{
		Name: "cmdfiles", Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 256 * lab.MiB, Shared: true, KASLR: true,
	})
	for _, c := range []struct {
		args []string
		key  string
	}{{[]string{"files", "--pid", "1"}, "fd"}, {[]string{"maps", "--pid", "1"}, "modified_exec"}} {
		args := append(slices.Clone(c.args), g.Name())
		r := vantage(t, append(args, "--json")...)
		objs := objects(t, r.stdout)
		if r.status != exitOK || len(objs) == 0 {
			t.Fatalf("%v: status %d, %d objects: %s", args, r.status, len(objs), r.stderr)
		}
		exe := false
		for _, o := range objs {
			if _, ok := o[c.key]; !ok || o["pid"] != 1.0 {
				t.Errorf("%v: %v", args, o)
			}
			exe = exe || strings.HasSuffix(fmt.Sprint(o["path"]), "/busybox")
		}
		if !exe {
			t.Errorf("%v: no program: %s", args, r.stdout)
		}
		r = vantage(t, args...)
		t.Logf("%s", r.stdout)
		if r.status != exitOK || !strings.Contains(r.stdout, "/busybox") {
			t.Errorf("%v: status %d: %s%s", args, r.status, r.stdout, r.stderr)
		}
		args = append(args[:1:1], "--pid", "999999", g.Name())
		if r := vantage(t, args...); r.status != exitFailed || !strings.Contains(r.stderr, "999999") {
			t.Errorf("%v: status %d: %s", args, r.status, r.stderr)
		}
	}
}
