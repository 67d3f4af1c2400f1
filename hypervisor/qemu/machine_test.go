package qemu_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/qmp"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// machine is a QEMU without a guest system: its firmware runs and finds nothing
// to boot. It has a monitor of the test's own, the truth's source, that is not
// on its command line as a QMP socket that the driver would find, where the
// test says so.
type machine struct {
	t     testing.TB
	cmd   *exec.Cmd
	dir   string
	sock  string // QMP for the driver
	truth *qmp.Client
}

const qemuBinary = "qemu-system-x86_64"

// start runs QEMU with args. With withQMP the driver gets a monitor too. The
// test's own monitor is on an inherited descriptor, as libvirt's is.
func start(t testing.TB, withQMP bool, args ...string) *machine {
	t.Helper()
	return startBinary(t, qemuBinary, withQMP, args...)
}

func startBinary(t testing.TB, bin string, withQMP bool, args ...string) *machine {
	t.Helper()
	return startFiles(t, bin, withQMP, nil, args...)
}

// startFiles lets QEMU inherit files, from descriptor 4 on.
func startFiles(t testing.TB, bin string, withQMP bool, files []*os.File, args ...string) *machine {
	t.Helper()
	if _, err := exec.LookPath(qemuBinary); err != nil {
		labtest.Missing(t, "no %s here", qemuBinary)
	}
	m := &machine{t: t, dir: tempDir(t)}
	ours, theirs := socketPair(t)
	base := []string{"-display", "none", "-nodefaults", "-no-user-config",
		"-chardev", "socket,id=truth,fd=3", "-mon", "chardev=truth,mode=control"}
	if !slices.Contains(args, "-accel") {
		base = append(base, "-accel", "tcg")
	}
	if withQMP {
		m.sock = filepath.Join(m.dir, "qmp.sock")
		base = append(base, "-qmp", "unix:"+m.sock+",server=on,wait=off")
	}
	m.cmd = exec.Command(bin, append(base, args...)...)
	m.cmd.ExtraFiles = append([]*os.File{theirs}, files...)
	var stderr bytes.Buffer
	m.cmd.Stderr = &stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = theirs.Close()
	t.Cleanup(m.kill)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var err error
	m.truth, err = qmp.New(ctx, ours)
	if err != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
		t.Fatalf("QEMU does not answer: %v\n%s", err, stderr.String())
	}
	return m
}

func (m *machine) pid() int { return m.cmd.Process.Pid }

func (m *machine) target() string { return strconv.Itoa(m.pid()) }

// kill ends QEMU and waits for its end.
func (m *machine) kill() {
	if m.truth != nil {
		_ = m.truth.Close()
	}
	if m.cmd.ProcessState == nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait()
	}
}

func (m *machine) hmp(line string) string {
	m.t.Helper()
	s, err := m.truth.HMP(m.t.Context(), line)
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *machine) execute(cmd string) {
	m.t.Helper()
	if err := m.truth.Execute(m.t.Context(), cmd, nil, nil); err != nil {
		m.t.Fatal(err)
	}
}

// settle waits until the firmware has found nothing to boot, by its halted vCPU,
// and stops the machine.
func (m *machine) settle() {
	m.t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for time.Now().Before(deadline) {
		if bytes.Contains([]byte(m.hmp("info registers")), []byte("HLT=1")) {
			m.execute("stop")
			return
		}
		<-time.After(20 * time.Millisecond) // polls: a halted vCPU is no event
	}
	m.t.Fatal("the firmware did not come to rest")
}

// read is the ground truth of guest memory: what QEMU itself saves.
func (m *machine) read(p []byte, gpa hypervisor.PhysAddr) error {
	name := filepath.Join(m.dir, "pmem")
	args := map[string]any{"val": uint64(gpa), "size": len(p), "filename": name}
	if err := m.truth.Execute(m.t.Context(), "pmemsave", args, nil); err != nil {
		return err
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if len(b) != len(p) {
		return fmt.Errorf("pmemsave wrote %d of %d bytes", len(b), len(p))
	}
	copy(p, b)
	return nil
}

// compare reads all of [lo, hi) by the driver and by QEMU.
func (m *machine) compare(vm hypervisor.VM, lo, hi hypervisor.PhysAddr) {
	m.t.Helper()
	const step = 64 << 20
	for at := lo; at < hi; at += step {
		n := min(step, int(hi-at))
		got, want := make([]byte, n), make([]byte, n)
		if err := hypervisor.ReadFull(vm, got, at); err != nil {
			m.t.Fatal(err)
		}
		if err := m.read(want, at); err != nil {
			m.t.Fatal(err)
		}
		if i := diff(got, want); i >= 0 {
			m.t.Fatalf("byte at %#x is %#x, QEMU says %#x", uint64(at)+uint64(i), got[i], want[i])
		}
	}
}

func diff(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return len(a)
}

// open opens the machine by its PID; it is closed at the test's end.
func (m *machine) open(o qemu.Options) *qemu.VM {
	m.t.Helper()
	vm, err := qemu.New(o).Open(m.t.Context(), m.target())
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			m.t.Errorf("Close: %v", err)
		}
	})
	return vm.(*qemu.VM)
}

func socketPair(t testing.TB) (net.Conn, *os.File) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(tempDir(t), "truth"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	f, err := peer.(*net.UnixConn).File()
	_ = peer.Close()
	if err != nil {
		t.Fatal(errors.Join(err, c.Close()))
	}
	return c, f
}

// tempDir is t.TempDir without the test's name, which may hold what QEMU's
// options give a meaning to.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "qemu")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
