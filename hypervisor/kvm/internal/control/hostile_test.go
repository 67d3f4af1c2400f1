package control_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control/controltest"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/socketdir"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

func serve(t testing.TB, o control.Options) *controltest.Served {
	t.Helper()
	base, err := os.MkdirTemp("", "vms")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	return controltest.Serve(t, socketdir.Dir(filepath.Join(base, "v")), controltest.New(t, "m"), o)
}

var hello = wire.Message{Kind: wire.KindHello}.JSON(wire.Hello{Oldest: wire.Protocol, Newest: wire.Protocol})

// client is a client that says what it wants.
type client struct {
	*wire.Conn
	t testing.TB
}

func connect(t testing.TB, s *controltest.Served) *client {
	t.Helper()
	c := dial(t, s)
	if m := c.roundTrip(hello); m.Kind != wire.KindHello {
		t.Fatalf("answer to a hello: %+v", m)
	}
	return c
}

func dial(t testing.TB, s *controltest.Served) *client {
	c := &client{wire.NewConn(s.Dial(t)), t}
	t.Cleanup(func() { c.Close() })
	return c
}

func (c *client) send(m wire.Message) {
	c.t.Helper()
	if err := c.Send(m, 10*time.Second); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) roundTrip(m wire.Message) wire.Message {
	c.t.Helper()
	c.send(m)
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	r, err := c.Receive()
	if err != nil {
		c.t.Fatal(err)
	}
	r.CloseFiles()
	r.Body = bytes.Clone(r.Body)
	return r
}

// goodbye reads until the end, and returns what the machine has said last.
func (c *client) goodbye() error {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	var last error
	for {
		m, err := c.Receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.t.Fatal("the machine keeps the connection")
		}
		if err != nil {
			return last
		}
		m.CloseFiles()
		if m.Kind == wire.KindGoodbye {
			var e wire.Error
			if err := m.Into(&e); err != nil {
				c.t.Fatal(err)
			}
			last = e.Err()
		}
	}
}

func request(id uint64, m wire.Method) wire.Message {
	return wire.Message{Kind: wire.KindRequest, Method: m, ID: id}
}

