package qemu

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/cmdline"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
)

const (
	// listTimeout bounds the question for a VM's state in List.
	listTimeout = 300 * time.Millisecond
	// listParallel is how many VMs List asks at a time.
	listParallel = 8
)

// List returns the QEMU VMs of this host, sorted by name and PID. A VM whose
// monitor is absent, busy or slow has StateUnknown.
func (d *Driver) List(ctx context.Context) ([]hypervisor.Info, error) {
	pids, err := qemuPIDs(ctx)
	if err != nil {
		return nil, err
	}
	infos := make([]hypervisor.Info, len(pids))
	errs := make([]error, len(pids))
	sem := make(chan struct{}, listParallel)
	var wg sync.WaitGroup
	for i, pid := range pids {
		sem <- struct{}{}
		wg.Go(func() {
			defer func() { <-sem }()
			infos[i], errs[i] = d.look(ctx, pid)
		})
	}
	wg.Wait()
	out := infos[:0]
	for i, info := range infos {
		if errs[i] == nil {
			out = append(out, info)
		} else if errors.Is(errs[i], hypervisor.ErrGone) || errors.Is(errs[i], hypervisor.ErrNotFound) {
			errs[i] = nil // it ended while we looked
		}
	}
	slices.SortFunc(out, func(a, b hypervisor.Info) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.PID, b.PID))
	})
	return out, errors.Join(append(errs, ctx.Err())...)
}

// look tells what can be told of a VM without opening it.
func (d *Driver) look(ctx context.Context, pid int) (hypervisor.Info, error) {
	p, err := proc.Open(pid)
	if err != nil {
		return hypervisor.Info{}, err
	}
	defer func() { _ = p.Close() }()
	cfg, err := readConfig(p)
	if err != nil {
		return hypervisor.Info{}, err
	}
	info := infoOf(p, cfg)
	if d.noQMP {
		return info, nil
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	c, err := dial(ctx, p, cfg)
	if err != nil {
		d.log.Debug("state of VM is not known", "pid", pid, "error", err)
		return info, nil
	}
	defer func() { _ = c.Close() }()
	if s, err := queryState(ctx, c); err == nil {
		info.State = s
	}
	return info, nil
}

func infoOf(p *proc.Process, cfg *cmdline.Config) hypervisor.Info {
	name := cfg.Name
	if name == "" {
		name = "qemu-" + strconv.Itoa(p.PID)
	}
	return hypervisor.Info{
		Name:        name,
		URI:         DriverName + ":" + strconv.Itoa(p.PID),
		Driver:      DriverName,
		State:       hypervisor.StateUnknown,
		MemoryBytes: cfg.MemoryBytes(),
		VCPUs:       cfg.CPUs,
		PID:         p.PID,
	}
}

// qemuPIDs returns the processes that run QEMU, in order.
func qemuPIDs(ctx context.Context) ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(n)
		if err != nil || !isQEMU("/proc/"+n) {
			continue
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}

// isQEMU reports whether the process at /proc/PID runs QEMU. Another user's exe
// link cannot be read; then the program's name must do.
func isQEMU(dir string) bool {
	exe, err := os.Readlink(dir + "/exe")
	if err == nil {
		return qemuName(exe, dir)
	}
	if !errors.Is(err, os.ErrPermission) {
		return false // a kernel thread, a zombie, or gone
	}
	comm, err := os.ReadFile(dir + "/comm")
	if err != nil || !strings.HasPrefix(string(comm), "qemu-") && string(comm) != "kvm\n" {
		return false
	}
	arg0, _, _ := strings.Cut(readHead(dir+"/cmdline"), "\x00")
	return qemuName(arg0, dir)
}

// qemuName reports whether an executable's path is QEMU's. An upgraded binary
// is " (deleted)"; a short name that others might have must be borne out by the
// arguments.
func qemuName(exe, dir string) bool {
	base := path.Base(strings.TrimSuffix(exe, " (deleted)"))
	switch {
	case strings.HasPrefix(strings.TrimPrefix(base, "."), "qemu-system-"), base == "qemu-kvm":
		return true
	case base == "kvm", base == "qemu", strings.HasPrefix(base, "qemu-kvm"):
		args := proc.SplitCmdline([]byte(readHead(dir + "/cmdline")))
		return slices.ContainsFunc(args, func(a string) bool {
			switch strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-") {
			case "machine", "M", "m", "smp", "drive", "device", "nodefaults":
				return strings.HasPrefix(a, "-")
			}
			return false
		})
	}
	return false
}

func readHead(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	n, _ := f.Read(b)
	return string(b[:n])
}

// readConfig reads a process's command line. It returns an error that wraps
// hypervisor.ErrNotFound when the process does not run QEMU.
func readConfig(p *proc.Process) (*cmdline.Config, error) {
	dir := "/proc/" + strconv.Itoa(p.PID)
	ok := isQEMU(dir)
	if err := p.CheckNow(); err != nil {
		return nil, err
	}
	if !ok {
		return nil, fmt.Errorf("pid %d is not a QEMU process: %w", p.PID, hypervisor.ErrNotFound)
	}
	args, err := p.Cmdline(cmdline.MaxBytes)
	if err != nil {
		return nil, err
	}
	if len(args) > 0 {
		args = args[1:]
	}
	return cmdline.Parse(args, func(name string) ([]byte, error) { return readInside(p, name) }), nil
}

// readInside reads a file as the process would: relative to its working
// directory, in its mount namespace. Only regular files: the name is the
// starter's, and a FIFO or a device must not hold us up.
func readInside(p *proc.Process, name string) ([]byte, error) {
	name = inside(name)
	f, err := p.OpenFile(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%.256q: not a regular file", name)
	}
	b := make([]byte, cmdline.MaxBytes)
	n, err := f.Read(b)
	if n == 0 && err != nil {
		return nil, err
	}
	return b[:n], nil
}

// inside returns where below /proc/PID the process sees name.
func inside(name string) string {
	if path.IsAbs(name) {
		return "root" + path.Clean(name)
	}
	return "cwd/" + name
}
