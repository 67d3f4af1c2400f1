package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/launch"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/vmm"
)

// machineCommand is the hidden command that is a machine's process.
const machineCommand = "machine-process"

// runOptions are the flags of run as they are written.
type runOptions struct {
	cfg      vmm.Config
	memory   string
	disks    []string
	nets     []string
	console  string
	restore  string
	detach   bool
	noReboot bool
	grace    time.Duration
	sandbox  string
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run --kernel FILE",
		Short: "Run a virtual machine on our own core",
		Long: `Run a stock Linux kernel in a virtual machine of our own core, on KVM with
nested paging. The machine is a process of its own; all other commands see it as
they see any VM, and it can be trapped, saved and cloned.

The kernel is a bzImage (/boot/vmlinuz-…) or an ELF vmlinux with a PVH entry. One
that is compressed with LZ4, Zstandard or gzip is decompressed, and moved to a
random address, by the host, which is quicker; --guest-decompress leaves that to
the kernel's own code.
Disks are raw or qcow2 images or block devices; a format that is not given is told
by the image. Network cards are tap interfaces that exist already.

Without --detach the guest's console is this terminal: Ctrl-A x asks the guest to
power off, a second time stops it, Ctrl-A Ctrl-A types a Ctrl-A. SIGTERM does what
Ctrl-A x does. A guest that has not powered off after --grace is stopped. With
--detach the command returns when the guest runs.

With --restore a saved machine goes on; flags given with it replace what it was
saved with, as for a clone: another name, another copy of its disks.`,
		Example: `  vantage run --kernel /boot/vmlinuz --initrd initrd.img --append "console=ttyS0" --memory 1G
  vantage run --name web --kernel vmlinuz --disk root.qcow2 --disk data.raw,ro --net tap=tap0 --detach
  vantage run --restore /var/lib/vantage/web-clean --name web2 --detach`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.config(cmd); err != nil {
				return err
			}
			return a.runMachine(cmd.Context(), &o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.cfg.Name, "name", "", "the machine's name; vm-PID when not given")
	f.StringVar(&o.cfg.Kernel, "kernel", "", "the kernel to boot")
	f.StringVar(&o.cfg.Initrd, "initrd", "", "its initramfs")
	f.StringVar(&o.cfg.CommandLine, "append", "console=ttyS0", "its command line")
	f.BoolVar(&o.cfg.GuestDecompresses, "guest-decompress", false, "leave a compressed kernel to its own decompressor")
	f.StringVar(&o.memory, "memory", "512M", "guest memory: 512M, 2G")
	f.IntVar(&o.cfg.CPUs, "cpus", 1, "number of vCPUs")
	f.StringArrayVar(&o.disks, "disk", nil, "a disk: PATH[,ro][,format=raw|qcow2][,serial=TEXT]; can be given again")
	f.StringArrayVar(&o.nets, "net", nil, "a network card: tap=NAME[,mac=ADDRESS][,mtu=BYTES][,vhost=on|auto]; can be given again")
	f.StringVar(&o.console, "console", "stdio", "where the console is: stdio, none, file:PATH")
	f.BoolVar(&o.cfg.RNG, "rng", true, "a virtio random number generator")
	f.BoolVar(&o.cfg.Balloon, "balloon", true, "a virtio balloon, which gives free memory back to the host")
	f.Uint32Var(&o.cfg.VsockCID, "vsock-cid", 0, "a vsock device with this context ID (3 or more); needs vhost_vsock")
	f.StringVar(&o.restore, "restore", "", "go on from this saved machine")
	f.BoolVarP(&o.detach, "detach", "d", false, "return when the guest runs, and let it run on")
	f.BoolVar(&o.noReboot, "no-reboot", false, "end where the guest would reset")
	f.DurationVar(&o.grace, "grace", launch.DefaultGrace, "how long the guest may take to power off when asked")
	f.StringVar(&o.sandbox, "sandbox", "on", "on: the machine's process has no rights but its machine; off")
	f.BoolVar(&o.cfg.NoNestedPaging, "allow-slow-kvm", false, "run on a KVM without nested paging, too")
	_ = f.MarkHidden("allow-slow-kvm")
	completeFlag(cmd, "console", "stdio", "none", "file:")
	completeFlag(cmd, "sandbox", "on", "off")
	return cmd
}

