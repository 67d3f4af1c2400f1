package kvm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control/controltest"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

var writes = hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: 0x5000, Size: 8}

// eventually waits until ok holds.
func eventually(t testing.TB, what string, ok func() bool) {
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

func TestMachineRequests(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	controltest.Serve(t, dir, m, control.Options{})
	vm := open(t, driver(dir), "m")
	ctx := t.Context()
	for range 2 {
		if err := vm.PowerButton(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := vm.Reset(ctx); err != nil {
		t.Error(err)
	}
	if err := vm.SetBalloon(ctx, 1<<20); err != nil {
		t.Error(err)
	}
	if m.Presses() != 2 || m.Resets() != 1 || m.Balloon() != 1<<20 {
		t.Errorf("%d presses, %d resets, balloon %d", m.Presses(), m.Resets(), m.Balloon())
	}
	// Errors keep what a caller branches on.
	err := vm.SetBalloon(ctx, 5)
	var no *hypervisor.NotSupportedError
	if !errors.As(err, &no) || no.Remedy != "whole pages" || !errors.Is(err, hypervisor.ErrNotSupported) {
		t.Errorf("SetBalloon(5) = %v", err)
	}
	// A long write, in parts, into a hole: what was done is told.
	p := bytes.Repeat([]byte{0xab}, 300_000)
	n, err := vm.WritePhys(p, 2<<20-100_000)
	var at *hypervisor.AddressError
	if n != 100_000 || !errors.As(err, &at) || at.Addr != 2<<20 {
		t.Errorf("WritePhys = %d, %v", n, err)
	}
	if got := m.Load(2<<20-100_000, 100_000); !bytes.Equal(got, p[:100_000]) {
		t.Error("what was written is not there")
	}
	// Cancelled before it was sent.
	gone, cancel := context.WithCancel(ctx)
	cancel()
	if err := vm.Pause(gone); !errors.Is(err, context.Canceled) {
		t.Errorf("Pause with a cancelled context = %v", err)
	}
	if s, err := vm.State(ctx); s != hypervisor.StateRunning || err != nil {
		t.Errorf("State = %v, %v", s, err)
	}
	// Memory cannot be written through what a client gets.
	view, err := vm.MapPhys(0, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mprotect(view, unix.PROT_READ|unix.PROT_WRITE); !errors.Is(err, unix.EACCES) {
		t.Errorf("a client made its view of memory writable: %v", err)
	}
}

func TestHolds(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	controltest.Serve(t, dir, m, control.Options{})
	d := driver(dir)
	a, b := open(t, d, "m"), open(t, d, "m")
	ctx := t.Context()
	var releases []func() error
	for _, vm := range []*VM{a, a, b} {
		r, err := vm.Hold(ctx)
		if err != nil {
			t.Fatal(err)
		}
		releases = append(releases, r)
	}
	if s, err := b.State(ctx); m.Holds() != 3 || s != hypervisor.StatePaused || err != nil {
		t.Errorf("%d holds, state %s, %v", m.Holds(), s, err)
	}
	for range 2 { // to release twice is no harm
		if err := releases[0](); err != nil {
			t.Error(err)
		}
	}
	if m.Holds() != 2 {
		t.Errorf("%d holds", m.Holds())
	}
	if err := a.Close(); err != nil { // takes its other one along
		t.Error(err)
	}
	if m.Holds() != 1 {
		t.Errorf("%d holds after a client closed", m.Holds())
	}
	if err := releases[1](); err != nil {
		t.Errorf("release after Close: %v", err)
	}
	if err := releases[2](); err != nil || m.Holds() != 0 {
		t.Errorf("%d holds, %v", m.Holds(), err)
	}
	if s, err := b.State(ctx); s != hypervisor.StateRunning || err != nil {
		t.Errorf("state %s, %v", s, err)
	}
	var last error
	for range 100 {
		if _, last = b.Hold(ctx); last != nil {
			break
		}
	}
	if !errors.Is(last, hypervisor.ErrNoResources) {
		t.Errorf("holds without end: %v", last)
	}
}

// Traps of several clients: each gets its own, with its own IDs, and answers.
func TestTrapsOfManyClients(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	controltest.Serve(t, dir, m, control.Options{})
	d := driver(dir)
	var mu sync.Mutex
	got := map[string]int{}
	var ids []hypervisor.TrapID
	vms := []*VM{open(t, d, "m"), open(t, d, "m")}
	for i, vm := range vms {
		for k := range 3 {
			var id hypervisor.TrapID
			var err error
			id, err = vm.SetTrap(t.Context(), writes, func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
				// What a handler may do: read memory and registers.
				if _, err := vm.Registers(context.Background()); err != nil {
					t.Errorf("Registers in a handler: %v", err)
				}
				if _, err := vm.ReadPhys(make([]byte, 8), ev.Addr); err != nil {
					t.Errorf("ReadPhys in a handler: %v", err)
				}
				mu.Lock()
				defer mu.Unlock()
				got[fmt.Sprint(i, k, string(ev.New))]++
				return hypervisor.TrapAnswer{Verb: hypervisor.TrapEmulate, Value: []byte("EMULATED")}
			})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
	}
	m.GuestWrite([]byte("GUESTBYT"), 0x5000)
	mu.Lock()
	for i := range 2 {
		for k := range 3 {
			if got[fmt.Sprint(i, k, "GUESTBYT")] != 1 {
				t.Errorf("trap %d of client %d: %v", k, i, got)
			}
		}
	}
	mu.Unlock()
	if b := m.Load(0x5000, 8); string(b) != "EMULATED" {
		t.Errorf("memory holds %q", b)
	}
	if err := vms[0].RemoveTrap(t.Context(), ids[1]); err != nil {
		t.Error(err)
	}
	if err := vms[0].RemoveTrap(t.Context(), 4711); !errors.Is(err, hypervisor.ErrNotFound) {
		t.Errorf("RemoveTrap of no trap = %v", err)
	}
	if n := len(m.Traps()); n != 5 {
		t.Errorf("%d traps, want 5", n)
	}
	if err := vms[0].Close(); err != nil {
		t.Error(err)
	}
	if n := len(m.Traps()); n != 3 {
		t.Errorf("%d traps after a client closed, want 3", n)
	}
}

// All vCPUs stop at the same time, and their handlers run at the same time.
func TestHandlersRunAtTheSameTime(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	controltest.Serve(t, dir, m, control.Options{})
	vm := open(t, driver(dir), "m")
	both := make(chan struct{}, 2)
	meet := sync.OnceFunc(func() { close(both) })
	var here sync.WaitGroup
	here.Add(2)
	go func() { here.Wait(); meet() }()
	for v := range 2 {
		tr := hypervisor.Trap{Kind: []hypervisor.TrapKind{hypervisor.TrapMSR, hypervisor.TrapPort}[v]}
		if _, err := vm.SetTrap(t.Context(), tr, func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
			here.Done()
			<-both
			return hypervisor.TrapAnswer{Verb: hypervisor.TrapSkip}
		}); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for v, k := range []hypervisor.TrapKind{hypervisor.TrapMSR, hypervisor.TrapPort} {
		wg.Go(func() {
			if a := m.Fire(hypervisor.TrapEvent{Kind: k, VCPU: v}); a.Verb != hypervisor.TrapSkip {
				t.Errorf("answer %+v", a)
			}
		})
	}
	wg.Wait()
}

// A client that does not answer loses its traps and its connection, and is told;
// the guest runs on.
func TestUnansweredTrap(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	controltest.Serve(t, dir, m, control.Options{Timeout: 50 * time.Millisecond})
	d := driver(dir)
	vm := open(t, d, "m")
	release := make(chan struct{})
	if _, err := vm.SetTrap(t.Context(), writes, func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
		<-release
		return hypervisor.TrapAnswer{Verb: hypervisor.TrapSkip}
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.GuestWrite([]byte("through!"), 0x5000)
	if b := m.Load(0x5000, 8); string(b) != "through!" {
		t.Errorf("memory holds %q", b)
	}
	eventually(t, "its traps and holds are gone", func() bool { return len(m.Traps()) == 0 && m.Holds() == 0 })
	close(release)
	eventually(t, "the client is told", func() bool { return vm.c.ended() != nil })
	if err := vm.Pause(t.Context()); !errors.Is(err, wire.ErrUnresponsive) {
		t.Errorf("Pause after that = %v", err)
	}
	open(t, d, "m") // others are served as before
}

// A machine that ends: every method of every client says so.
func TestEndOfMachine(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	s := controltest.Serve(t, dir, m, control.Options{})
	vm := open(t, driver(dir), "m")
	var seen []hypervisor.MachineEvent
	events := make(chan error, 1)
	subscribed := make(chan struct{})
	var once sync.Once
	go func() {
		events <- vm.Events(t.Context(), func(e hypervisor.MachineEvent) {
			seen = append(seen, e)
			once.Do(func() { close(subscribed) })
		})
	}()
	eventually(t, "events come", func() bool {
		s.Server.Tell(wire.Event{Kind: "paused", Time: time.Now()})
		select {
		case <-subscribed:
			return true
		default:
			return false
		}
	})
	stopped := make(chan error, 1)
	go func() { stopped <- vm.Stop(t.Context()) }()
	<-m.Done
	s.Server.Tell(wire.Event{Kind: "stopped", Detail: "by its owner"})
	s.End(fmt.Errorf("stopped: %w", hypervisor.ErrGone))
	if err := <-stopped; err != nil {
		t.Errorf("Stop = %v", err)
	}
	if err := <-events; !errors.Is(err, hypervisor.ErrGone) {
		t.Errorf("Events = %v", err)
	}
	if last := seen[len(seen)-1]; last.Kind != hypervisor.MachineStopped || last.Detail != "by its owner" {
		t.Errorf("the last event is %+v", last)
	}
	ctx := t.Context()
	for name, err := range map[string]error{
		"Pause":    vm.Pause(ctx),
		"ReadPhys": func() error { _, err := vm.ReadPhys(make([]byte, 1), 0); return err }(),
		"MapPhys":  func() error { _, err := vm.MapPhys(0, 1); return err }(),
		"Write":    func() error { _, err := vm.WritePhys([]byte{1}, 0); return err }(),
		"SetTrap":  func() error { _, err := vm.SetTrap(ctx, writes, nil); return err }(),
		"Dirty":    func() error { _, err := vm.Dirty(ctx); return err }(),
		"Save":     vm.Save(ctx, filepath.Join(t.TempDir(), "s"), "", nil),
	} {
		if !errors.Is(err, hypervisor.ErrGone) {
			t.Errorf("%s after the end = %v, want ErrGone", name, err)
		}
	}
	if s := vm.Info().State; s != hypervisor.StateUnknown {
		t.Errorf("state %s", s)
	}
}

func TestSlowReaderOfEvents(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	s := controltest.Serve(t, dir, m, control.Options{})
	vm := open(t, driver(dir), "m")
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	gate, first := make(chan struct{}), make(chan struct{})
	var dropped, told uint64
	done := make(chan error, 1)
	go func() {
		done <- vm.Events(ctx, func(e hypervisor.MachineEvent) {
			if told++; told == 1 {
				close(first)
				<-gate
			}
			dropped += e.Dropped
			if e.Kind == hypervisor.MachinePanicked {
				cancel(enough)
			}
		})
	}()
	sent := uint64(0)
	eventually(t, "the first event comes", func() bool {
		s.Server.Tell(wire.Event{Kind: "reset"})
		sent++
		select {
		case <-first:
			return true
		default:
			return false
		}
	})
	before := sent
	for range 5000 {
		s.Server.Tell(wire.Event{Kind: "reset"})
		sent++
	}
	close(gate)
	eventually(t, "the last event comes", func() bool {
		s.Server.Tell(wire.Event{Kind: "panicked"})
		sent++
		return ctx.Err() != nil
	})
	if err := <-done; !errors.Is(err, enough) {
		t.Errorf("Events = %v", err)
	}
	// Those before the subscription were not for us; what came later was told or
	// counted, but for what was still on its way.
	if dropped == 0 || told+dropped > sent || told+dropped < sent-before-maxEvents {
		t.Errorf("%d sent (%d at first), %d told, %d dropped", sent, before, told, dropped)
	}
}

func TestDirtyIsOfOneClient(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m", hypervisor.Range{Start: 0, Size: 64 << 20})
	controltest.Serve(t, dir, m, control.Options{})
	d := driver(dir)
	a, b := open(t, d, "m"), open(t, d, "m")
	ctx := t.Context()
	if _, err := a.Dirty(ctx); err == nil {
		t.Error("dirty pages before StartDirty")
	}
	if err := a.StartDirty(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.StartDirty(ctx); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("StartDirty of a second client = %v", err)
	}
	// More ranges than fit into a message: every second page.
	var want []hypervisor.Range
	for gpa := hypervisor.PhysAddr(0); gpa < 64<<20; gpa += 2 * hypervisor.PageSize {
		m.GuestWrite([]byte{1}, gpa)
		want = append(want, hypervisor.Range{Start: gpa, Size: hypervisor.PageSize})
	}
	if len(want) <= wire.MaxRanges {
		t.Fatalf("%d ranges fit into one message", len(want))
	}
	if got, err := a.Dirty(ctx); err != nil || !slices.Equal(got, want) {
		t.Errorf("%d dirty ranges, %v; want %d", len(got), err, len(want))
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	if err := b.StartDirty(ctx); err != nil {
		t.Errorf("StartDirty after the first has left: %v", err)
	}
	if err := b.StopDirty(ctx); err != nil {
		t.Error(err)
	}
}

func TestSave(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	controltest.Serve(t, dir, m, control.Options{})
	vm := open(t, driver(dir), "m")
	tmp := t.TempDir()
	first := filepath.Join(tmp, "first")
	var done, total uint64
	if err := vm.Save(t.Context(), first, "", func(d, n uint64) { done, total = d, n }); err != nil {
		t.Fatal(err)
	}
	if done != 3<<20 || total != 3<<20 {
		t.Errorf("progress ended at %d of %d", done, total)
	}
	b, err := os.ReadFile(filepath.Join(first, controltest.SavedMemory))
	if err != nil || !bytes.Equal(b, append(m.Load(0, 2<<20), m.Load(1<<32, 1<<20)...)) {
		t.Errorf("the saved memory is another (%v)", err)
	}
	b, err = os.ReadFile(filepath.Join(first, controltest.SavedState))
	var regs []hypervisor.Registers
	if err == nil {
		err = json.Unmarshal(b, &regs)
	}
	if err != nil || len(regs) != 2 {
		t.Errorf("%d vCPUs, %v", len(regs), err)
	}
	if st, err := os.Stat(filepath.Join(first, controltest.SavedMemory)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if err := vm.Save(t.Context(), filepath.Join(tmp, "second"), first, nil); err != nil {
		t.Errorf("Save with a parent: %v", err)
	}
	// Errors leave nothing behind, and change nothing.
	if err := vm.Save(t.Context(), first, "", nil); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("Save over a saved one = %v", err)
	}
	if err := vm.Save(t.Context(), filepath.Join(tmp, "third"), filepath.Join(tmp, "nowhere"), nil); err == nil {
		t.Error("Save with a parent that is not there")
	}
	empty := filepath.Join(tmp, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := vm.Save(t.Context(), filepath.Join(tmp, "fourth"), empty, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Save with an empty parent = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := vm.Save(ctx, filepath.Join(tmp, "fifth"), "", func(uint64, uint64) { cancel() }); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Save = %v", err)
	} else if err == nil {
		os.RemoveAll(filepath.Join(tmp, "fifth")) // it was faster
	}
	var names []string
	es, err := os.ReadDir(tmp)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{"empty", "first", "second"}) {
		t.Errorf("left: %v", names)
	}
}

// clientEnv makes the test binary a client that sets traps and holds, tells so,
// and hangs in a handler for ever.
const clientEnv = "VANTAGE_KVM_CLIENT"

func client(path string) error {
	vm, err := New(Options{}).open(context.Background(), path)
	if err != nil {
		return err
	}
	ctx := context.Background()
	for range 10 {
		if _, err := vm.SetTrap(ctx, writes, func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
			fmt.Println("hit")
			select {}
		}); err != nil {
			return err
		}
	}
	if _, err := vm.Hold(ctx); err != nil {
		return err
	}
	if err := vm.StartDirty(ctx); err != nil {
		return err
	}
	fmt.Println("set")
	select {}
}

// A client that is killed, in a handler or not, takes all with it that it had set.
func TestKilledClient(t *testing.T) {
	dir := folder(t)
	m := controltest.New(t, "m")
	controltest.Serve(t, dir, m, control.Options{Timeout: time.Minute})
	vm := open(t, driver(dir), "m")
	for i := range 20 {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
		cmd.Env = append(os.Environ(), clientEnv+"="+dir.Socket("m"))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		expect := func(want string) {
			t.Helper()
			b := make([]byte, 4)
			if n, err := out.Read(b); err != nil || string(b[:n]) != want {
				t.Fatalf("client says %q, %v; want %q", b[:n], err, want)
			}
		}
		expect("set\n")
		var guest sync.WaitGroup
		if i%2 == 0 {
			guest.Go(func() { m.GuestWrite([]byte{1, 2, 3, 4, 5, 6, 7, byte(i)}, 0x5000) })
			expect("hit\n")
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		guest.Wait() // the vCPU did not wait for the deadline
		eventually(t, "all is back", func() bool { return len(m.Traps()) == 0 && m.Holds() == 0 })
		eventually(t, "dirty tracking is free", func() bool { return vm.StartDirty(t.Context()) == nil })
		if err := vm.StopDirty(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// BenchmarkTrap is a trap's round trip through server and driver, in one process.
func BenchmarkTrap(b *testing.B) {
	dir := folder(b)
	m := controltest.New(b, "m")
	controltest.Serve(b, dir, m, control.Options{})
	vm := open(b, driver(dir), "m")
	if _, err := vm.SetTrap(b.Context(), hypervisor.Trap{Kind: hypervisor.TrapPort}, func(*hypervisor.TrapEvent) hypervisor.TrapAnswer {
		return hypervisor.TrapAnswer{}
	}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m.Fire(hypervisor.TrapEvent{Kind: hypervisor.TrapPort})
	}
}