// What is no protocol ends the connection, with a reason, and nothing else.
func TestJunkIsDisconnected(t *testing.T) {
	s := serve(t, control.Options{})
	good := connect(t, s)
	for name, m := range map[string]wire.Message{
		"a response":             {Kind: wire.KindResponse},
		"a second hello":         hello,
		"an event":               {Kind: wire.KindEvent},
		"a file for no save":     {Kind: wire.KindGive, Body: []byte("{}"), ID: 4},
		"a broken file for none": {Kind: wire.KindGive, Body: []byte("{")},
	} {
		c := connect(t, s)
		c.send(m)
		if err := c.goodbye(); !errors.Is(err, wire.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, m := range map[string]wire.Message{
		"no hello":      request(1, wire.MethodInfo),
		"an old hello":  wire.Message{Kind: wire.KindHello}.JSON(wire.Hello{}),
		"a newer hello": wire.Message{Kind: wire.KindHello}.JSON(wire.Hello{Oldest: wire.Protocol + 1, Newest: wire.Protocol + 5}),
		"no JSON":       {Kind: wire.KindHello},
	} {
		c := dial(t, s)
		c.send(m)
		if err := c.goodbye(); !errors.Is(err, wire.ErrMalformed) && !errors.Is(err, wire.ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := connect(t, s)
	for id := range uint64(2) { // the same ID while it is in use
		m := request(1, wire.MethodWrite)
		m.Body = wire.AppendWrite(nil, hypervisor.PhysAddr(id), make([]byte, wire.MaxWrite))
		c.send(m)
	}
	if r := good.roundTrip(request(1, wire.MethodInfo)); r.Kind != wire.KindResponse {
		t.Errorf("others are not served any more: %+v", r)
	}
}

// Requests that make no sense are answered with an error.
func TestWrongRequests(t *testing.T) {
	s := serve(t, control.Options{})
	c := connect(t, s)
	with := func(m wire.Method, body string) wire.Message {
		r := request(9, m)
		r.Body = []byte(body)
		return r
	}
	for name, m := range map[string]wire.Message{
		"an unknown method":     with(200, ""),
		"a hold without token":  with(wire.MethodHold, ""),
		"a release of no hold":  with(wire.MethodRelease, `{"token":5}`),
		"a trap, no channels":   with(wire.MethodSetTrap, `{"token":5,"trap":{"kind":"page"}}`),
		"a trap that is none":   with(wire.MethodSetTrap, `{"token":5,"trap":[]}`),
		"half a write":          with(wire.MethodWrite, "1234"),
		"a write to a hole":     with(wire.MethodWrite, string(wire.AppendWrite(nil, 1<<40, []byte{1}))),
		"registers of no vCPU":  with(wire.MethodSetRegisters, ""),
		"registers of vCPU 900": with(wire.MethodSetRegisters, string(wire.AppendRegisters(nil, &hypervisor.Registers{VCPU: 900}))),
		"dirty pages untracked": with(wire.MethodDirty, ""),
		"a balloon of text":     with(wire.MethodBalloon, `{"size":"big"}`),
	} {
		if r := c.roundTrip(m); r.Kind != wire.KindError || r.ID != 9 {
			t.Errorf("%s: %+v", name, r)
		} else {
			t.Logf("%s: %s", name, r.Body)
		}
	}
}

// A client that sends without end and never reads is disconnected, holds nothing
// up, and takes no more memory than a bound.
func TestClientThatNeverReads(t *testing.T) {
	s := serve(t, control.Options{Timeout: 100 * time.Millisecond})
	other := connect(t, s)
	c := connect(t, s)
	body := request(0, wire.MethodRegisters)
	var err error
	for id := uint64(1); err == nil && id < 10_000_000; id++ {
		body.ID = id
		err = c.Send(body, 10*time.Second)
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Send = %v, want the end of the connection", err)
	}
	if r := other.roundTrip(request(1, wire.MethodInfo)); r.Kind != wire.KindResponse {
		t.Errorf("others are not served any more: %+v", r)
	}
}

// A client that connects and says nothing does not stay.
func TestClientThatSaysNothing(t *testing.T) {
	s := serve(t, control.Options{Timeout: 50 * time.Millisecond})
	c := dial(t, s)
	if err := c.goodbye(); err == nil {
		t.Error("no goodbye")
	}
}

func TestTooManyClients(t *testing.T) {
	s := serve(t, control.Options{})
	var first *client
	for i := range 64 {
		c := connect(t, s)
		if i == 0 {
			first = c
		}
	}
	c := dial(t, s)
	if err := c.goodbye(); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("client 65: %v", err)
	}
	if err := first.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = first.goodbye()
	connect(t, s)
}

// Files that no one asked for are closed.
func TestFilesAreClosed(t *testing.T) {
	s := serve(t, control.Options{})
	c := connect(t, s)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	count := func() int {
		es, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(es)
	}
	before := count()
	for id := range uint64(50) {
		m := request(id, wire.MethodInfo)
		m.Files = []*os.File{null, null}
		if r := c.roundTrip(m); r.Kind != wire.KindResponse {
			t.Fatalf("%+v", r)
		}
		g := wire.Message{Kind: wire.KindGive, ID: 77, Files: []*os.File{null}}.JSON(wire.Give{Number: 3})
		c.send(g)
	}
	c.roundTrip(request(99, wire.MethodInfo))
	if after := count(); after != before {
		t.Errorf("%d open files before, %d after", before, after)
	}
}

// A trap whose answer makes no sense: the client goes, the guest runs on.
func TestWrongAnswers(t *testing.T) {
	for name, answer := range map[string]func(event []byte) []byte{
		"junk":         func([]byte) []byte { return []byte("junk") },
		"another":      func([]byte) []byte { return wire.AppendAnswer(nil, 99, &hypervisor.TrapAnswer{}) },
		"too long":     func([]byte) []byte { return make([]byte, wire.MaxTrap+1) },
		"unknown verb": func(ev []byte) []byte { return append(bytes.Clone(ev[:8]), 200, 0, 0, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, control.Options{})
			c := connect(t, s)
			c.send(request(1, wire.MethodChannels))
			r, err := c.Receive()
			if err != nil || len(r.Files) != 2 {
				t.Fatalf("%d channels, %v", len(r.Files), err)
			}
			var chs []*wire.Channel
			for _, f := range r.Files {
				ch, err := wire.OpenChannel(f)
				if err != nil {
					t.Fatal(err)
				}
				defer ch.Close()
				chs = append(chs, ch)
			}
			if m := c.roundTrip(request(1, wire.MethodSetTrap).JSON(wire.SetTrap{Token: 1, Trap: hypervisor.Trap{Kind: hypervisor.TrapPort}})); m.Kind != wire.KindResponse {
				t.Fatalf("%s", m.Body)
			}
			done := make(chan hypervisor.TrapAnswer)
			go func() { done <- s.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapPort, VCPU: 1}) }()
			buf := make([]byte, wire.MaxTrap)
			n, err := chs[1].Receive(buf)
			if err != nil {
				t.Fatal(err)
			}
			if err := chs[1].Send(answer(buf[:n])); err != nil {
				t.Fatal(err)
			}
			if a := <-done; a.Verb != hypervisor.TrapContinue {
				t.Errorf("the guest was answered %+v", a)
			}
			if err := c.goodbye(); !errors.Is(err, wire.ErrMalformed) {
				t.Errorf("goodbye: %v", err)
			}
			if left := s.Traps(); len(left) != 0 {
				t.Errorf("traps left: %v", left)
			}
		})
	}
}

