package proc

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func TestKernelConstants(t *testing.T) {
	labtest.CheckConstants(t, []labtest.Constant{
		{Header: "include/linux/sched.h", Name: "PF_EXITING", Holds: labtest.Is(pfExiting)},
	})
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestProcessEnds(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	if p.StartTime == 0 || p.Check() != nil || p.CheckNow() != nil {
		t.Errorf("start time %d, %v", p.StartTime, p.Check())
	}
	// Start returns while the new program is still being set up.
	var args []string
	for deadline := time.Now().Add(30 * time.Second); len(args) == 0 && err == nil && time.Now().Before(deadline); {
		args, err = p.Cmdline(0)
	}
	if err != nil || !slices.Equal(args, []string{"sleep", "1000"}) {
		t.Errorf("Cmdline = %q, %v", args, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	<-p.done // the waiting goroutine notices by itself
	if err := p.Check(); !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("Check = %v", err)
	}
	for name, f := range map[string]func() error{
		"Maps":     func() error { _, err := p.Maps(); return err },
		"FDs":      func() error { _, err := p.FDs(); return err },
		"Cmdline":  func() error { _, err := p.Cmdline(0); return err },
		"Readlink": func() error { _, err := p.Readlink("exe"); return err },
		"Threads":  func() error { _, err := p.Threads(); return err },
	} {
		if err := f(); !errors.Is(err, hypervisor.ErrGone) {
			t.Errorf("%s after the end = %v, want ErrGone", name, err)
		}
	}
	if _, err := Open(cmd.Process.Pid); !errors.Is(err, hypervisor.ErrNotFound) {
		t.Errorf("Open of an ended process = %v", err)
	}
	for _, pid := range []int{0, -1, 1 << 30} {
		if _, err := Open(pid); !errors.Is(err, hypervisor.ErrNotFound) {
			t.Errorf("Open(%d) = %v", pid, err)
		}
	}
}

func TestOwnSockets(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock dir")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	tl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tl.Close() }()
	p, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	find := func() (listening, connected, waiting int) {
		all, err := p.UnixSockets()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range all {
			switch {
			case s.Path != path:
			case s.Listening:
				listening++
			case s.Connected:
				connected++
			default:
				waiting++
			}
		}
		return
	}
	if a, b, c := find(); a != 1 || b != 0 || c != 0 {
		t.Errorf("a listener: %d %d %d", a, b, c)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if a, b, c := find(); a != 1 || b != 0 || c != 1 {
		t.Errorf("a client in wait: %d %d %d", a, b, c)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = peer.Close() }()
	if a, b, c := find(); a != 1 || b != 1 || c != 0 {
		t.Errorf("a client: %d %d %d", a, b, c)
	}
	tcp, err := p.TCPSockets()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(tcp, func(s TCPSocket) bool { return s.Listening && s.Local.String() == tl.Addr().String() }) {
		t.Errorf("%v is not in %v", tl.Addr(), tcp)
	}
}

func TestParseMaps(t *testing.T) {
	vs, err := ParseMaps(testdata(t, "maps-pc-512m.txt"))
	if err != nil || len(vs) < 100 {
		t.Fatalf("%d mappings, %v", len(vs), err)
	}
	runs := Runs(vs, 512<<20)
	if len(runs) != 1 || runs[0][0].Perms != "rw-p" || runs[0][0].Inode != 0 {
		t.Errorf("RAM: %v", runs)
	}
	at := runs[0][0].Start
	if got := Covering(vs, at+4096, 512<<20-4096); len(got) == 0 {
		t.Error("RAM is not covered")
	}
	if got := Covering(vs, at, 512<<20+4096); got != nil {
		t.Errorf("RAM and what is behind it: %v", got)
	}
	for _, bad := range []string{"x\n", "1-0 rw-p 0 0:0 0\n", "0-zz rw-p 0 0:0 0\n", "0-1 rw-p\n"} {
		if _, err := ParseMaps([]byte(bad)); err == nil {
			t.Errorf("ParseMaps(%q) is taken", bad)
		}
	}
}

func TestRuns(t *testing.T) {
	vs, err := ParseMaps([]byte(`1000-2000 rw-p 00000000 00:00 0
2000-4000 rw-p 00000000 00:00 0
4000-5000 ---p 00000000 00:00 0
5000-8000 rw-s 00001000 00:01 7    /memfd:a b (deleted)
8000-9000 rw-s 00004000 00:01 7    /memfd:a b (deleted)
9000-a000 rw-s 00000000 00:01 7    /memfd:a b (deleted)
`))
	if err != nil {
		t.Fatal(err)
	}
	for size, want := range map[uint64][]uint64{0x1000: {0x1000, 0x8000, 0x9000}, 0x2000: {0x2000}, 0x3000: {0x1000, 0x5000}, 0x4000: {0x5000}, 0x5000: nil} {
		var got []uint64
		for _, r := range Runs(vs, size) {
			got = append(got, r[0].Start)
		}
		if !slices.Equal(got, want) {
			t.Errorf("Runs(%#x) at %#x, want %#x", size, got, want)
		}
	}
	if vs[3].Path != "/memfd:a b (deleted)" || !vs[3].Shared() {
		t.Errorf("%+v", vs[3])
	}
}

func TestParseSmall(t *testing.T) {
	if v, err := ParseStartTime([]byte("12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20\n")); v != 777 || err != nil {
		t.Errorf("start time %d, %v", v, err)
	}
	for _, bad := range []string{"", "1 (x) S", "1 x S 1"} {
		if _, err := ParseStartTime([]byte(bad)); err == nil {
			t.Errorf("ParseStartTime(%q) is taken", bad)
		}
	}
	s, err := ParseThreadSignals(testdata(t, "status-thread.txt"))
	if err != nil || !strings.HasPrefix(s.Name, "qemu") || s.Blocked&(1<<9) == 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := ParseThreadSignals([]byte("Name:\tx\n")); err == nil {
		t.Error("a status without masks is taken")
	}
	if n, ok := SocketInode("socket:[42]"); n != 42 || !ok {
		t.Error("socket inode")
	}
	if _, ok := SocketInode("pipe:[42]"); ok {
		t.Error("a pipe is taken")
	}
}

func FuzzMaps(f *testing.F) {
	f.Add(testdata(f, "maps-pc-512m.txt"), uint64(512<<20))
	f.Add([]byte("1000-2000 rw-p 00000000 00:00 0\n2000-4000 rw-p 00000000 00:00 0\n"), uint64(0x3000))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		vs, err := ParseMaps(b)
		if err != nil {
			return
		}
		for _, r := range Runs(vs, size) {
			var sum uint64
			for _, v := range r {
				sum += v.Size()
			}
			if sum != size {
				t.Fatalf("a run of %#x bytes, want %#x", sum, size)
			}
			_ = Covering(vs, r[0].Start, size)
		}
	})
}

func FuzzSmall(f *testing.F) {
	f.Add(testdata(f, "status-thread.txt"))
	f.Add([]byte("0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/qmp sock\n"))
	f.Add([]byte("   0: 0100007F:115C 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 777 1\n"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = ParseThreadSignals(b)
		_, _ = ParseStartTime(b)
		_ = ParseUnixSockets(b)
		_ = ParseTCPSockets(b)
		_ = SplitCmdline(b)
	})
}
