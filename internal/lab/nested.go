package lab

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

// EnvNested is set to 1 in the environment of a program that RunNested runs.
const EnvNested = "VANTAGE_LAB_NESTED"

// NestedConfig says what RunNested runs. Only Kernel and Binary are required.
type NestedConfig struct {
	Bed Bed // NPT when empty
	// Kernel is that of the outer guest: a cloud kernel with modules kvm and
	// kvm-amd. What KVM can do is what this kernel can do.
	Kernel *Kernel
	// Binary is a static test binary (CGO_ENABLED=0 go test -c), and Args its
	// arguments besides -test.v.
	Binary string
	Args   []string
	Env    []string // more variables, "NAME=value"

	// QEMU puts this machine's qemu-system-x86_64 into the guest, with its
	// libraries and firmware.
	QEMU bool
	// InnerKernel puts a kernel into the guest's cache, and the truth program
	// too: there FetchKernel and Boot (with Config.Accel "kvm") work as they do
	// here, for this kernel. It implies QEMU (on bed EPT there is none: it is slow). Each byte on the inner guest's
	// serial line costs many nested exits, about a kilobyte goes a second: boot
	// it with Append "quiet", and let it say little (no Config.Program).
	InnerKernel *Kernel
	// MoreKernels are further ones for that cache.
	MoreKernels []*Kernel
	// GuestModules are more modules of these kernels for that cache, where
	// Kernel.Modules finds them.
	GuestModules []string
	// Files adds files to the outer guest.
	Files []File
	// Programs adds programs of this machine with the libraries that they are
	// linked with: /usr/bin/NAME there, by their path here.
	Programs map[string]string
	// Modules are more modules for the outer guest; KVM's are loaded anyway.
	Modules []string

	Memory uint64 // of the outer guest in bytes; 3 GiB when zero
	CPUs   int    // of the outer guest; 2 when zero, always 1 on bed EPT

	Timeout time.Duration // for all of it; 10 minutes when zero

	// ClaimedClock leaves a guest on bed EPT the clock that its processor claims to
	// have: 3.5 GHz, where instructions are counted at 100 MHz. Delays take 35 times
	// as long; but what runs by timers (Go's own monitor every 20 µs, the scheduler's
	// tick) comes as seldom as on a real processor between what is measured.
	ClaimedClock bool

	// Tries is how often labtest.NestedGroup tries what fails, in a new outer guest;
	// once when zero. QEMU 7.2's emulation of SVM loses an exit now and then, some one
	// in 100,000: an inner guest then hangs or resets, and a group that boots a dozen
	// stock kernels would fail by that alone. Each failure is in the test's log.
	Tries int
}

// NestedResult is what a nested run gave.
type NestedResult struct {
	Tests   []NestedTest // in the order in which they ended
	Passed  bool         // the binary ended with status 0
	Output  string       // all that the binary printed
	Console string       // all that the outer guest printed
}

// RunNested boots a guest under QEMU's emulation of an AMD processor with
// nested paging (see Bed for the other one), loads KVM in it, and runs a test binary there: in that guest
// /dev/kvm is real KVM with NPT. The outer boot takes some 6 seconds, that of a
// guest under the inner KVM some 20.
//
// In the guest the binary runs as root in /root, with /tmp and /dev/shm, all of
// busybox in PATH, and EnvNested=1; CI is passed on. A failing test is no
// error: see NestedResult. The error is a *GuestError with the outer console's
// tail when the guest did not come up or the binary did not end in time.
//
// Tests use it through labtest.NestedGroup.
func RunNested(ctx context.Context, cfg NestedConfig) (*NestedResult, error) {
	if cfg.Memory == 0 {
		cfg.Memory = 3 * GiB
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 2
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.Timeout, fmt.Errorf("not done after %v", cfg.Timeout))
	defer cancel()
	if cfg.Bed == EPT {
		return runEPT(ctx, cfg)
	}
	files, err := nestedFiles(ctx, cfg)
	if err != nil {
		return nil, err
	}
	g, err := Boot(ctx, Config{
		Name:    "nested",
		Kernel:  cfg.Kernel,
		Memory:  cfg.Memory,
		CPUs:    cfg.CPUs,
		Accel:   "tcg,thread=multi",
		CPU:     "EPYC,+svm,+npt,-cx16",
		Modules: append([]string{"kvm-amd"}, cfg.Modules...),
		Files:   files,
		Init:    nestedPrepare,
		Timeout: cfg.Timeout,
	})
	if err != nil {
		return nil, err
	}
	defer g.Close() //nolint:errcheck // what matters is the result; the guest is killed
	out, status, err := g.exchange(ctx, encodeScript(cfg.command()))
	if err != nil {
		return nil, err
	}
	return &NestedResult{
		Tests:   parseTestOutput(out),
		Passed:  status == "0",
		Output:  out,
		Console: g.Console(),
	}, nil
}

