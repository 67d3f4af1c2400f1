package wire

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// pair returns two connected sockets.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cs [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		cs[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return cs[0], cs[1]
}

func openFiles(t testing.TB) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

func TestConnCarriesMessagesAndFiles(t *testing.T) {
	ac, bc := pair(t)
	a, b := NewConn(ac), NewConn(bc)
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := openFiles(t)
	for i, m := range []Message{
		{Kind: KindHello, Body: []byte("{}")},
		{Kind: KindResponse, ID: 1, Body: bytes.Repeat([]byte{7}, MaxBody)},
		{Kind: KindGive, ID: 2, Files: []*os.File{f}},
		{Kind: KindResponse, ID: 3, Files: repeat(f, MaxFiles)},
		{Kind: KindCancel, ID: 4},
	} {
		if err := a.Send(m, time.Second); err != nil {
			t.Fatal(err)
		}
		got, err := b.Receive()
		if err != nil || got.Kind != m.Kind || got.ID != m.ID || !bytes.Equal(got.Body, m.Body) || len(got.Files) != len(m.Files) {
			t.Fatalf("message %d: %+v, %v", i, got, err)
		}
		for _, g := range got.Files {
			if _, err := g.WriteString("x"); err != nil {
				t.Error(err)
			}
		}
		got.CloseFiles()
	}
	if st, err := f.Stat(); err != nil || st.Size() != 1+MaxFiles {
		t.Errorf("what was passed is another file: %v, %v", st, err)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d open files before, %d after", before, after)
	}
	if _, err := (Message{Files: repeat(f, MaxFiles+1)}).Append(nil); err == nil {
		t.Error("too many files were taken")
	}
	cred, err := a.Peer()
	if err != nil || int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Getuid() {
		t.Errorf("peer: %+v, %v", cred, err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("Receive after the end: %v", err)
	}
}

func repeat(f *os.File, n int) []*os.File {
	fs := make([]*os.File, n)
	for i := range fs {
		fs[i] = f
	}
	return fs
}

// Whatever a peer sends, Receive returns an error and keeps no file open.
func TestConnRefusesJunk(t *testing.T) {
	good, err := Message{Kind: KindHello, Body: []byte("{}")}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	rights := func(n int) []byte {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(os.Stdin.Fd())
		}
		return unix.UnixRights(fds...)
	}
	for name, c := range map[string]struct{ b, oob []byte }{
		"a byte":          {[]byte{1}, nil},
		"half a header":   {good[:headerSize-1], nil},
		"a lying length":  {append([]byte{1}, good[1:]...), nil},
		"too long":        {make([]byte, MaxMessage+1), nil},
		"far too long":    {make([]byte, 2*MaxMessage), nil},
		"an unknown kind": {func() []byte { b := bytes.Clone(good); b[4] = byte(kindEnd); return b }(), nil},
		"unclaimed files": {good, rights(3)},
		"too many files":  {good, rights(MaxFiles + 20)},
		"missing files":   {func() []byte { b := bytes.Clone(good); b[6] = 2; return b }(), rights(1)},
		"junk with files": {[]byte{9, 9, 9}, rights(2)},
	} {
		t.Run(name, func(t *testing.T) {
			a, bc := pair(t)
			b := NewConn(bc)
			before := openFiles(t)
			if _, _, err := a.WriteMsgUnix(c.b, c.oob, nil); err != nil {
				t.Fatal(err)
			}
			if m, err := b.Receive(); !errors.Is(err, ErrMalformed) {
				t.Errorf("Receive = %+v, %v; want ErrMalformed", m, err)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d open files before, %d after", before, after)
			}
		})
	}
}

// A peer that does not read makes Send fail after its timeout, not block.
func TestConnSendTimesOut(t *testing.T) {
	ac, _ := pair(t)
	a := NewConn(ac)
	m := Message{Kind: KindEvent, Body: make([]byte, MaxBody)}
	for range 1000 {
		if err := a.Send(m, 10*time.Millisecond); err != nil {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Send = %v", err)
			}
			return
		}
	}
	t.Error("Send never failed")
}

