package kvm

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control/controltest"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/socketdir"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// folder returns an empty folder for sockets, with a short path: a socket's has
// at most 107 bytes.
func folder(t testing.TB) socketdir.Dir {
	t.Helper()
	base, err := os.MkdirTemp("", "vms")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		left, err := filepath.Glob(filepath.Join(base, "v", "*"))
		if err != nil || len(left) != 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		os.RemoveAll(base)
	})
	return socketdir.Dir(filepath.Join(base, "v"))
}

func driver(dir socketdir.Dir, more ...socketdir.Dir) *Driver {
	o := Options{Dirs: []string{string(dir)}}
	for _, d := range more {
		o.Dirs = append(o.Dirs, string(d))
	}
	return New(o)
}

func open(t testing.TB, d *Driver, target string) *VM {
	t.Helper()
	vm, err := d.open(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

func TestConformance(t *testing.T) {
	dir := folder(t)
	d := driver(dir)
	m := controltest.New(t, "web-1")
	controltest.Serve(t, dir, m, control.Options{})
	hypervisortest.Conformance(t, hypervisortest.Config{
		Open:    func(t testing.TB) hypervisor.VM { return open(t, d, "web-1") },
		Driver:  d,
		Missing: "web-2",
		Ranges:  []hypervisor.Range{{Start: 0, Size: 2 << 20}, {Start: 1 << 32, Size: 1 << 20}},
		ReadTruth: func(p []byte, gpa hypervisor.PhysAddr) error {
			copy(p, m.Load(gpa, uint64(len(p))))
			return nil
		},
		Want:       hypervisortest.CanAll,
		Scratch:    hypervisor.Range{Start: 0x3000, Size: 200_000},
		GuestWrite: func(p []byte, gpa hypervisor.PhysAddr) error { m.GuestWrite(p, gpa); return nil },
	})
	if left := m.Traps(); len(left) != 0 {
		t.Errorf("traps left: %v", left)
	}
}

func TestList(t *testing.T) {
	dir, others := folder(t), folder(t)
	d := driver(dir, others)
	if infos, err := d.List(t.Context()); len(infos) != 0 || err != nil {
		t.Errorf("List of nothing = %v, %v", infos, err)
	}
	b := controltest.Serve(t, dir, controltest.New(t, "b"), control.Options{})
	controltest.Serve(t, dir, controltest.New(t, "a"), control.Options{})
	controltest.Serve(t, others, controltest.New(t, "c"), control.Options{})
	infos, err := d.List(t.Context())
	if err != nil || len(infos) != 3 {
		t.Fatalf("List = %v, %v", infos, err)
	}
	for i, want := range []string{"kvm:a", "kvm:b", "kvm:" + others.Socket("c")} {
		in := infos[i]
		if in.URI != want || in.Name != "abc"[i:i+1] || in.Driver != "kvm" || in.State != hypervisor.StateRunning ||
			in.MemoryBytes != 3<<20 || in.VCPUs != 2 || in.PID != os.Getpid() {
			t.Errorf("List()[%d] = %+v, want URI %s", i, in, want)
		}
		// What is listed opens, by URI.
		_, target, _ := strings.Cut(in.URI, ":")
		open(t, d, target)
	}
	open(t, d, "c") // by name, where only one has it
	// Held by one is paused to all.
	release, err := open(t, d, "a").Hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if infos, err := d.List(t.Context()); err != nil || infos[0].State != hypervisor.StatePaused || infos[1].State != hypervisor.StateRunning {
		t.Errorf("List with a held = %v, %v", infos, err)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	b.End(hypervisor.ErrGone)
	if infos, err := d.List(t.Context()); err != nil || len(infos) != 2 {
		t.Errorf("List after the end of b = %v, %v", infos, err)
	}
	if _, err := d.Open(t.Context(), "b"); !errors.Is(err, hypervisor.ErrNotFound) {
		t.Errorf("Open of b after its end = %v", err)
	}
}

// A dead machine's socket is removed by whoever looks; one that hangs is listed,
// and no one waits for it for ever.
func TestListOfDeadAndHanging(t *testing.T) {
	dir := folder(t)
	d := New(Options{Dirs: []string{string(dir)}, Timeout: 200 * time.Millisecond})
	dead, err := dir.Claim("dead")
	if err != nil {
		t.Fatal(err)
	}
	dead.Socket().Close()
	dead.Lock().Close() // as by the end of its process
	if infos, err := d.List(t.Context()); len(infos) != 0 || err != nil {
		t.Errorf("List = %v, %v", infos, err)
	}
	if names, _ := dir.Names(); len(names) != 0 {
		t.Errorf("a dead VM's socket is still there: %v", names)
	}
	// One that has not begun to listen.
	early, err := dir.Claim("early")
	if err != nil {
		t.Fatal(err)
	}
	defer early.Release()
	infos, err := d.List(t.Context())
	if len(infos) != 1 || infos[0].State != hypervisor.StateUnknown || err == nil || !strings.Contains(err.Error(), "starting or ending") {
		t.Errorf("List = %v, %v", infos, err)
	}
	// One that listens, and says nothing.
	if err := unix.Listen(int(early.Socket().Fd()), 4); err != nil {
		t.Fatal(err)
	}
	infos, err = d.List(t.Context())
	if len(infos) != 1 || infos[0].State != hypervisor.StateUnknown || err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("List = %v, %v", infos, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir, other, third := folder(t), folder(t), folder(t)
	d := driver(dir, other, third)
	controltest.Serve(t, other, controltest.New(t, "twice"), control.Options{})
	controltest.Serve(t, third, controltest.New(t, "twice"), control.Options{})
	if _, err := d.Open(t.Context(), "twice"); !errors.Is(err, ErrAmbiguous) || !strings.Contains(err.Error(), other.Socket("twice")) {
		t.Errorf("Open of a name that two have = %v", err)
	}
	for _, target := range []string{"none", "", "..", "a b", dir.Socket("none"), "/nowhere/x.sock"} {
		if _, err := d.Open(t.Context(), target); !errors.Is(err, hypervisor.ErrNotFound) {
			t.Errorf("Open(%q) = %v, want ErrNotFound", target, err)
		}
	}
	if _, err := d.Open(t.Context(), "/etc/passwd"); err == nil {
		t.Error("a file was opened")
	}
}

// A machine of a hostile user (or anything else that listens there) gets nothing
// but an error out of root's vantage.
func TestHostileMachine(t *testing.T) {
	memfd := func(size int64, seals int) *os.File {
		fd, err := unix.MemfdCreate("x", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memfd")
		t.Cleanup(func() { f.Close() })
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return f
	}
	plain, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	if err := plain.Truncate(8192); err != nil {
		t.Fatal(err)
	}
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	good := memfd(8192, unix.F_SEAL_SHRINK)
	ranges := []hypervisor.Range{{Start: 0, Size: 8192}}
	welcome := func(protocol int, rs []hypervisor.Range, files ...*os.File) func(*wire.Conn) {
		return func(c *wire.Conn) {
			m := wire.Message{Kind: wire.KindHello, Files: files}.JSON(wire.Welcome{Protocol: protocol, Ranges: rs})
			_ = c.Send(m, time.Second)
		}
	}
	for name, say := range map[string]func(*wire.Conn){
		"nothing":                  func(*wire.Conn) {},
		"an event first":           func(c *wire.Conn) { _ = c.Send(wire.Message{Kind: wire.KindEvent, Body: []byte("{}")}, time.Second) },
		"no JSON":                  func(c *wire.Conn) { _ = c.Send(wire.Message{Kind: wire.KindHello, Body: []byte("}")}, time.Second) },
		"no memory":                welcome(wire.Protocol, ranges),
		"two memories":             welcome(wire.Protocol, ranges, good, good),
		"another version":          welcome(wire.Protocol+1, ranges, good),
		"memory that is too small": welcome(wire.Protocol, ranges, memfd(4096, unix.F_SEAL_SHRINK)),
		"memory on a disk":         welcome(wire.Protocol, ranges, plain),
		"a device as memory":       welcome(wire.Protocol, ranges, zero),
		"no ranges":                welcome(wire.Protocol, nil, good),
		"ranges that overlap":      welcome(wire.Protocol, []hypervisor.Range{{Start: 0, Size: 8192}, {Start: 4096, Size: 8192}}, good),
		"ranges that wrap":         welcome(wire.Protocol, []hypervisor.Range{{Start: 1 << 63, Size: 1<<63 + 4096}}, good),
		"half a page":              welcome(wire.Protocol, []hypervisor.Range{{Start: 0, Size: 8000}, {Start: 1 << 20, Size: 192}}, good),
		"a huge range":             welcome(wire.Protocol, []hypervisor.Range{{Start: 0, Size: 1 << 63}}, good),
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t)
			claim, err := dir.Claim("evil")
			if err != nil {
				t.Fatal(err)
			}
			defer claim.Release()
			ln, err := control.Listen(claim.Socket())
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				nc, err := ln.AcceptUnix()
				if err != nil {
					return
				}
				c := wire.NewConn(nc)
				defer c.Close()
				_, _ = c.Receive()
				say(c)
			}()
			vm, err := driver(dir).open(t.Context(), "evil")
			if err == nil {
				vm.Close()
				t.Error("it was opened")
			}
			t.Log(err)
			ln.Close()
			<-done
		})
	}
}

// What a machine sends later is checked as well.
func TestMachineThatLies(t *testing.T) {
	for name, lie := range map[string]wire.Message{
		"an answer to nothing": {Kind: wire.KindResponse, ID: 77},
		"a request":            {Kind: wire.KindRequest, ID: 1},
		"a broken event":       {Kind: wire.KindEvent, Body: []byte("{")},
		"a broken goodbye":     {Kind: wire.KindGoodbye, Body: []byte("1")},
	} {
		t.Run(name, func(t *testing.T) {
			dir := folder(t)
			claim, err := dir.Claim("liar")
			if err != nil {
				t.Fatal(err)
			}
			defer claim.Release()
			ln, err := control.Listen(claim.Socket())
			if err != nil {
				t.Fatal(err)
			}
			m := controltest.New(t, "liar")
			read, err := control.Readable(m.MemoryFile(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer read.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				nc, err := ln.AcceptUnix()
				if err != nil {
					return
				}
				c := wire.NewConn(nc)
				defer c.Close()
				_, _ = c.Receive()
				w := wire.Message{Kind: wire.KindHello, Files: []*os.File{read}}.JSON(wire.Welcome{Protocol: wire.Protocol, Info: m.Info(), Ranges: m.Ranges()})
				_ = c.Send(w, time.Second)
				_, _ = c.Receive() // a request
				_ = c.Send(lie, time.Second)
				_, _ = c.Receive()
			}()
			vm, err := driver(dir).open(t.Context(), "liar")
			if err != nil {
				t.Fatal(err)
			}
			if err := vm.Pause(t.Context()); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("Pause = %v, want ErrMalformed", err)
			}
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
			<-done
			ln.Close()
		})
	}
}

// Others' sockets: root may, a user may not.
func TestPeerIsChecked(t *testing.T) {
	dir := folder(t)
	s := controltest.Serve(t, dir, controltest.New(t, "x"), control.Options{Allow: func(c *unix.Ucred) bool { return false }})
	if _, err := driver(dir).open(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), "neither root nor the VM's owner") || !errors.Is(err, fs.ErrPermission) {
		t.Errorf("Open = %v", err)
	}
	s.End(hypervisor.ErrGone)

	labtest.NeedRoot(t)
	claim, err := dir.Claim("y")
	if err != nil {
		t.Fatal(err)
	}
	defer claim.Release()
	if err := os.Chmod(string(dir), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := driver(dir).open(t.Context(), "y"); err == nil || !strings.Contains(err.Error(), "others can write") {
		t.Errorf("Open in a folder that all can write = %v", err)
	}
}
