package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/node"
)

// oneVMDriver is a driver whose one VM is called web.
type oneVMDriver struct{ vm hypervisor.VM }

func (d oneVMDriver) Name() string { return "kvm" }

func (d oneVMDriver) List(context.Context) ([]hypervisor.Info, error) {
	return []hypervisor.Info{d.vm.Info()}, nil
}

func (d oneVMDriver) Open(context.Context, string) (hypervisor.VM, error) { return d.vm, nil }

// watching is a run of watch.
type watching struct {
	t      *testing.T
	cancel context.CancelFunc // Ctrl-C
	stdout bytes.Buffer
	stderr said
	status chan int
}

// said is what a command says, for who waits for it to say something.
type said struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // has room for one
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return s.text.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// watchVM starts watch on vm, and returns when its traps are set. Its output goes
// to out; nil: it is kept.
func watchVM(t *testing.T, vm hypervisor.VM, out io.Writer, args ...string) *watching {
	t.Helper()
	w := &watching{t: t, status: make(chan int, 1)}
	w.stderr.more = make(chan struct{}, 1)
	if out == nil {
		out = &w.stdout
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.cancel = cancel
	t.Cleanup(cancel)
	a := &app{stdin: strings.NewReader(""), stdout: out, stderr: &w.stderr, version: "test", drivers: []node.Driver{oneVMDriver{vm}}}
	go func() { w.status <- a.run(ctx, append([]string{"watch", "web", "--cache-dir", ""}, args...)) }()
	late := time.After(20 * time.Second)
	for !strings.Contains(w.stderr.String(), "watch") {
		select {
		case <-w.stderr.more:
		case <-late:
			t.Fatal("no trap was set")
		}
	}
	return w
}

// end waits for the command's end.
func (w *watching) end() result {
	w.t.Helper()
	select {
	case status := <-w.status:
		return result{w.stdout.String(), w.stderr.String(), status}
	case <-time.After(20 * time.Second):
		w.t.Fatal("watch does not end")
	}
	return result{}
}

// summary is the last line of stderr.
func summary(t *testing.T, r result) map[string]any {
	t.Helper()
	os := objects(t, r.stderr)
	last := os[len(os)-1]
	if last["summary"] != true {
		t.Fatalf("no summary at the end: %s", r.stderr)
	}
	return last
}

func noTraps(t *testing.T, f *hypervisortest.Fake) {
	t.Helper()
	if ts := f.Traps(); len(ts) > 0 {
		t.Errorf("traps are left: %+v", ts)
	}
}

func TestWatchPrintsEvents(t *testing.T) {
	f := pagedFake()
	w := watchVM(t, f, nil, "--json", "--count", "5", "--write", "virt:0xffffffff80000010", "--hw", "rw:0x401000", "--msr", "w:LSTAR",
		"--port", "r:0x3f8:8", "--shutdown", "--rate", "0")
	for i, want := range []hypervisor.Trap{
		{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: 0x5010, Size: 8},
		{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessRead | hypervisor.AccessWrite, Virt: 0x401000, Size: 8, VCPU: hypervisor.AllVCPUs},
		{Kind: hypervisor.TrapMSR, Access: hypervisor.AccessWrite, MSR: 0xc000_0082},
		{Kind: hypervisor.TrapPort, Access: hypervisor.AccessRead, Port: 0x3f8, Count: 8},
		{Kind: hypervisor.TrapShutdown},
	} {
		if ts := f.Traps(); len(ts) != 5 || ts[i] != want {
			t.Fatalf("traps %+v, want %+v", ts, want)
		}
	}
	f.Store(0x5010, []byte{1, 2})
	f.GuestWrite([]byte("\x1b["), 0x5010)
	f.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapHardware, Access: hypervisor.AccessRead, Virt: 0x401000, Known: hypervisor.KnownVirt, Landed: true})
	f.Fire(hypervisor.TrapEvent{
		Kind: hypervisor.TrapMSR, VCPU: 1, Access: hypervisor.AccessWrite, MSR: 0xc000_0082, Size: 8, Value: 1<<64 - 1,
		Known: hypervisor.KnownRIP, Registers: hypervisor.Registers{Valid: hypervisor.GroupGeneral | hypervisor.GroupControl, RIP: 1<<64 - 4096, RDI: 7, CR3: 0x1000},
	})
	f.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapPort, Access: hypervisor.AccessRead, Port: 0x3fd, Size: 1})
	f.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapShutdown})
	r := w.end()
	os := objects(t, r.stdout)
	if r.status != exitOK || len(os) != 5 {
		t.Fatalf("status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	noTraps(t, f)
	for i, want := range []map[string]any{
		{"vm": "web", "trap": "write virt:0xffffffff80000010", "kind": "page", "access": "write", "phys_addr": "0x5010", "old": "0102", "new": "1b5b",
			"mechanism": "read-only-slot", "answer": "continue", "virt_addr": nil, "rip": nil, "size": 2.0, "sequence": 1.0},
		{"kind": "hardware", "access": "read or write", "virt_addr": "0x401000", "landed": true},
		{"kind": "msr", "vcpu": 1.0, "msr": "0xc0000082", "msr_name": "LSTAR", "value": "0xffffffffffffffff", "rip": "0xfffffffffffff000", "rip_exact": true},
		{"kind": "port", "access": "read", "port": "0x3fd", "value": nil},
		{"kind": "shutdown", "trap": "shutdown"},
	} {
		for k, v := range want {
			if os[i][k] != v {
				t.Errorf("event %d: %s is %v, want %v", i, k, os[i][k], v)
			}
		}
	}
	if regs, ok := os[2]["registers"].(map[string]any); !ok || regs["rdi"] != "0x7" || regs["cr3"] != "0x1000" {
		t.Errorf("registers: %v", os[2]["registers"])
	}
	if s := summary(t, r); s["events"] != 5.0 || s["dropped"] != 0.0 || s["vm"] != "web" {
		t.Errorf("summary: %v", s)
	}
}

func TestWatchText(t *testing.T) {
	f := pagedFake()
	w := watchVM(t, f, nil, "--write", "0x6000", "--break", "0x7000", "--msr", "rw:0x174", "--port", "rw:0x80")
	f.GuestWrite([]byte("\x1b]0;x"), 0x6000)
	f.GuestWrite(bytes.Repeat([]byte{0xab}, 40), 0x6000)
	regs := hypervisor.Registers{Valid: hypervisor.GroupGeneral, RIP: 0xffff_ffff_8100_0000}
	f.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapBreakpoint, VCPU: 3, Access: hypervisor.AccessExecute, Addr: 0x7000, Registers: regs, Known: hypervisor.KnownAddr | hypervisor.KnownRIP})
	f.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapMSR, Access: hypervisor.AccessWrite, MSR: 0x174, Old: []byte{0x10, 0}, New: []byte{0, 1}, Registers: regs, Known: hypervisor.KnownOld | hypervisor.KnownNew})
	f.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapPort, Access: hypervisor.AccessWrite, Port: 0x80, New: []byte{0x55}, Known: hypervisor.KnownNew})
	w.cancel()
	r := w.end()
	if r.status != exitOK || !strings.Contains(r.stderr, "web: 5 events in ") || !strings.Contains(r.stderr, ", 0 dropped\n") {
		t.Errorf("status %d: %s", r.status, r.stderr)
	}
	noTraps(t, f)
	lines := strings.Split(r.stdout, "\n")
	if len(lines) != 7 || lines[0]+"\n" != watchHeader {
		t.Fatalf("%q", r.stdout)
	}
	for i, want := range []string{
		"   0 write  0x6000     -                   0000000000 -> 1b5d303b78",
		" -> abababababababababababababababababababababababababababababababab…",
		"   3 break  0x7000      0xffffffff81000000",
		"   0 wrmsr  SYSENTER_CS ~0xffffffff81000000 0x10 -> 0x100",
		"   0 out    0x80       -                   -> 0x55",
	} {
		if line := lines[i+1]; !strings.Contains(line, want) {
			t.Errorf("line %q, want %q", line, want)
		}
	}
}