func channels(t testing.TB, timeout time.Duration) (ours, theirs *Channel) {
	t.Helper()
	ours, f, err := NewChannels(timeout)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = OpenChannel(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

func TestChannelEnds(t *testing.T) {
	buf := make([]byte, MaxTrap)
	ours, theirs := channels(t, time.Minute)
	// Shutdown at one end wakes who waits at both.
	for _, end := range []func(){ours.Shutdown, func() { ours.Close() }} {
		var wg sync.WaitGroup
		for _, c := range []*Channel{ours, theirs} {
			wg.Go(func() {
				if n, err := c.Receive(make([]byte, 8)); n != 0 || !errors.Is(err, io.EOF) {
					t.Errorf("Receive = %d, %v", n, err)
				}
			})
		}
		end()
		wg.Wait()
	}
	if err := theirs.Send([]byte{1}); err == nil {
		t.Error("Send to a closed channel")
	}
	if err := ours.Send([]byte{1}); err == nil {
		t.Error("Send on a closed channel")
	}
	if err := ours.Close(); err != nil {
		t.Error(err)
	}

	ours, theirs = channels(t, 10*time.Millisecond)
	if _, err := ours.Receive(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Receive of nothing: %v", err)
	}
	// One that is never read fills up, and does not block.
	var err error
	for range 10_000 {
		if err = ours.Send(buf); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("Send without end: %v", err)
	}
	theirs.Close()
	if _, err := ours.Receive(buf); !errors.Is(err, io.EOF) {
		t.Errorf("Receive of a dead peer: %v", err)
	}
}

// BenchmarkRoundTrip is the way of a trap: event, handler in another process,
// answer. The asking side is a locked thread, as a vCPU's is.
func BenchmarkRoundTrip(b *testing.B) {
	for _, how := range []string{"channel", "poller"} {
		b.Run(how, func(b *testing.B) {
			ours, file, err := NewChannels(5 * time.Second)
			if err != nil {
				b.Fatal(err)
			}
			defer ours.Close()
			cmd := exec.CommandContext(b.Context(), "/proc/self/exe")
			cmd.Env = append(os.Environ(), echoEnv+"="+how)
			cmd.ExtraFiles = []*os.File{file}
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			file.Close()
			ask := ours.Send
			answer := ours.Receive
			if how == "poller" {
				fd, err := unix.Dup(ours.fd)
				if err != nil {
					b.Fatal(err)
				}
				f := os.NewFile(uintptr(fd), "socket")
				c, err := net.FileConn(f)
				f.Close()
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				ask = func(p []byte) error { _, err := c.Write(p); return err }
				answer = c.Read
			}
			ev := hypervisor.TrapEvent{Kind: hypervisor.TrapPage, Old: make([]byte, 8), New: make([]byte, 8), Registers: hypervisor.Registers{Valid: everyGroup}}
			in, out := make([]byte, MaxTrap), []byte(nil)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for b.Loop() {
				out = AppendEvent(out[:0], 1, &ev)
				if err := ask(out); err != nil {
					b.Fatal(err)
				}
				n, err := answer(in)
				if err == nil {
					_, _, err = ParseAnswer(in[:n])
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			ours.Shutdown()
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// echoEnv makes the test binary a client that answers events.
const echoEnv = "VANTAGE_WIRE_ECHO"

func echo(how string) error {
	f := os.NewFile(3, "socket")
	var in func([]byte) (int, error)
	var out func([]byte) error
	if how == "poller" {
		c, err := net.FileConn(f)
		if err != nil {
			return err
		}
		defer c.Close()
		in, out = c.Read, func(p []byte) error { _, err := c.Write(p); return err }
	} else {
		c, err := OpenChannel(f)
		if err != nil {
			return err
		}
		defer c.Close()
		in, out = c.Receive, c.Send
	}
	buf, ans := make([]byte, MaxTrap), []byte(nil)
	for {
		n, err := in(buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var ev hypervisor.TrapEvent
		number, err := ParseEvent(buf[:n], &ev)
		if err != nil {
			return err
		}
		ans = AppendAnswer(ans[:0], number, &hypervisor.TrapAnswer{Verb: hypervisor.TrapContinue})
		if err := out(ans); err != nil {
			return err
		}
	}
}
