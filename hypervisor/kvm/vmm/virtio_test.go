package vmm

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// tap makes a tap interface that stays, with an address of ours.
func tap(t *testing.T, name, address string) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.TUNSETPERSIST, 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", name).Run() })
	for _, args := range [][]string{{"addr", "add", address, "dev", name}, {"link", "set", name, "up"}} {
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
}

// Bytes go through the network card in both directions, and are the same on both
// sides by checksums that the guest's busybox and this process make.
func testNet(t *testing.T, k *lab.Kernel, cpus int) {
	const size = 8 << 20
	tap(t, "vtest0", "10.9.8.1/24")
	down, up := make([]byte, size), make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(cpus)})
	_, _ = rng.Read(down)
	ln, err := net.Listen("tcp", "10.9.8.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			_, err = c.Write(down)
			c.Close()
			if err != nil {
				return err
			}
			if c, err = ln.Accept(); err != nil {
				return err
			}
			defer c.Close()
			_, err = io.ReadFull(c, up)
			return err
		}()
	}()
	_, c := machine(t, Config{
		Memory: 256 << 20, CPUs: cpus, Kernel: k.Image, CommandLine: kernelLine,
		Nets: []NetConfig{{Tap: "vtest0", MAC: "52:54:00:12:34:56"}}, RNG: true,
		Initrd: initramfs(t, k, "cat /sys/class/net/eth0/address /sys/class/misc/hw_random/rng_current; ip addr add 10.9.8.2/24 dev eth0; ip link set eth0 up;"+
			"ping -c 2 -W 5 10.9.8.1 >/dev/null && echo PING; nc 10.9.8.1 7000 </dev/null | sha256sum; "+
			"dd if=/dev/hwrng of=/tmp/up bs=64k count=1 2>/dev/null; i=0; while [ $i -lt 128 ]; do cat /tmp/up; i=$((i+1)); done > /tmp/all; sha256sum /tmp/all; nc 10.9.8.1 7000 < /tmp/all; echo "+ready,
			"virtio_pci", "virtio_net", "virtio_rng"),
	}, Options{})
	c.wait(t, ready, 1, bootTime)
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(bootTime):
		t.Fatal("the guest's bytes do not come")
	}
	s := c.String()
	for what, want := range map[string]string{
		"its address": "52:54:00:12:34:56", "its random numbers": "virtio_rng", "an answer": "PING",
		"what it got": fmt.Sprintf("%x", sha256.Sum256(down)), "what it sent": fmt.Sprintf("%x  /tmp/all", sha256.Sum256(up)),
	} {
		if !strings.Contains(s, want) {
			t.Errorf("%s: no %q on the console:\n%s", what, want, s)
		}
	}
	if bytes.Count(up[:64<<10], []byte{0}) > 4096 {
		t.Error("its random numbers are mostly zeros")
	}
}

// A guest gives memory up when it is asked to, and free pages by itself; the host
// has them back.
func testBalloon(t *testing.T, k *lab.Kernel) {
	m, c := machine(t, Config{
		Memory: 256 << 20, CPUs: 1, Kernel: k.Image, CommandLine: kernelLine, Balloon: true,
		Initrd: initramfs(t, k, commands, "virtio_pci", "virtio_balloon"),
	}, Options{})
	c.wait(t, ready, 1, bootTime)
	used := func() int64 {
		var st unix.Stat_t
		if err := unix.Fstat(int(m.MemoryFile().Fd()), &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	m.Type([]byte("dd if=/dev/zero bs=1M count=6 2>/dev/null | tr '\\\\0' x > /tmp/big; rm /tmp/big\n"))
	c.wait(t, "DONE 1", 1, bootTime)
	if err := m.SetBalloon(t.Context(), 192<<20); err != nil {
		t.Fatal(err)
	}
	late := time.After(bootTime)
	for m.devices.balloon.Actual() < 64<<20 || used() > 192<<20 {
		select {
		case <-late:
			t.Fatalf("the guest has given up %d bytes, and %d of its memory are used", m.devices.balloon.Actual(), used())
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := m.SetBalloon(t.Context(), 256<<20); err != nil {
		t.Fatal(err)
	}
	m.Type([]byte("dd if=/dev/zero bs=1M count=12 2>/dev/null | tr '\\\\0' y > /tmp/big; sha256sum /tmp/big\n"))
	c.wait(t, "DONE 2", 1, bootTime)
	if want := fmt.Sprintf("%x", sha256.Sum256(bytes.Repeat([]byte("y"), 12<<20))); !strings.Contains(c.String(), want) {
		t.Errorf("memory that it got back is not its own: want %s:\n%s", want, c)
	}
}