// nestedPrepare is what the outer guest does before it runs the binary.
const nestedPrepare = "mkdir -p /dev/shm /root && mount -t tmpfs tmpfs /dev/shm && cd /root\n" +
	"[ -e /dev/kvm ] || echo 'no /dev/kvm'\n"

// command is the line of shell that runs the binary.
func (c NestedConfig) command() string {
	words := []string{"env", "PATH=/bin:/usr/bin", "TMPDIR=/tmp", "GOTRACEBACK=all",
		EnvNested + "=1", "VANTAGE_CACHE=/lab/cache"}
	if ci, ok := os.LookupEnv("CI"); ok {
		words = append(words, "CI="+ci)
	}
	words = append(words, c.Env...)
	words = append(words, "/lab/binary", "-test.v")
	words = append(words, c.Args...)
	for i, w := range words {
		words[i] = shellQuote(w)
	}
	return strings.Join(words, " ") + " 2>&1"
}

// nestedFiles collects what the outer guest needs besides busybox.
func nestedFiles(ctx context.Context, cfg NestedConfig) ([]File, error) {
	files := append([]File{{Path: "/lab/binary", Mode: 0o755, Host: cfg.Binary}}, cfg.Files...)
	for name, host := range cfg.Programs {
		p, err := programFiles(ctx, host, path.Join("/usr/bin", name))
		if err != nil {
			return nil, err
		}
		files = append(files, p...)
	}
	if cfg.Bed != EPT && (cfg.QEMU || cfg.InnerKernel != nil) {
		q, err := qemuFiles(ctx)
		if err != nil {
			return nil, err
		}
		files = append(files, q...)
	}
	if cfg.InnerKernel != nil {
		for _, k := range append([]*Kernel{cfg.InnerKernel}, cfg.MoreKernels...) {
			k, err := innerKernelFiles(ctx, k, cfg.GuestModules)
			if err != nil {
				return nil, err
			}
			files = append(files, k...)
		}
	}
	return files, nil
}

// innerKernelFiles returns a cache, as CacheDir describes it, with one kernel.
func innerKernelFiles(ctx context.Context, k *Kernel, modules []string) ([]File, error) {
	const cache = "/lab/cache/lab"
	dir := path.Join(cache, "kernels", string(k.Suite)+"-"+string(k.Flavour))
	inner := *k
	inner.Image, inner.SystemMap, inner.Config, inner.ModulesDir = "vmlinuz", "System.map", "config", "modules"
	meta, err := inner.meta()
	if err != nil {
		return nil, err
	}
	files := []File{
		{Path: path.Join(dir, kernelMeta), Data: meta},
		{Path: path.Join(dir, "vmlinuz"), Host: k.Image},
		{Path: path.Join(dir, "System.map"), Data: []byte("see the kernel's own\n")},
		{Path: path.Join(dir, "config"), Host: k.Config},
		{Path: path.Join(dir, "modules", builtinList), Host: filepath.Join(k.ModulesDir, builtinList)},
	}
	mods, err := k.Modules(ctx, append(TruthModules(), modules...)...)
	if err != nil {
		return nil, err
	}
	for _, m := range mods {
		files = append(files, File{Path: path.Join(dir, "modules", m.Name+".ko"), Host: m.Path})
	}
	truth, err := buildTruth(ctx)
	if err != nil {
		return nil, err
	}
	return append(files, File{Path: path.Join(cache, "programs", filepath.Base(truth)), Mode: 0o755, Host: truth}), nil
}
