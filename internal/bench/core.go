package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// corePromises are the figures that the core's own tests measure in the beds, by
// the name that they print.
var corePromises = map[string]figure{
	"boot":        {Name: "core: boot to userspace over QEMU's", Unit: "x", Limit: 0.7, AtMost: true},
	"cpu":         {Name: "core: a guest's work on its processor over QEMU's", Unit: "x", Limit: 1.02, AtMost: true},
	"memory":      {Name: "core: a guest's work on its memory over QEMU's", Unit: "x", Limit: 1.02, AtMost: true},
	"disk":        {Name: "core: sequential disk reads, time over QEMU's", Unit: "x", Limit: 1.0 / 0.9, AtMost: true},
	"net":         {Name: "core: TCP through a tap, time over QEMU's", Unit: "x", Limit: 1.0 / 0.9, AtMost: true},
	"netin":       {Name: "core: TCP through a tap into the guest, time over QEMU's", Unit: "x", Limit: 1.0 / 0.9, AtMost: true},
	"vmm-memory":  {Name: "core: memory of the VMM beyond the guest's", Unit: "MiB", Limit: 40, AtMost: true},
	"page-write":  {Name: "core: trapped page write over a port-I/O exit", Unit: "x", Limit: 2, AtMost: true},
	"int3-step":   {Name: "core: breakpoint with a step over a port-I/O exit", Unit: "x", Limit: 3, AtMost: true},
	"int3-nop":    {Name: "core: breakpoint on an entry NOP over a port-I/O exit", Unit: "x", Limit: 1.6, AtMost: true},
	"port-exit":   {Name: "core: port-I/O exit", Unit: "µs"},
	"uffd-write":  {Name: "core: page write by userfaultfd over a port-I/O exit", Unit: "x"},
	"page-no-ram": {Name: "core: trapped read over a port-I/O exit", Unit: "x"},

	"page-write-beside": {Name: "core: page write beside what is watched, over a port-I/O exit", Unit: "x"},
	"int3-push":         {Name: "core: breakpoint on what the engine does, over a port-I/O exit", Unit: "x"},
	"hardware-x":        {Name: "core: debug register, execution, over a port-I/O exit", Unit: "x"},
	"hardware-w":        {Name: "core: debug register, write, over a port-I/O exit", Unit: "x"},
	"msr-read":          {Name: "core: trapped MSR read over a port-I/O exit", Unit: "x"},
}

// coreFigures lets the core's tests measure inside the beds: against QEMU under
// nested paging, and what traps cost where virtual time is exact.
func coreFigures(ctx context.Context, o options, _ string) ([]figure, error) {
	k, err := lab.FetchKernel(ctx, lab.Bookworm, lab.Cloud)
	if err != nil {
		return nil, err
	}
	var all []figure
	for _, run := range []struct {
		pkg, test string
		cfg       lab.NestedConfig
	}{
		{"./hypervisor/kvm/vmm", "^TestFigures$", lab.NestedConfig{InnerKernel: k, GuestModules: []string{"virtio_pci", "virtio_blk", "virtio_net"}, Modules: []string{"tun"}}},
		{"./hypervisor/kvm/launch", "^TestProgram$/^Detached$", lab.NestedConfig{
			InnerKernel: k, GuestModules: []string{"virtio_pci", "virtio_blk", "virtio_rng"}, Programs: map[string]string{"vantage": o.vantage},
		}},
		{"./hypervisor/kvm/internal/trap", "^TestFigures$", lab.NestedConfig{Bed: lab.EPT, ClaimedClock: true, Memory: lab.GiB}},
	} {
		binary := filepath.Join(o.dir, "figures.test")
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, run.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w: %s", run.pkg, err, out)
		}
		run.cfg.Kernel, run.cfg.Binary, run.cfg.Timeout = k, binary, time.Hour
		run.cfg.Args, run.cfg.Env = []string{"-test.run=" + run.test}, []string{"VANTAGE_FIGURES=1"}
		r, err := nested(ctx, run.cfg)
		if err != nil {
			return nil, err
		}
		if !r.Passed {
			return nil, fmt.Errorf("%s: the figures' test failed:\n%s", run.pkg, r.Output)
		}
		all = append(all, coreLines(r.Output)...)
	}
	return all, nil
}

// nested runs a bed, again where it has ended by itself: QEMU's emulation of SVM
// now and then resets the outer guest for an inner one.
func nested(ctx context.Context, cfg lab.NestedConfig) (r *lab.NestedResult, err error) {
	for range 4 {
		var gone *lab.GuestError
		if r, err = lab.RunNested(ctx, cfg); !errors.As(err, &gone) || ctx.Err() != nil {
			break
		}
		fmt.Fprintln(os.Stderr, "bench: once more:", gone.Err)
	}
	return r, err
}

// coreLines reads what the tests print: BENCH NAME VALUE DETAIL.
func coreLines(text string) []figure {
	var fs []figure
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		words := strings.SplitN(strings.TrimSpace(s.Text()), " ", 4)
		if len(words) < 3 || words[0] != "BENCH" {
			continue
		}
		v, err := strconv.ParseFloat(words[2], 64)
		f, known := corePromises[words[1]]
		if err != nil || !known {
			continue
		}
		f.Value = v
		if len(words) > 3 {
			f.Detail = words[3]
		}
		fs = append(fs, f)
	}
	return fs
}
