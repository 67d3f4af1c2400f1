package vmm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// console keeps what a guest prints, and lets a test wait for it.
type console struct {
	mu   sync.Mutex
	cond sync.Cond
	text strings.Builder
}

func newConsole() *console {
	c := &console{}
	c.cond.L = &c.mu
	return c
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cond.Broadcast()
	return c.text.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// wait returns when the guest has printed text n times.
func (c *console) wait(t *testing.T, text string, n int, most time.Duration) {
	t.Helper()
	late := false
	timer := time.AfterFunc(most, func() {
		c.mu.Lock()
		late = true
		c.mu.Unlock()
		c.cond.Broadcast()
	})
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for strings.Count(c.text.String(), text) < n && !late {
		c.cond.Wait()
	}
	if late {
		t.Fatalf("the guest has not printed %q %d times in %v; its console:\n%s", text, n, most, c.text.String())
	}
}

// ended returns how m ended, which it is about to.
func ended(t *testing.T, m *Machine, c *console) Outcome {
	t.Helper()
	select {
	case <-m.Done():
		return m.Wait()
	case <-time.After(bootTime):
		t.Fatalf("the machine has not ended in %v; its console:\n%s", bootTime, c)
		return Outcome{}
	}
}

const ready = "VANTAGE-READY"

// initramfs has busybox, the modules, and an /init that does the usual mounts,
// script, and then sleeps.
func initramfs(t *testing.T, k *lab.Kernel, script string, modules ...string) string {
	t.Helper()
	var fs lab.Initramfs
	if err := fs.Busybox(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"dev", "proc", "sys", "tmp", "mnt"} {
		fs.Mkdir(d)
	}
	fs.Device("dev/console", 5, 1)
	load := ""
	if len(modules) > 0 {
		mods, err := k.Modules(t.Context(), modules...)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range mods {
			fs.HostFile("lib/modules/"+m.Name+".ko", 0o644, m.Path)
			load += "insmod /lib/modules/" + m.Name + ".ko\n"
		}
	}
	fs.File("init", 0o755, fmt.Appendf(nil, `#!/bin/sh
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
%s
%s
while :; do sleep 1000; done
`, load, script))
	path := filepath.Join(t.TempDir(), "initramfs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fs.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	return path
}

// machine makes and starts a machine that is closed at the end of the test.
func machine(t *testing.T, cfg Config, opt Options) (*Machine, *console) {
	t.Helper()
	c := newConsole()
	opt.Console = c
	if cfg.Name == "" {
		cfg.Name = "test"
	}
	res, err := Open(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(cfg, res, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the guest's console:\n%s", c)
		}
	})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return m, c
}

func TestUnderNPT(t *testing.T) {
	k, newer := labtest.Kernel(t, lab.Bookworm), labtest.Kernel(t, lab.Trixie)
	cfg := lab.NestedConfig{Timeout: 12 * time.Minute, Tries: 2, InnerKernel: k, MoreKernels: []*lab.Kernel{newer}, GuestModules: guestModules, Modules: []string{"tun"}}
	const elf = "/lab/vmlinux"
	if !labtest.InsideNested() {
		cfg.Files = append(cfg.Files, lab.File{Path: elf, Host: vmlinux(t, k)})
	}
	labtest.NestedGroup(t, cfg, func(t *testing.T) {
		t.Run("Boot", func(t *testing.T) { testBoot(t, Config{Kernel: k.Image, CPUs: 1}, k) })
		t.Run("BootSMP", func(t *testing.T) { testBoot(t, Config{Kernel: k.Image, CPUs: 4}, k) })
		t.Run("BootNewer", func(t *testing.T) { testBoot(t, Config{Kernel: newer.Image, CPUs: 4}, newer) })
		t.Run("BootDecompressor", func(t *testing.T) {
			testBoot(t, Config{Kernel: newer.Image, CPUs: 1, GuestDecompresses: true}, newer)
		})
		t.Run("BootPVH", func(t *testing.T) { testBoot(t, Config{Kernel: elf, CPUs: 2}, k) })
		t.Run("Disk", func(t *testing.T) { testDisk(t, k, 1) })
		t.Run("DiskNewerSMP", func(t *testing.T) { testDisk(t, newer, 4) })
		t.Run("Net", func(t *testing.T) { testNet(t, k, 1) })
		t.Run("NetNewerSMP", func(t *testing.T) { testNet(t, newer, 4) })
		t.Run("Balloon", func(t *testing.T) { testBalloon(t, k) })
		t.Run("Save", func(t *testing.T) { testSave(t, k, 2) })
		t.Run("RebootAndReset", func(t *testing.T) { testReboot(t, k) })
		t.Run("Panic", func(t *testing.T) { testPanic(t, k) })
		t.Run("PowerButton", func(t *testing.T) { testPowerButton(t, k) })
		t.Run("Pause", func(t *testing.T) { testPause(t, k) })
	})
}

// guestModules are what the tests' guests load.
var guestModules = []string{"pvpanic-mmio", "button", "evdev", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "virtio_balloon", "virtio_console"}

// kernelLine is quiet: a byte on the serial line is an exit, and the emulated
// processor takes long for each.
const kernelLine = "console=ttyS0 panic=-1 no_timer_check quiet"

const bootTime = 90 * time.Second

func testBoot(t *testing.T, cfg Config, k *lab.Kernel) {
	cfg.Memory, cfg.CommandLine = 512<<20, kernelLine
	cfg.Initrd = initramfs(t, k, "echo cpus=$(nproc); dmesg | grep -E 'ACPI.*(rror|arn|BUG)|Firmware Bug'; cat /proc/cpuinfo | grep -c hypervisor;"+
		"cat /sys/devices/system/clocksource/clocksource0/current_clocksource; echo "+ready+"; poweroff -f")
	start := time.Now()
	m, c := machine(t, cfg, Options{})
	c.wait(t, ready, 1, bootTime)
	t.Logf("userspace after %v, %d exits", time.Since(start), m.vm.VCPUs()[0].Exits())
	if out := ended(t, m, c); out.Kind != EventPowerOff {
		t.Errorf("ended by %+v", out)
	}
	s := strings.ReplaceAll(c.String(), "\r", "")
	if !strings.Contains(s, fmt.Sprintf("cpus=%d\n%d\nkvm-clock\n", cfg.CPUs, cfg.CPUs)) {
		t.Errorf("processors, clock or firmware complaints:\n%s", s)
	}
}

func testReboot(t *testing.T, k *lab.Kernel) {
	events := make(chan Event, 16)
	m, c := machine(t, Config{
		Memory: 256 << 20, CPUs: 2, Kernel: k.Image, CommandLine: kernelLine,
		Initrd: initramfs(t, k, "echo "+ready+"; read x; reboot -f"),
	}, Options{Events: func(e Event) { events <- e }})
	c.wait(t, ready, 1, bootTime)
	m.Type([]byte("\n")) // reboot -f
	c.wait(t, ready, 2, bootTime)
	if err := m.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.wait(t, ready, 3, bootTime)
	m.Stop()
	if out := ended(t, m, c); out.Kind != EventStopped {
		t.Errorf("ended by %+v", out)
	}
	for _, want := range []EventKind{EventReset, EventReset, EventStopped} {
		if e := <-events; e.Kind != want {
			t.Errorf("event %+v, want %s", e, want)
		}
	}
}

func testPanic(t *testing.T, k *lab.Kernel) {
	events := make(chan Event, 16)
	m, c := machine(t, Config{
		Memory: 256 << 20, CPUs: 1, Kernel: k.Image, CommandLine: "console=ttyS0 panic=1 quiet",
		Initrd: initramfs(t, k, "echo c > /proc/sysrq-trigger", "pvpanic-mmio"),
	}, Options{Events: func(e Event) { events <- e }, NoReboot: true})
	for _, want := range []EventKind{EventPanicked, EventReset} {
		if e := <-events; e.Kind != want {
			t.Errorf("event %+v, want %s", e, want)
		}
	}
	if out := ended(t, m, c); out.Kind != EventReset {
		t.Errorf("ended by %+v", out)
	}
}

func testPowerButton(t *testing.T, k *lab.Kernel) {
	m, c := machine(t, Config{
		Memory: 256 << 20, CPUs: 1, Kernel: k.Image, CommandLine: kernelLine,
		Initrd: initramfs(t, k, "exec 3</dev/input/event0; echo "+ready+"; dd bs=24 count=1 <&3 >/dev/null 2>&1; poweroff -f", "button", "evdev"),
	}, Options{})
	c.wait(t, ready, 1, bootTime)
	if err := m.PowerButton(); err != nil {
		t.Fatal(err)
	}
	if out := ended(t, m, c); out.Kind != EventPowerOff {
		t.Errorf("ended by %+v", out)
	}
}

// A paused guest prints nothing, and goes on where it was.
func testPause(t *testing.T, k *lab.Kernel) {
	m, c := machine(t, Config{
		Memory: 256 << 20, CPUs: 2, Kernel: k.Image, CommandLine: kernelLine,
		Initrd: initramfs(t, k, "echo "+ready+"; while :; do echo tick; usleep 10000; done"),
	}, Options{})
	c.wait(t, ready, 1, bootTime)
	for i := range 5 {
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := c.String()
		regs, err := m.Registers(t.Context())
		if err != nil || len(regs) != 2 || regs[0].CR3 == 0 || regs[1].LSTAR == 0 {
			t.Fatalf("registers %+v, %v", regs, err)
		}
		if after := c.String(); after != before {
			t.Errorf("a paused guest printed %q", after[len(before):])
		}
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.wait(t, "tick", strings.Count(before, "tick")+3+i, time.Minute)
	}
}

// A disk is read and written by the guest; what it read and wrote is what the
// image has, told by checksums of busybox there and of this process here.
func testDisk(t *testing.T, k *lab.Kernel, cpus int) {
	const size = 32 << 20
	dir := t.TempDir()
	image := filepath.Join(dir, "disk.raw")
	content := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, uint64(cpus)))
	for i := 0; i < size; i += 8 {
		binary.LittleEndian.PutUint64(content[i:], rng.Uint64())
	}
	if err := os.WriteFile(image, content, 0o600); err != nil {
		t.Fatal(err)
	}
	m, c := machine(t, Config{
		Memory: 256 << 20, CPUs: cpus, Kernel: k.Image, CommandLine: kernelLine,
		Disks: []DiskConfig{{Path: image, Format: "raw", Serial: "vantage-test"}},
		Initrd: initramfs(t, k, "cat /sys/block/vda/serial; echo; sha256sum /dev/vda; "+
			"dd if=/dev/urandom of=/tmp/r bs=1M count=8 2>/dev/null; dd if=/tmp/r of=/dev/vda bs=64k seek=16 conv=fsync,notrunc 2>/dev/null;"+
			"sha256sum /tmp/r; echo "+ready+"; poweroff -f", "virtio_pci", "virtio_blk"),
	}, Options{})
	c.wait(t, ready, 1, bootTime)
	if out := ended(t, m, c); out.Kind != EventPowerOff {
		t.Errorf("ended by %+v", out)
	}
	s := c.String()
	if sum := fmt.Sprintf("%x  /dev/vda", sha256.Sum256(content)); !strings.Contains(s, sum) || !strings.Contains(s, "vantage-test") {
		t.Errorf("the guest read something else than %s:\n%s", sum, s)
	}
	after, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if sum := fmt.Sprintf("%x  /tmp/r", sha256.Sum256(after[1<<20:9<<20])); !strings.Contains(s, sum) {
		t.Errorf("the image has something else than the guest wrote: want %s:\n%s", sum, s)
	}
	if !bytes.Equal(after[:1<<20], content[:1<<20]) || !bytes.Equal(after[9<<20:], content[9<<20:]) {
		t.Error("other parts of the image have changed")
	}
}
