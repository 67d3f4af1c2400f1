package vmm

import (
	"fmt"
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
	k := labtest.Kernel(t, lab.Bookworm)
	labtest.NestedGroup(t, lab.NestedConfig{InnerKernel: k}, func(t *testing.T) {
		t.Run("Boot1", func(t *testing.T) { testBoot(t, k, 1) })
	})
}

const kernelLine = "console=ttyS0 panic=-1 no_timer_check quiet"

func testBoot(t *testing.T, k *lab.Kernel, cpus int) {
	start := time.Now()
	m, c := machine(t, Config{
		Memory: 512 << 20, CPUs: cpus, Kernel: k.Image, CommandLine: kernelLine,
		Initrd: initramfs(t, k, "echo cpus=$(nproc); dmesg | grep -iE 'acpi.*(error|warn|bug)'; echo "+ready+"; poweroff -f"),
	}, Options{})
	c.wait(t, ready, 1, 3*time.Minute)
	t.Logf("userspace after %v, %d exits", time.Since(start), m.vm.VCPUs()[0].Exits())
	if out := m.Wait(); out.Kind != EventPowerOff {
		t.Errorf("ended by %+v", out)
	}
	if s := c.String(); !strings.Contains(s, fmt.Sprintf("cpus=%d", cpus)) {
		t.Errorf("console: %s", s)
	} else {
		t.Log(s)
	}
}
