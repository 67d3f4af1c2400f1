package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
)

// Open opens the VM that target names: a PID, the path of a QMP socket (with a
// slash in it), or a name or UUID as QEMU's command line has it; a name that
// looks like a PID or a path is found when no VM is there by that. The error
// wraps hypervisor.ErrNotFound when there is none, and ErrAmbiguous when
// several have the name.
func (d *Driver) Open(ctx context.Context, target string) (hypervisor.VM, error) {
	vm, err := d.open(ctx, target)
	if err != nil {
		return nil, fmt.Errorf("open qemu VM %.256q: %w", target, err)
	}
	return vm, nil
}

func (d *Driver) open(ctx context.Context, target string) (*VM, error) {
	var vm *VM
	pid, err := strconv.Atoi(target)
	switch {
	case err == nil:
		vm, err = d.openPID(ctx, pid)
	case strings.Contains(target, "/"):
		if pid, err = pidOfSocket(ctx, target); err == nil {
			return d.openPID(ctx, pid)
		}
	default:
		err = hypervisor.ErrNotFound
	}
	if !errors.Is(err, hypervisor.ErrNotFound) {
		return vm, err
	}
	pid, nameErr := pidOfName(ctx, target)
	if errors.Is(nameErr, hypervisor.ErrNotFound) {
		return nil, err // says more than that there is no such name
	}
	if nameErr != nil {
		return nil, nameErr
	}
	return d.openPID(ctx, pid)
}

// pidOfName returns the one VM that has a name or UUID.
func pidOfName(ctx context.Context, name string) (int, error) {
	pids, err := qemuPIDs(ctx)
	if err != nil {
		return 0, err
	}
	var found []int
	for _, pid := range pids {
		p, err := proc.Open(pid)
		if err != nil {
			continue
		}
		cfg, err := readConfig(p)
		if err == nil && name != "" && (infoOf(p, cfg).Name == name || strings.EqualFold(cfg.UUID, name)) {
			found = append(found, pid)
		}
		_ = p.Close()
	}
	switch len(found) {
	case 0:
		return 0, hypervisor.ErrNotFound
	case 1:
		return found[0], nil
	}
	return 0, fmt.Errorf("%w: PIDs %v: open one by its PID", ErrAmbiguous, found)
}

func (d *Driver) openPID(ctx context.Context, pid int) (*VM, error) {
	p, err := proc.Open(pid)
	if err != nil {
		return nil, err
	}
	vm := &VM{log: d.log, timeout: d.timeout, noQMP: d.noQMP, p: p}
	if err := vm.setup(ctx); err != nil {
		return nil, errors.Join(err, vm.release())
	}
	return vm, nil
}

func (vm *VM) setup(ctx context.Context) error {
	var err error
	if vm.cfg, err = readConfig(vm.p); err != nil {
		return err
	}
	vm.info = infoOf(vm.p, vm.cfg)
	if err := checkGuestArch(vm.p); err != nil {
		return err
	}
	if vm.cfg.Encrypted() != "" {
		return &hypervisor.NotSupportedError{
			What: "the memory of an encrypted guest", Driver: DriverName,
			Remedy: "start the VM without -machine confidential-guest-support",
		}
	}
	if vm.mem, err = vm.p.OpenFile("mem", unix.O_RDONLY); err != nil {
		return err
	}
	kvm := vm.cfg.KVM
	if fds, err := vm.p.FDs(); err == nil {
		kvm = false
		for _, l := range fds {
			kvm = kvm || l == "anon_inode:kvm-vm"
		}
	}
	expect, cfgErr := layoutFromConfig(vm.cfg, kvm)
	l, qmpErr := vm.monitorLayout(ctx, expect)
	switch {
	case errors.Is(qmpErr, hypervisor.ErrGone) || errors.Is(qmpErr, errContradiction):
		return qmpErr
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case qmpErr != nil && expect == nil:
		return errors.Join(cfgErr, qmpErr)
	case qmpErr != nil:
		vm.log.Info("memory layout is from the command line", "pid", vm.p.PID, "reason", qmpErr)
		if vm.cfg.HotplugMemory() {
			vm.log.Warn("hot-pluggable memory is not read without QMP", "pid", vm.p.PID)
		}
		l = expect
	}
	vs, err := vm.p.Maps()
	if err != nil {
		return err
	}
	runs, err := locate(l, vs, vm.mem)
	if err != nil {
		return err
	}
	return vm.setLayout(l, runs)
}

// checkGuestArch refuses QEMUs that emulate other processors than x86.
func checkGuestArch(p *proc.Process) error {
	exe, err := p.Readlink("exe")
	if err != nil {
		return err
	}
	_, arch, ok := strings.Cut(path.Base(exe), "qemu-system-")
	if ok && !strings.HasPrefix(arch, "x86_64") && !strings.HasPrefix(arch, "i386") {
		return &hypervisor.NotSupportedError{
			What:   fmt.Sprintf("a guest of qemu-system-%.32s", arch),
			Driver: DriverName,
			Remedy: "only x86 guests can be looked into",
		}
	}
	return nil
}

// monitorLayout asks QEMU where RAM lies.
func (vm *VM) monitorLayout(ctx context.Context, expect *layout) (*layout, error) {
	if vm.noQMP {
		return nil, &hypervisor.NotSupportedError{What: "QMP", Driver: DriverName, Remedy: "do not set NoQMP"}
	}
	ctx, cancel := context.WithTimeout(ctx, vm.timeout)
	defer cancel()
	c, err := dial(ctx, vm.p, vm.cfg)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	v, err := inspect(ctx, c)
	if err != nil {
		return nil, err
	}
	if v.vcpus > 0 {
		vm.info.VCPUs = v.vcpus
	}
	vm.info.MemoryBytes = v.baseMemory
	for _, m := range v.dimms {
		vm.info.MemoryBytes += m.size
	}
	l, confirmed, err := layoutFromMonitor(v, expect)
	if err != nil {
		return nil, err
	}
	if !confirmed {
		vm.log.Warn("memory layout differs from what the command line says; QEMU's own is used", "pid", vm.p.PID)
	}
	return l, nil
}

// hostCPUVendor returns the CPUID vendor of this machine's processor.
func hostCPUVendor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return ""
	}
	defer f.Close()
	b := make([]byte, 4096)
	n, _ := f.Read(b)
	for line := range strings.Lines(string(b[:n])) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "vendor_id" {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// Info returns what is known of the VM. Its state is asked over QMP where that
// is there and free, and unknown otherwise.
func (vm *VM) Info() hypervisor.Info {
	info := vm.info
	ctx, cancel := context.WithTimeout(context.Background(), min(vm.timeout, infoTimeout))
	defer cancel()
	if s, err := vm.State(ctx); err == nil {
		info.State = s
	}
	return info
}

// infoTimeout bounds the question for the state in Info.
const infoTimeout = 500 * time.Millisecond

var _ hypervisor.Driver = (*Driver)(nil)