// Ctrl-C removes the traps, also while no one reads what is printed; who reads
// then gets all of it.
func TestWatchInterrupted(t *testing.T) {
	f := pagedFake()
	pr, pw := io.Pipe()
	w := watchVM(t, f, pw, "--write", "0x6000", "--exec", "0x7000:4096", "--json")
	for range 3 {
		f.GuestWrite([]byte{1}, 0x6000)
	}
	w.cancel()
	eventually(t, "the traps are removed", func() bool { return len(f.Traps()) == 0 })
	select {
	case status := <-w.status:
		t.Fatalf("it ended with status %d before its output was read", status)
	default:
	}
	var out []byte
	var err error
	read := make(chan struct{})
	go func() {
		defer close(read)
		out, err = io.ReadAll(pr)
	}()
	r := w.end()
	pw.Close()
	<-read
	if err != nil || r.status != exitOK || len(objects(t, string(out))) != 3 || summary(t, r)["events"] != 3.0 {
		t.Errorf("status %d, %v: %s%s", r.status, err, out, r.stderr)
	}
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// What was not told is counted, and is no whole answer.
func TestWatchDropped(t *testing.T) {
	f := pagedFake()
	pr, pw := io.Pipe()
	w := watchVM(t, f, pw, "--port", "w:0x80", "--json")
	const more = 3
	for i := range watchQueue + more + 1 {
		f.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapPort, Access: hypervisor.AccessWrite, Port: 0x80})
		if i == 0 { // the printer holds one, and is stuck with it
			b := make([]byte, 1)
			if _, err := pr.Read(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	go func() { _, _ = io.Copy(io.Discard, pr) }()
	w.cancel()
	r := w.end()
	pw.Close()
	s := summary(t, r)
	if r.status != exitIncomplete || s["events"] != float64(watchQueue+1) || s["dropped"] != float64(more) {
		t.Errorf("queue: status %d: %v", r.status, s)
	}

	for what, ev := range map[string]hypervisor.TrapEvent{
		"7 were above --rate":     {Kind: hypervisor.TrapPort, Dropped: 7},
		"1 breakpoints were lost": {Kind: hypervisor.TrapBreakpoint, Access: hypervisor.AccessWrite, Lost: true},
	} {
		f = pagedFake()
		w = watchVM(t, f, nil, "--port", "w:0x80", "--break", "0x7000")
		f.Fire(ev)
		w.cancel()
		if r := w.end(); r.status != exitIncomplete || !strings.Contains(r.stderr, what) {
			t.Errorf("%s: status %d: %s", what, r.status, r.stderr)
		}
	}
}

// An answer changes what the guest does, as often as its events are told.
func TestWatchAnswers(t *testing.T) {
	f := pagedFake()
	w := watchVM(t, f, nil, "--write", "0x6000:1", "--answer", "skip", "--count", "1")
	if ts := f.Traps(); ts[0].MaxRate != 0 {
		t.Errorf("a veto has a rate of %d", ts[0].MaxRate)
	}
	f.GuestWrite([]byte{1}, 0x6000)
	if b := f.Load(0x6000, 1); b[0] != 0 {
		t.Error("what was to be skipped was written")
	}
	f.GuestWrite([]byte{2}, 0x6000)
	if b := f.Load(0x6000, 1); b[0] != 2 {
		t.Error("a write behind the last event was skipped untold")
	}
	if r := w.end(); r.status != exitOK {
		t.Errorf("status %d: %s", r.status, r.stderr)
	}

	f = pagedFake()
	w = watchVM(t, f, nil, "--write", "0x6000", "--answer", "pause", "--count", "1", "--mechanism", "userfaultfd")
	if ts := f.Traps(); ts[0].Mechanism != hypervisor.MechanismUserfault {
		t.Errorf("mechanism %q", ts[0].Mechanism)
	}
	f.GuestWrite([]byte{1}, 0x6000)
	if r := w.end(); r.status != exitOK || !strings.Contains(r.stderr, "'vantage resume'") {
		t.Errorf("status %d: %s", r.status, r.stderr)
	}
}

// endingVM is a VM that tells of its end.
type endingVM struct {
	*hypervisortest.Fake
	end chan error
}

func (vm endingVM) Events(ctx context.Context, _ func(hypervisor.MachineEvent)) error {
	select {
	case err := <-vm.end:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func TestWatchEnds(t *testing.T) {
	f := pagedFake()
	w := watchVM(t, f, nil, "--write", "0x6000", "--for", "10ms")
	if r := w.end(); r.status != exitOK {
		t.Errorf("--for: status %d: %s", r.status, r.stderr)
	}
	noTraps(t, f)

	vm := endingVM{pagedFake(), make(chan error, 1)}
	w = watchVM(t, vm, nil, "--write", "0x6000")
	vm.Fail(hypervisortest.Failure{Method: hypervisortest.MethodRemoveTrap, Err: hypervisor.ErrGone})
	vm.end <- fmt.Errorf("VM web: %w", hypervisor.ErrGone)
	if r := w.end(); r.status != exitOK || !strings.Contains(r.stderr, "the VM has ended") {
		t.Errorf("VM that ends: status %d: %s", r.status, r.stderr)
	}

	vm = endingVM{pagedFake(), make(chan error, 1)}
	w = watchVM(t, vm, nil, "--write", "0x6000")
	vm.end <- errors.New("connection is broken")
	if r := w.end(); r.status != exitFailed || !strings.Contains(r.stderr, "connection is broken") {
		t.Errorf("connection that breaks: status %d: %s", r.status, r.stderr)
	}
	noTraps(t, vm.Fake)

	f = pagedFake()
	w = watchVM(t, f, failingWriter{}, "--write", "0x6000", "--json")
	f.GuestWrite([]byte{1}, 0x6000)
	if r := w.end(); r.status != exitFailed || !strings.Contains(r.stderr, "disk full") {
		t.Errorf("full disk: status %d: %s", r.status, r.stderr)
	}
	noTraps(t, f)
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errors.New("disk full") }
