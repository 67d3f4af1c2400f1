package vmm

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// envFigures lets TestFigures measure; the benchmark program sets it.
const envFigures = "VANTAGE_FIGURES"

// TestFigures compares a machine with QEMU on KVM: the same kernel, initramfs,
// memory, disk and work, in turn, under nested paging. It prints a line a figure
// for internal/bench, and holds nothing: promises are held there.
func TestFigures(t *testing.T) {
	if os.Getenv(envFigures) == "" {
		t.Skip("measures for minutes: make bench runs it")
	}
	k := labtest.Kernel(t, lab.Bookworm)
	labtest.NestedGroup(t, lab.NestedConfig{
		Timeout: 30 * time.Minute, InnerKernel: k, GuestModules: guestModules, Modules: []string{"tun"},
		Env: []string{envFigures + "=1"},
	}, func(t *testing.T) {
		t.Run("AgainstQEMU", func(t *testing.T) { againstQEMU(t, k) })
	})
}

// work is what the guest does: each line "FIGURE name seconds".
const work = `
clock() { cut -d' ' -f1 /proc/uptime; }
measure() { name=$1; shift; a=$(clock); "$@" >/dev/null 2>&1; b=$(clock); echo "FIGURE $name $(echo "$b $a" | awk '{print $1-$2}')"; }
dd if=/dev/zero of=/tmp/data bs=1M count=32 2>/dev/null
measure cpu sha256sum /tmp/data
measure memory sh -c 'for i in 1 2 3 4; do cat /tmp/data > /tmp/copy; rm /tmp/copy; done'
measure disk dd if=/dev/vda of=/dev/null bs=1M iflag=direct
ip addr add 10.9.8.2/24 dev eth0; ip link set eth0 up; ping -c 1 -W 5 10.9.8.1 >/dev/null
measure net sh -c 'nc 10.9.8.1 7000 < /tmp/data'
measure netin sh -c 'nc 10.9.8.1 7001 < /dev/null > /dev/null'
`

// netServer takes what the guest sends to port 7000, and sends it as much from 7001.
func netServer(t *testing.T) {
	t.Helper()
	tap(t, "vtest0", "10.9.8.1/24")
	for port, serve := range map[int]func(net.Conn){
		7000: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		7001: func(c net.Conn) { _, _ = c.Write(make([]byte, 32<<20)) },
	} {
		ln, err := net.Listen("tcp", fmt.Sprintf("10.9.8.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				serve(c)
				_ = c.Close()
			}
		}()
	}
}

// run is what one boot gave, in seconds: "boot", and the names of work.
type run map[string]float64

var figureLine = regexp.MustCompile(`FIGURE (\w+) ([0-9.]+)`)

func (r run) read(console string) {
	for _, m := range figureLine.FindAllStringSubmatch(console, -1) {
		if v, err := strconv.ParseFloat(m[2], 64); err == nil {
			r[m[1]] = v
		}
	}
}

func againstQEMU(t *testing.T, k *lab.Kernel) {
	const disk, memory = 128 << 20, 512
	initrd := initramfs(t, k, "echo "+ready+"\nmount -t tmpfs tmp /tmp\n"+work+"poweroff -f", "virtio_pci", "virtio_blk", "virtio_net")
	netServer(t)
	image := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(image, make([]byte, disk), 0o600); err != nil {
		t.Fatal(err)
	}
	// A run that hangs (the emulated processor loses an exit now and then) is left
	// out, with the other of its pair.
	const most = 90 * time.Second
	ours := func() run {
		start := time.Now()
		m, c := machine(t, Config{
			Memory: memory << 20, CPUs: 1, Kernel: k.Image, CommandLine: kernelLine, Initrd: initrd,
			Disks: []DiskConfig{{Path: image, Format: "raw"}},
			Nets:  []NetConfig{{Tap: "vtest0", MAC: "52:54:00:12:34:56"}},
		}, Options{})
		r := run{}
		for tick := time.NewTicker(5 * time.Millisecond); r["boot"] == 0; <-tick.C {
			if took := time.Since(start); strings.Contains(c.String(), ready) {
				r["boot"] = took.Seconds()
			} else if took > most {
				break
			}
		}
		select {
		case <-m.Done():
		case <-time.After(most):
			r = nil
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if r != nil {
			r.read(c.String())
		}
		return r
	}
	theirs := func() run {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), most)
		defer cancel()
		cmd := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "kvm", "-M", "pc", "-cpu", "host", "-m", fmt.Sprint(memory),
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
			"-kernel", k.Image, "-initrd", initrd, "-append", kernelLine,
			"-drive", "file="+image+",format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d",
			"-netdev", "tap,id=n,ifname=vtest0,script=no,downscript=no,vhost=off", "-device", "virtio-net-pci,netdev=n,mac=52:54:00:12:34:56,romfile=")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		r := run{}
		var text strings.Builder
		for lines := bufio.NewScanner(io.TeeReader(out, &text)); lines.Scan(); {
			if strings.Contains(lines.Text(), ready) {
				r["boot"] = time.Since(start).Seconds()
			}
		}
		if err := cmd.Wait(); err != nil {
			t.Logf("qemu: %v\n%s", err, text.String())
			return nil
		}
		r.read(text.String())
		return r
	}
	theirs() // warms the page cache
	ratios, mine, qemus := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for range 4 {
		a, b := ours(), theirs()
		if a == nil || b == nil {
			continue
		}
		for name := range b {
			if a[name] == 0 || b[name] == 0 {
				t.Errorf("%s: %v against %v", name, a[name], b[name])
				continue
			}
			ratios[name] = append(ratios[name], a[name]/b[name])
			mine[name], qemus[name] = append(mine[name], a[name]), append(qemus[name], b[name])
		}
	}
	for name, r := range ratios {
		fmt.Printf("BENCH %s %.3f %.3f s against %.3f s, medians of %d in turn\n", name, median(r), median(mine[name]), median(qemus[name]), len(r))
	}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
