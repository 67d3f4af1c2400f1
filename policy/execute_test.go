package policy

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/event"
)

// fakeVMs are VMs that remember whether they are paused.
type fakeVMs struct {
	mu     sync.Mutex
	paused map[string]bool
	calls  []string
	err    error // of Pause and Resume
	askErr error // of Paused
	inside atomic.Int32
	hang   bool // Pause waits for its context
}

func (f *fakeVMs) set(ctx context.Context, uri string, paused bool) error {
	if f.inside.Add(1) > 1 {
		panic("two responses to one VM at a time")
	}
	defer f.inside.Add(-1)
	if f.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	f.paused[uri] = paused
	f.calls = append(f.calls, map[bool]string{true: "pause ", false: "resume "}[paused]+uri)
	return nil
}

func (f *fakeVMs) Pause(ctx context.Context, uri string) error  { return f.set(ctx, uri, true) }
func (f *fakeVMs) Resume(ctx context.Context, uri string) error { return f.set(ctx, uri, false) }
func (f *fakeVMs) Paused(_ context.Context, uri string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.paused[uri], f.askErr
}

func newFakeVMs() *fakeVMs { return &fakeVMs{paused: map[string]bool{}} }

func decisionOf(names ...string) *Decision {
	d := &Decision{ID: "d-1"}
	for _, n := range names {
		d.Responses = append(d.Responses, Response{Name: n, Severity: event.Medium, Reason: "r", Params: map[string]any{"k": "v"}})
	}
	return d
}

func execute(t *testing.T, x *Executor, e *event.Event, names ...string) []event.Event {
	t.Helper()
	out := x.Execute(context.Background(), decisionOf(names...), e)
	if len(out) != len(names) {
		t.Fatalf("%d events for %d responses", len(out), len(names))
	}
	for i := range out {
		if _, err := event.Marshal(&out[i]); err != nil {
			t.Errorf("%s: %v", names[i], err)
		}
		if out[i].Response.Name != names[i] || out[i].Cause != e.ID || out[i].CauseKind != e.Kind || out[i].Response.DecisionID != "d-1" {
			t.Errorf("%s: %+v", names[i], out[i])
		}
	}
	return out
}

func outcomes(es []event.Event) string {
	var out []string
	for _, e := range es {
		out = append(out, string(e.Response.Outcome))
	}
	return strings.Join(out, " ")
}

func closeExecutor(t *testing.T, x *Executor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := x.Close(ctx); err != nil {
		t.Error(err)
	}
}

func TestExecute(t *testing.T) {
	vms := newFakeVMs()
	var alerts []string
	x := NewExecutor(ExecutorOptions{Responders: Library(func(_ context.Context, r Response, e *event.Event) error {
		alerts = append(alerts, r.Reason+" "+e.Finding.Rule)
		return nil
	}, vms)})
	defer closeExecutor(t, x)
	if got := strings.Join(x.Names(), " "); got != "alert pause resume" {
		t.Errorf("names %s", got)
	}
	ev := finding("high")
	out := execute(t, x, ev, "alert", "alert", "pause")
	if got := outcomes(out); got != "done done done" || len(alerts) != 2 || alerts[0] != "r R" || !vms.paused["qemu:1"] {
		t.Errorf("%s, %v, %v", got, alerts, vms.paused)
	}
	if out[2].Kind != event.ResponseDone || out[2].Severity != event.Medium || out[2].VM.URI != "qemu:1" || out[2].Response.Params["k"] != "v" {
		t.Errorf("%+v", out[2])
	}
	// The same again: the VM is paused already.
	out = execute(t, x, ev, "pause", "pause")
	if got := outcomes(out); got != "duplicate duplicate" || out[0].Kind != event.ResponseSkipped || len(vms.calls) != 1 {
		t.Errorf("%s, %v", got, vms.calls)
	}
	// Somebody resumed it: it is paused again.
	vms.paused["qemu:1"] = false
	if got := outcomes(execute(t, x, ev, "pause")); got != "done" {
		t.Error(got)
	}
	if got := outcomes(execute(t, x, ev, "resume")); got != "done" || vms.paused["qemu:1"] {
		t.Error(got)
	}
	if got := outcomes(execute(t, x, ev, "resume")); got != "duplicate" {
		t.Error(got)
	}
	// Its state cannot be asked: act.
	vms.askErr = errors.New("no monitor")
	if got := outcomes(execute(t, x, ev, "pause", "pause")); got != "done done" {
		t.Error(got)
	}
}