// Readable's file cannot be written, however it is tried.
func TestReadable(t *testing.T) {
	m := controltest.New(t, "m")
	proc, err := os.Open("/proc")
	if err != nil {
		t.Fatal(err)
	}
	defer proc.Close()
	for _, from := range []*os.File{nil, proc} {
		f, err := control.Readable(m.MemoryFile(), from)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{1}, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("WriteAt = %v", err)
		}
		if _, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EACCES) {
			t.Errorf("a writable mapping: %v", err)
		}
		b := make([]byte, 8)
		if _, err := f.ReadAt(b, 0x3000); err != nil || !bytes.Equal(b, m.Load(0x3000, 8)) {
			t.Errorf("ReadAt = %x, %v", b, err)
		}
		f.Close()
	}
}

// FuzzClient sends whatever messages the fuzzer makes up. The machine must then
// be as it was, and serve others.
func FuzzClient(f *testing.F) {
	frame := func(ms ...wire.Message) []byte {
		var out []byte
		for _, m := range ms {
			b, err := m.Append(nil)
			if err != nil {
				f.Fatal(err)
			}
			out = append(binary.LittleEndian.AppendUint16(out, uint16(len(b))), b...)
		}
		return out
	}
	f.Add(frame(hello, request(1, wire.MethodInfo), request(2, wire.MethodRegisters)))
	f.Add(frame(hello, request(1, wire.MethodChannels), request(2, wire.MethodSetTrap).JSON(wire.SetTrap{Token: 3, Trap: hypervisor.Trap{Kind: hypervisor.TrapPage, Addr: 4096, Size: 8}})))
	f.Add(frame(hello, request(1, wire.MethodHold).JSON(wire.Token{Token: 1}), request(2, wire.MethodStartDirty), request(3, wire.MethodDirty)))
	f.Add(frame(hello, request(1, wire.MethodSave).JSON(wire.Save{Parent: true}), wire.Message{Kind: wire.KindGive, ID: 1}.JSON(wire.Give{Number: 1, Error: &wire.Error{Text: "no"}})))
	f.Add(frame(hello, request(1, wire.MethodWrite), wire.Message{Kind: wire.KindCancel, ID: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := serve(t, control.Options{Timeout: 2 * time.Second})
		nc := s.Dial(t)
		for len(b) >= 2 {
			n := int(binary.LittleEndian.Uint16(b))
			b = b[2:]
			m := b[:min(n, len(b))]
			b = b[len(m):]
			if len(m) == 0 {
				continue
			}
			if _, err := nc.Write(m); err != nil {
				break
			}
		}
		if err := nc.CloseWrite(); err != nil {
			t.Log(err)
		}
		c := &client{wire.NewConn(nc), t}
		_ = c.goodbye()
		if n := len(s.Traps()); n != 0 || s.Holds() != 0 {
			t.Errorf("%d traps and %d holds left", n, s.Holds())
		}
		select {
		case <-s.Done: // it was asked to
		default:
			if r := connect(t, s).roundTrip(request(1, wire.MethodInfo)); r.Kind != wire.KindResponse {
				t.Errorf("others are not served any more: %+v", r)
			}
		}
	})
}
