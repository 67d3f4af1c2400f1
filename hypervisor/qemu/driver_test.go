package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/qmp"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func find(t *testing.T, d *qemu.Driver, pid int) hypervisor.Info {
	t.Helper()
	infos, err := d.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(infos, func(i hypervisor.Info) bool { return i.PID == pid })
	if i < 0 {
		t.Fatalf("pid %d is not in %+v", pid, infos)
	}
	return infos[i]
}

func TestList(t *testing.T) {
	labtest.NeedRoot(t)
	d := qemu.New(qemu.Options{})
	m := start(t, true, "-machine", "q35", "-m", "size=128M", "-smp", "sockets=2,cores=1", "-name", "guest=list test,debug-threads=on", "-S")
	want := hypervisor.Info{
		Name: "list test", URI: "qemu:" + m.target(), Driver: "qemu", State: hypervisor.StatePaused,
		MemoryBytes: 128 << 20, VCPUs: 2, PID: m.pid(),
	}
	if got := find(t, d, m.pid()); got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	m.execute("cont")
	if got := find(t, d, m.pid()); got.State != hypervisor.StateRunning {
		t.Errorf("state %s after cont", got.State)
	}
	if got := find(t, qemu.New(qemu.Options{NoQMP: true}), m.pid()); got.State != hypervisor.StateUnknown {
		t.Errorf("state %s without QMP", got.State)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.List(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("List with a cancelled context: %v", err)
	}
	m.kill()
	infos, err := d.List(t.Context())
	if err != nil || slices.ContainsFunc(infos, func(i hypervisor.Info) bool { return i.PID == m.pid() }) {
		t.Errorf("after its end the VM is listed: %v, %v", infos, err)
	}
}

// An upgrade replaces the binary of VMs that run on; distributions call it by
// other names.
func TestBinaryNames(t *testing.T) {
	labtest.NeedRoot(t)
	bin, err := exec.LookPath(qemuBinary)
	if err != nil {
		labtest.Missing(t, "no %s here", qemuBinary)
	}
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	if mods, err := filepath.Glob("/usr/lib/*/qemu/accel-tcg-x86_64.so"); err == nil && len(mods) > 0 {
		t.Setenv("QEMU_MODULE_DIR", filepath.Dir(mods[0])) // else sought near the binary
	}
	for _, name := range []string{"qemu-kvm", "kvm", "qemu-system-x86_64"} {
		t.Run(name, func(t *testing.T) {
			dir := tempDir(t)
			exe := filepath.Join(dir, name)
			if err := os.WriteFile(exe, b, 0o755); err != nil {
				t.Fatal(err)
			}
			m := startBinary(t, exe, false, "-m", "64", "-S", "-L", "/usr/share/seabios", "-L", "/usr/share/qemu")
			if err := os.Remove(exe); err != nil {
				t.Fatal(err)
			}
			if got := find(t, qemu.New(qemu.Options{}), m.pid()); got.Name != "qemu-"+m.target() {
				t.Errorf("%+v", got)
			}
			if got := m.open(qemu.Options{}).Ranges(); got[0].Size != 64<<20 {
				t.Errorf("Ranges = %v", got)
			}
		})
	}
}

func TestOpenByName(t *testing.T) {
	labtest.NeedRoot(t)
	d := qemu.New(qemu.Options{})
	const uuid = "8c6b3f1a-9a3e-4d4f-8d6b-3f0d3f9f1c77"
	a := start(t, false, "-m", "32", "-S", "-name", "vantage-twin", "-uuid", uuid)
	n := start(t, false, "-m", "32", "-S", "-name", "1073741825")
	if vm, err := d.Open(t.Context(), "1073741825"); err != nil {
		t.Error(err)
	} else if vm.Info().PID != n.pid() || vm.Close() != nil {
		t.Errorf("%+v", vm.Info())
	}
	for _, name := range []string{"vantage-twin", uuid, strings.ToUpper(uuid)} {
		vm, err := d.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if vm.Info().PID != a.pid() {
			t.Errorf("%s opens pid %d", name, vm.Info().PID)
		}
		_ = vm.Close()
	}
	b := start(t, false, "-m", "32", "-S", "-name", "vantage-twin")
	_, err := d.Open(t.Context(), "vantage-twin")
	if !errors.Is(err, qemu.ErrAmbiguous) || !strings.Contains(err.Error(), a.target()) || !strings.Contains(err.Error(), b.target()) {
		t.Errorf("two VMs of a name: %v", err)
	}
}

func TestNotFound(t *testing.T) {
	d := qemu.New(qemu.Options{})
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	dir := tempDir(t)
	file, sock := filepath.Join(dir, "file"), filepath.Join(dir, "sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, target := range []string{"", "no-such-vm", "1", "0", "-5", strconv.Itoa(1 << 30), strconv.Itoa(sleep.Process.Pid),
		strconv.Itoa(os.Getpid()), file, sock, filepath.Join(dir, "nothing")} {
		if vm, err := d.Open(t.Context(), target); !errors.Is(err, hypervisor.ErrNotFound) {
			t.Errorf("Open(%q) = %v, %v; want ErrNotFound", target, vm, err)
		}
	}
}

// hold connects to a QMP socket and keeps it.
func hold(t *testing.T, sock string) *qmp.Client {
	t.Helper()
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	c, err := qmp.New(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestHeldSocket(t *testing.T) {
	labtest.NeedRoot(t)
	m := start(t, true, "-m", "64", "-name", "held")
	m.settle()
	c := hold(t, m.sock)
	defer func() { _ = c.Close() }()
	begin := time.Now()
	if got := find(t, qemu.New(qemu.Options{}), m.pid()); got.State != hypervisor.StateUnknown {
		t.Errorf("state %s of a VM whose monitor is held", got.State)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("List took %v", d)
	}
	// By the path of the held socket, too.
	vm, err := qemu.New(qemu.Options{}).Open(t.Context(), m.sock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	if vm.Info().PID != m.pid() {
		t.Errorf("%+v", vm.Info())
	}
	m.compare(vm, 0, 64<<20)
	p, err := hypervisor.As[hypervisor.Pauser](vm)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Pause(t.Context()); !errors.Is(err, hypervisor.ErrBusy) || !strings.Contains(err.Error(), m.sock) || !strings.Contains(err.Error(), "-qmp") {
		t.Errorf("Pause = %v, want ErrBusy with the socket and a remedy", err)
	}
	if _, err := vm.(hypervisor.RegisterReader).Registers(t.Context()); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("Registers = %v, want ErrBusy", err)
	}
	// The holder has noticed nothing, and QEMU has no client waiting.
	if _, err := c.HMP(t.Context(), "info status"); err != nil {
		t.Errorf("the holder was hurt: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Errorf("Resume once it is free: %v", err)
	}
	if s, err := p.State(t.Context()); s != hypervisor.StateRunning || err != nil {
		t.Errorf("State = %s, %v", s, err)
	}
}

// Wherever QEMU has its monitor, and however its command line says so.
func TestMonitorForms(t *testing.T) {
	labtest.NeedRoot(t)
	dir := tempDir(t)
	deep := filepath.Join(dir, strings.Repeat("d", 60), strings.Repeat("e", 60))
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	for _, tt := range []struct {
		name string
		args []string
		path string // to open by
	}{
		{"chardev", []string{"-chardev", "socket,id=c,path=" + dir + "/a,server=on,wait=off", "-mon", "chardev=c,mode=control"}, dir + "/a"},
		{"json", []string{"-chardev", "socket,id=c,path=" + dir + "/b,server=on,wait=off", "-mon", "c,mode=control,pretty=on"}, dir + "/b"},
		{"pretty", []string{"-qmp-pretty", "unix:" + dir + "/c,server,nowait"}, dir + "/c"},
		{"tcp", []string{"-qmp", "tcp:127.0.0.1:" + port + ",server=on,wait=off"}, ""},
		{"abstract", []string{"-chardev", "socket,id=c,abstract=on,path=vantage-test-" + port + ",server=on,wait=off", "-mon", "c,mode=control"}, ""},
		{"second is free", []string{"-qmp", "unix:" + dir + "/d,server=on,wait=off", "-qmp", "unix:" + dir + "/e,server=on,wait=off"}, dir + "/e"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := start(t, false, append(tt.args, "-m", "32", "-S")...)
			if tt.name == "second is free" {
				c := hold(t, dir+"/d")
				defer func() { _ = c.Close() }()
			}
			target := m.target()
			if tt.path != "" {
				target = tt.path
			}
			vm, err := qemu.New(qemu.Options{}).Open(t.Context(), target)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = vm.Close() }()
			if i := vm.Info(); i.PID != m.pid() || i.State != hypervisor.StatePaused {
				t.Errorf("%+v", i)
			}
			regs, err := vm.(hypervisor.RegisterReader).Registers(t.Context())
			if err != nil || len(regs) != 1 || regs[0].RIP != 0xfff0 {
				t.Errorf("Registers = %+v, %v", regs, err)
			}
		})
	}
}

// libvirt listens itself, and QEMU inherits the socket: the listener's
// credentials are not QEMU's.
func TestInheritedMonitor(t *testing.T) {
	labtest.NeedRoot(t)
	sock := filepath.Join(tempDir(t), "monitor.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	m := startFiles(t, qemuBinary, false, []*os.File{f}, "-m", "32", "-S",
		"-chardev", "socket,id=charmonitor,fd=4,server=on,wait=off", "-mon", "chardev=charmonitor,id=monitor,mode=control")
	_ = f.Close()
	_ = l.Close()
	for _, target := range []string{m.target(), sock} {
		vm, err := qemu.New(qemu.Options{}).Open(t.Context(), target)
		if err != nil {
			t.Fatal(err)
		}
		if i := vm.Info(); i.PID != m.pid() || i.State != hypervisor.StatePaused {
			t.Errorf("%+v", i)
		}
		_ = vm.Close()
	}
	c := hold(t, sock)
	defer func() { _ = c.Close() }()
	vm, err := qemu.New(qemu.Options{}).Open(t.Context(), sock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vm.Close() }()
	if err := vm.(hypervisor.Pauser).Pause(t.Context()); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("Pause = %v, want ErrBusy", err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// A process that only claims to be a QEMU with a monitor does not make us talk
// to a socket that is not its own.
func TestForeignSocket(t *testing.T) {
	labtest.NeedRoot(t)
	sock := filepath.Join(tempDir(t), "foreign")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	connected := make(chan struct{}, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			connected <- struct{}{}
			_ = c.Close()
		}
	}()
	// A shell by QEMU's name: what is behind its command are arguments.
	sh, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	fake := filepath.Join(tempDir(t), "qemu-system-x86_64")
	if err := os.WriteFile(fake, sh, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(fake, "-c", "read wait", "-qmp", "unix:"+sock+",server=on,wait=off", "-name", "fake")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	d := qemu.New(qemu.Options{})
	if got := find(t, d, cmd.Process.Pid); got.Name != "fake" || got.State != hypervisor.StateUnknown {
		t.Errorf("%+v", got)
	}
	if _, err := d.Open(t.Context(), strconv.Itoa(cmd.Process.Pid)); err == nil {
		t.Error("a process without a guest's memory is opened")
	}
	select {
	case <-connected:
		t.Error("the foreign socket was connected to")
	default:
	}
}

// Killed in the middle of everything: one clear error.
func TestKilled(t *testing.T) {
	labtest.NeedRoot(t)
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			args := []string{"-m", "256"}
			if shared {
				args = append(args, "-object", "memory-backend-memfd,id=m,size=256M", "-machine", "memory-backend=m")
			}
			m := start(t, true, args...)
			vm := m.open(qemu.Options{})
			reading := make(chan struct{})
			result := make(chan error, 3)
			loop := func(f func() error) {
				first := true
				for {
					err := f()
					if first {
						reading <- struct{}{}
						first = false
					}
					if err != nil {
						result <- err
						return
					}
				}
			}
			big, small := make([]byte, 8<<20), make([]byte, 8)
			go loop(func() error { return hypervisor.ReadFull(vm, big, 1<<20) })
			go loop(func() error { return hypervisor.ReadFull(vm, small, 1<<20) })
			go loop(func() error { _, err := vm.Registers(t.Context()); return err })
			for range 3 {
				<-reading
			}
			m.kill()
			for range 3 {
				select {
				case err := <-result:
					if !errors.Is(err, hypervisor.ErrGone) {
						t.Errorf("%v, want ErrGone", err)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("a call goes on after the VM's end")
				}
			}
			for name, f := range map[string]func() error{
				"ReadPhys":  func() error { _, err := vm.ReadPhys(small, 0); return err },
				"MapPhys":   func() error { _, err := vm.MapPhys(0, 1); return err },
				"Pause":     func() error { return vm.Pause(t.Context()) },
				"Resume":    func() error { return vm.Resume(t.Context()) },
				"State":     func() error { _, err := vm.State(t.Context()); return err },
				"Registers": func() error { _, err := vm.Registers(t.Context()); return err },
			} {
				if err := f(); !errors.Is(err, hypervisor.ErrGone) {
					t.Errorf("%s after the end = %v, want ErrGone", name, err)
				}
			}
			if s := vm.Info().State; s != hypervisor.StateUnknown {
				t.Errorf("state %s after the end", s)
			}
		})
	}
}

// The VM ends while it is opened, at any point of that.
func TestKilledWhileOpening(t *testing.T) {
	labtest.NeedRoot(t)
	d := qemu.New(qemu.Options{})
	for i := range 12 {
		m := start(t, true, "-m", "64", "-S")
		killed := make(chan struct{})
		time.AfterFunc(time.Duration(i)*time.Millisecond, func() {
			_ = m.cmd.Process.Kill()
			close(killed)
		})
		for {
			vm, err := d.Open(t.Context(), m.target())
			if err != nil {
				if !errors.Is(err, hypervisor.ErrGone) && !errors.Is(err, hypervisor.ErrNotFound) {
					t.Errorf("Open of a VM that ends = %v", err)
				}
				break
			}
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
		}
		<-killed
		m.kill()
	}
}

// A pause is the VM's, not the handle's.
func TestPauseOutlivesHandle(t *testing.T) {
	labtest.NeedRoot(t)
	m := start(t, true, "-m", "32")
	vm, err := qemu.New(qemu.Options{}).Open(t.Context(), m.target())
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.(hypervisor.Pauser).Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	if s := m.hmp("info status"); !strings.Contains(s, "paused") {
		t.Errorf("after Close: %s", s)
	}
}
