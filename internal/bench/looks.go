package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func medianCPU(ss []sample) time.Duration {
	ds := make([]time.Duration, len(ss))
	for i, s := range ss {
		ds[i] = s.cpu
	}
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// lookFigures measures the CPU time of whole commands that look at the guest,
// with a profile that an earlier run has kept, and what their walks cost.
func lookFigures(ctx context.Context, o options, ram string) ([]figure, error) {
	cache, err := os.MkdirTemp(o.dir, "cache-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	commands := []string{"ps", "sockets", "files", "modules"}
	var runs []func() (sample, error)
	for _, c := range commands {
		runs = append(runs, func() (sample, error) {
			return command(ctx, []int{0, 3}, o.vantage, c, "image:"+ram, "--json", "--cache-dir", cache)
		})
	}
	ss, err := inTurn(2*o.runs, runs...)
	if err != nil {
		return nil, err
	}
	costs, err := walkCosts(ctx, ram)
	if err != nil {
		return nil, err
	}
	ps := medianCPU(ss[0])
	var out []figure
	for i, c := range commands {
		cpu, cost := medianCPU(ss[i]), costs[i]
		f := figure{
			Name: c + ", warm: CPU time over that of ps", Value: cpu.Seconds() / ps.Seconds(), Unit: "x", Limit: 3, AtMost: true,
			Detail: fmt.Sprintf("%.1f ms for %d objects (%s)", float64(cpu.Microseconds())/1e3, cost.objects, cost.what),
		}
		if i == 0 {
			f.Name, f.Value, f.Unit, f.Limit = "ps, warm: CPU time", float64(cpu.Microseconds())/1e3, "ms", 30
		}
		out = append(out, f, figure{
			Name: c + ": guest memory read", Value: cost.bytes / float64(cost.objects), Unit: "B/object", Limit: cost.maxBytes, AtMost: true,
			Detail: fmt.Sprintf("page tables included; %.1f allocations per object", cost.allocs/float64(cost.objects)),
		})
	}
	return out, nil
}

// counted is memory without views that counts what is read of it.
type counted struct {
	hypervisor.Memory
	bytes uint64
}

func (c *counted) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	c.bytes += uint64(len(p))
	return c.Memory.ReadPhys(p, gpa)
}

type walkCost struct {
	what          string
	objects       int
	bytes, allocs float64 // of the whole walk
	maxBytes      float64 // per object
}

// walkCosts counts what each walk reads and allocates, in the order of
// lookFigures' commands.
func walkCosts(ctx context.Context, ram string) (_ []walkCost, err error) {
	vm, err := image.New(image.Options{}).Open(ctx, ram)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	mem := &counted{Memory: vm}
	g, err := linux.Open(ctx, mem, linux.Options{})
	if err != nil {
		return nil, err
	}
	var out []walkCost
	for _, w := range []struct {
		what     string
		maxBytes float64
		list     func() (int, *introspect.Coverage, error)
	}{
		{"processes", 8 << 10, func() (int, *introspect.Coverage, error) {
			l, err := g.Processes(ctx, linux.ProcessOptions{})
			return len(l.Processes), l.Coverage, err
		}},
		{"sockets", 16 << 10, func() (int, *introspect.Coverage, error) {
			l, err := g.Sockets(ctx, linux.SocketOptions{})
			return len(l.Sockets), l.Coverage, err
		}},
		{"open files and programs", 4 << 10, func() (int, *introspect.Coverage, error) {
			l, err := g.Files(ctx, linux.FileOptions{})
			return len(l.Files), l.Coverage, err
		}},
		{"modules", 0, func() (int, *introspect.Coverage, error) {
			l, err := g.Modules(ctx)
			return len(l.Modules), l.Coverage, err
		}},
	} {
		var before, after runtime.MemStats
		c := walkCost{what: w.what, maxBytes: w.maxBytes}
		for range 2 { // the first looks facts up
			g.Flush()
			mem.bytes = 0
			runtime.ReadMemStats(&before)
			var cov *introspect.Coverage
			if c.objects, cov, err = w.list(); err != nil {
				return nil, fmt.Errorf("%s: %w", w.what, err)
			}
			if c.objects == 0 {
				return nil, fmt.Errorf("%s: none: %w", w.what, cov.Err())
			}
			runtime.ReadMemStats(&after)
			c.bytes, c.allocs = float64(mem.bytes), float64(after.Mallocs-before.Mallocs)
		}
		out = append(out, c)
	}
	return out, nil
}

// crashFigures compares with the crash utility and the kernel's debug package,
// where both can be had; else it says which is missing.
func crashFigures(ctx context.Context, o options, ram string) ([]figure, error) {
	vmlinux, why, err := debugKernel(ctx, ram)
	if err != nil {
		return nil, err
	}
	if why != "" {
		return []figure{{Name: "ps against crash: SKIPPED", Detail: why}}, nil
	}
	cache, err := os.MkdirTemp(o.dir, "cache-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	var out []figure
	// crash is given less to do than it takes to do the same: it walks the list of
	// tasks and prints their addresses, and no member of them.
	for _, c := range []struct{ ours, theirs string }{
		{"ps", "list task_struct.tasks -h init_task"},
		{"modules", "mod"},
	} {
		script := filepath.Join(o.dir, "crash-"+c.ours)
		if err := os.WriteFile(script, []byte(c.theirs+"\nquit\n"), 0o644); err != nil {
			return nil, err
		}
		ss, err := inTurn(1,
			func() (sample, error) {
				return command(ctx, []int{0}, o.vantage, c.ours, "image:"+coreOf(ram), "--json", "--cache-dir", cache)
			},
			func() (sample, error) {
				return command(ctx, []int{0}, "crash", "-s", vmlinux, coreOf(ram), "-i", script)
			},
		)
		if err != nil {
			return nil, err
		}
		out = append(out, figure{
			Name: c.ours + " against crash: speed, end to end", Value: medianRatio(ss[1], ss[0]), Unit: "x", Limit: 20,
			Detail: fmt.Sprintf("vantage %.3f s, crash %.1f s (%q)", medianWall(ss[0]).Seconds(), medianWall(ss[1]).Seconds(), c.theirs),
		})
	}
	return out, nil
}

// debugKernel returns the guest's kernel with debug information, out of Debian's
// package for it, or why there is none.
func debugKernel(ctx context.Context, ram string) (path, why string, err error) {
	if _, missing := exec.LookPath("crash"); missing != nil {
		return "", "no crash utility: apt-get install crash", nil //nolint:nilerr // a figure that cannot be had is told, not failed for
	}
	if _, missing := os.Stat(coreOf(ram)); missing != nil {
		return "", "no ELF core next to the RAM file: run without -reuse", nil //nolint:nilerr // as above
	}
	release, err := kernelRelease(ctx, ram)
	if err != nil {
		return "", "", err
	}
	path, err = lab.FetchDebugKernel(ctx, lab.Bookworm, release)
	if errors.Is(err, lab.ErrUnreachable) || errors.Is(err, lab.ErrMissing) {
		return "", err.Error(), nil
	}
	return path, "", err
}

func kernelRelease(ctx context.Context, ram string) (_ string, err error) {
	vm, err := image.New(image.Options{}).Open(ctx, ram)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	g, err := linux.Open(ctx, vm, linux.Options{})
	if err != nil {
		return "", err
	}
	return g.Kernel().Release, nil
}