// config makes o.cfg out of the flags.
func (o *runOptions) config(cmd *cobra.Command) error {
	given := func(flag string) bool { return cmd.Flags().Changed(flag) }
	memory, err := parseBytes(o.memory)
	if err != nil {
		return fmt.Errorf("--memory: %w", err)
	}
	o.cfg.Memory = memory
	for _, d := range o.disks {
		c, err := parseDisk(d)
		if err != nil {
			return fmt.Errorf("--disk %s: %w", d, err)
		}
		o.cfg.Disks = append(o.cfg.Disks, c)
	}
	for _, n := range o.nets {
		c, err := parseNet(n)
		if err != nil {
			return fmt.Errorf("--net %s: %w", n, err)
		}
		o.cfg.Nets = append(o.cfg.Nets, c)
	}
	if o.console != "stdio" && o.console != "none" && !strings.HasPrefix(o.console, "file:") {
		return fmt.Errorf("--console %s: want stdio, none or file:PATH", o.console)
	}
	if o.sandbox != "on" && o.sandbox != "off" {
		return fmt.Errorf("--sandbox %s: want on or off", o.sandbox)
	}
	if o.console == "stdio" && o.detach {
		if given("console") {
			return errors.New("--console stdio with --detach: this terminal is not the machine's then: use file:PATH")
		}
		o.console = "none"
	}
	if o.restore != "" {
		saved, err := launch.SavedConfig(o.restore)
		if err != nil {
			return fmt.Errorf("--restore: %w", err)
		}
		for flag, apply := range map[string]func(){
			"name": func() { saved.Name = o.cfg.Name }, "kernel": func() { saved.Kernel = o.cfg.Kernel },
			"initrd": func() { saved.Initrd = o.cfg.Initrd }, "append": func() { saved.CommandLine = o.cfg.CommandLine },
			"disk": func() { saved.Disks = o.cfg.Disks }, "net": func() { saved.Nets = o.cfg.Nets },
		} {
			if given(flag) {
				apply()
			}
		}
		for _, flag := range []string{"memory", "cpus", "rng", "balloon", "vsock-cid"} {
			if given(flag) {
				return fmt.Errorf("--%s with --restore: the guest knows what it was saved with", flag)
			}
		}
		o.cfg = *saved
	}
	if o.cfg.Name == "" {
		o.cfg.Name = fmt.Sprintf("vm-%d", os.Getpid())
	}
	// The machine's process is in another folder.
	for _, p := range []*string{&o.cfg.Kernel, &o.cfg.Initrd} {
		if *p, err = absolute(*p); err != nil {
			return err
		}
	}
	for i := range o.cfg.Disks {
		if o.cfg.Disks[i].Path, err = absolute(o.cfg.Disks[i].Path); err != nil {
			return err
		}
	}
	return o.cfg.Check()
}

func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	return filepath.Abs(path)
}

// parseBytes reads 512M, 2G, 1048576.
func parseBytes(s string) (uint64, error) {
	shift := map[byte]uint{'K': 10, 'M': 20, 'G': 30, 'T': 40}
	digits, unit := s, uint(0)
	if n := len(s); n > 0 {
		if u, ok := shift[strings.ToUpper(s[n-1:])[0]]; ok {
			digits, unit = s[:n-1], u
		}
	}
	v, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || v<<unit>>unit != v {
		return 0, fmt.Errorf("%q is no size: want 512M, 2G", s)
	}
	return v << unit, nil
}

// parseDisk reads PATH[,ro][,format=…][,serial=…].
func parseDisk(s string) (c vmm.DiskConfig, err error) {
	path, options, _ := strings.Cut(s, ",")
	c.Path = path
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "":
		case "ro":
			c.ReadOnly = true
		case "format":
			c.Format = value
		case "serial":
			c.Serial = value
		default:
			return c, fmt.Errorf("%q: want ro, format=raw, format=qcow2 or serial=TEXT", option)
		}
	}
	return c, nil
}

// parseNet reads tap=NAME[,mac=…][,mtu=…][,vhost=…].
func parseNet(s string) (c vmm.NetConfig, err error) {
	for option := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(option, "=")
		switch {
		case key == "tap":
			c.Tap = value
		case key == "mac":
			c.MAC = value
		case key == "vhost":
			c.VHost = vmm.Vhost(value)
		case key == "mtu" && ok:
			if c.MTU, err = strconv.Atoi(value); err != nil {
				return c, fmt.Errorf("%q: want a number of bytes", option)
			}
		default:
			return c, fmt.Errorf("%q: want tap=NAME, mac=ADDRESS, mtu=BYTES or vhost=on", option)
		}
	}
	return c, nil
}

// machineProcessCommand is a machine's process: launch.Start starts it.
func (a *app) machineProcessCommand() *cobra.Command {
	return &cobra.Command{
		Use:     machineCommand,
		Hidden:  true,
		Short:   "Be the process of a machine",
		Long:    "Be the process of a machine that 'vantage run' starts. It is not for people.",
		Example: `  vantage run --kernel /boot/vmlinuz`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if code := launch.Main(); code != 0 {
				return &exitError{code: code}
			}
			return nil
		},
	}
}

// runMachine starts the machine and, unless it is detached, stays with it.
func (a *app) runMachine(ctx context.Context, o *runOptions) (err error) {
	lo := launch.Options{
		Config: o.cfg, Restore: o.restore, Command: []string{"/proc/self/exe", machineCommand},
		Detach: o.detach, NoSandbox: o.sandbox == "off", NoReboot: o.noReboot, Grace: o.grace, LogLevel: a.logLevel,
		Events: a.machineEvent,
	}
	if !o.detach {
		lo.Log = os.Stderr
	}
	t, err := a.openConsole(o, &lo)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	p, err := launch.Start(ctx, lo)
	if err != nil {
		return fmt.Errorf("run %s: %w", o.cfg.Name, err)
	}
	if o.detach {
		defer p.Release()
		if a.json {
			return a.printJSON(struct {
				Name string `json:"name"`
				URI  string `json:"uri"`
				PID  int    `json:"pid"`
			}{o.cfg.Name, "kvm:" + o.cfg.Name, p.PID()})
		}
		fmt.Fprintf(a.stdout, "%s runs (pid %d)\n", o.cfg.Name, p.PID())
		return nil
	}
	t.follow(ctx, p)
	out := p.Wait()
	if out.Kind == vmm.EventFailed {
		return fmt.Errorf("%s failed: %w", o.cfg.Name, out.Err)
	}
	return nil
}

// machineEvent tells what happens to a machine that runs here.
func (a *app) machineEvent(e vmm.Event) {
	if a.json {
		_ = a.printJSONErr(e)
		return
	}
	if e.Kind == vmm.EventPowerOff || e.Kind == vmm.EventStopped {
		return // the command's end says so
	}
	detail := ""
	if e.Detail != "" {
		detail = ": " + e.Detail
	}
	fmt.Fprintf(a.stderr, "vantage: the guest: %s%s\r\n", e.Kind, escapeLines(detail))
}