func TestExecuteFailures(t *testing.T) {
	boom := errors.New("held by another client")
	vms := newFakeVMs()
	vms.err = boom
	lib := Library(func(context.Context, Response, *event.Event) error { panic("oh") }, vms)
	lib["slow"] = ResponderFunc(func(ctx context.Context, _ Response, _ *event.Event) error {
		<-ctx.Done()
		return ctx.Err()
	})
	x := NewExecutor(ExecutorOptions{Responders: lib, Timeout: 50 * time.Millisecond})
	defer closeExecutor(t, x)
	out := execute(t, x, finding("high"), "pause", "alert", "slow", "quarantine")
	for i, want := range []string{"pause: held by another client", "alert: panic: oh", "response took longer than its timeout: 50ms", `unknown response "quarantine"`} {
		if e := out[i]; e.Kind != event.ResponseFailed || e.Severity != event.High || e.Response.Error != want {
			t.Errorf("%+v %q, want %q", e, e.Response.Error, want)
		}
	}
	ev := finding("high")
	ev.VM = nil
	ev.Kind = "other.kind"
	if out := execute(t, x, ev, "pause"); out[0].Response.Error != "pause: the event names no VM" {
		t.Errorf("%+v", out[0].Response)
	}
}

// TestExecuteLeavesAHangingResponderBehind: one that ignores its context keeps
// its place, and nobody waits for it.
func TestExecuteLeavesAHangingResponderBehind(t *testing.T) {
	release := make(chan struct{})
	vms := newFakeVMs()
	lib := Library(func(context.Context, Response, *event.Event) error { <-release; return nil }, vms)
	x := NewExecutor(ExecutorOptions{Responders: lib, Timeout: 50 * time.Millisecond, MaxRunning: 2})
	start := time.Now()
	out := execute(t, x, finding("high"), "alert", "pause")
	if got := outcomes(out); got != "failed done" || !vms.paused["qemu:1"] {
		t.Errorf("%s, %v", got, vms.paused)
	}
	execute(t, x, finding("high"), "alert") // takes the last place
	if out := execute(t, x, finding("high"), "alert"); !strings.Contains(out[0].Response.Error, "timeout") {
		t.Errorf("%+v", out[0].Response)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := x.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	close(release)
	closeExecutor(t, x)
	if out := execute(t, x, finding("high"), "alert"); out[0].Response.Error != ErrClosed.Error() {
		t.Errorf("after Close: %+v", out[0].Response)
	}
}

func TestExecuteDryRunAndOwnEvents(t *testing.T) {
	never := func(context.Context, Response, *event.Event) error { t.Error("called"); return nil }
	dry := NewExecutor(ExecutorOptions{Responders: Library(never, newFakeVMs()), DryRun: true})
	defer closeExecutor(t, dry)
	out := execute(t, dry, finding("high"), "alert", "pause")
	if got := outcomes(out); got != "dry_run dry_run" || out[0].Kind != event.ResponseSkipped {
		t.Error(got)
	}
	x := NewExecutor(ExecutorOptions{Responders: Library(never, newFakeVMs())})
	defer closeExecutor(t, x)
	for _, k := range event.Kinds() {
		if k.IsOwn() {
			if got := outcomes(execute(t, x, eventOf(k), "alert", "pause")); got != "refused refused" {
				t.Errorf("%s: %s", k, got)
			}
		}
	}
}

// TestResponsesToOneVMFollowOneAnother: the fake panics when they do not.
func TestResponsesToOneVMFollowOneAnother(t *testing.T) {
	vms := newFakeVMs()
	x := NewExecutor(ExecutorOptions{Responders: Library(nil, vms), MaxRunning: 100})
	defer closeExecutor(t, x)
	var wg sync.WaitGroup
	var done atomic.Int32
	for range 50 {
		wg.Go(func() {
			for _, e := range x.Execute(context.Background(), decisionOf("pause"), finding("high")) {
				switch e.Response.Outcome {
				case event.Done:
					done.Add(1)
				case event.Duplicate:
				default:
					t.Errorf("%+v", e.Response)
				}
			}
		})
	}
	wg.Wait()
	if done.Load() != 1 || len(vms.calls) != 1 {
		t.Errorf("paused %d times, %v", done.Load(), vms.calls)
	}
	// While one hangs, others wait no longer than their timeout.
	slow := newFakeVMs()
	slow.hang = true
	y := NewExecutor(ExecutorOptions{Responders: Library(nil, slow), Timeout: 100 * time.Millisecond})
	defer closeExecutor(t, y)
	for range 3 {
		wg.Go(func() {
			if got := outcomes(y.Execute(context.Background(), decisionOf("pause"), finding("high"))); got != "failed" {
				t.Error(got)
			}
		})
	}
	wg.Wait()
	lib := y.opts.Responders[Pause].(*vmResponder)
	eventually(t, "locks are given back", func() bool {
		lib.locks.mu.Lock()
		defer lib.locks.mu.Unlock()
		return len(lib.locks.held) == 0
	})
}
