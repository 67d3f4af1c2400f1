package policy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/event"
)

// ExecutorOptions of an Executor.
type ExecutorOptions struct {
	Responders map[string]Responder // by the name of the response
	Timeout    time.Duration        // of one response; 0 stands for 10 s
	DryRun     bool                 // say what would be done, do nothing
	MaxRunning int                  // responses at a time; 0 stands for 16
	Events     *event.Source        // nil stands for a new one
	Logger     *slog.Logger         // nil: none
}

// Executor carries out what was decided. It is safe for concurrent use.
type Executor struct {
	opts  ExecutorOptions
	slots chan struct{}

	life   sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// NewExecutor returns an executor.
func NewExecutor(opts ExecutorOptions) *Executor {
	if opts.Timeout <= 0 {
		opts.Timeout = 10 * time.Second
	}
	if opts.MaxRunning <= 0 {
		opts.MaxRunning = 16
	}
	if opts.Events == nil {
		opts.Events = event.NewSource(nil)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Executor{opts: opts, slots: make(chan struct{}, opts.MaxRunning)}
}

// Names returns the names of the responses that can be carried out, for
// Options.Responses of an Engine, sorted.
func (x *Executor) Names() []string { return sortedKeys(x.opts.Responders) }

// Execute carries out d's responses to e and returns an event of each, in d's
// order: response.done, response.failed or response.skipped. Responses of one
// name follow one another; those of different names do not wait for each
// other, so that an alert that hangs does not keep a VM running.
//
// Nothing is done about Vantage's own acts (event.Kind.IsOwn): their responses
// are refused, or one failing response would cause the next without end.
func (x *Executor) Execute(ctx context.Context, d *Decision, e *event.Event) []event.Event {
	out := make([]event.Event, len(d.Responses))
	byName := map[string][]int{}
	for i, r := range d.Responses {
		byName[r.Name] = append(byName[r.Name], i)
	}
	var wg sync.WaitGroup
	for _, idx := range byName {
		wg.Go(func() {
			for _, i := range idx {
				out[i] = x.one(ctx, d, d.Responses[i], e)
			}
		})
	}
	wg.Wait()
	return out
}

// Close waits until no response runs, or returns ctx's error.
func (x *Executor) Close(ctx context.Context) error {
	x.life.Lock()
	x.closed = true
	x.life.Unlock()
	done := make(chan struct{})
	go func() {
		x.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close executor: a response still runs: %w", ctx.Err())
	}
}

// one carries out one response and makes its event.
func (x *Executor) one(ctx context.Context, d *Decision, r Response, e *event.Event) event.Event {
	start := time.Now()
	kind, sev := event.ResponseSkipped, event.Info
	resp := event.Response{Name: r.Name, Reason: r.Reason, Params: r.Params, DecisionID: d.ID}
	switch {
	case e.Kind.IsOwn():
		resp.Outcome = event.Refused
	case x.opts.DryRun:
		resp.Outcome = event.DryRun
	default:
		err := x.run(ctx, r, e)
		resp.DurationSeconds = time.Since(start).Seconds()
		switch {
		case err == nil:
			kind, sev, resp.Outcome = event.ResponseDone, r.Severity, event.Done
		case errors.Is(err, ErrDuplicate):
			resp.Outcome = event.Duplicate
		default:
			// A response that fails is no less than high: an operator relies
			// on it.
			kind, sev, resp.Outcome, resp.Error = event.ResponseFailed, event.High, event.Failed, err.Error()
			if r.Severity == event.Critical {
				sev = event.Critical
			}
			x.opts.Logger.Error("response failed", "response", r.Name, "event", e.ID, "err", err)
		}
	}
	ev := x.opts.Events.New(kind, sev)
	ev.Cause, ev.CauseKind, ev.VM, ev.Response = e.ID, e.Kind, e.VM, &resp
	return ev
}

// run calls the responder in a goroutine of its own, which is left behind at
// the timeout.
func (x *Executor) run(ctx context.Context, r Response, e *event.Event) error {
	responder, ok := x.opts.Responders[r.Name]
	if !ok {
		return fmt.Errorf("%w %q", ErrUnknownResponse, r.Name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, x.opts.Timeout, fmt.Errorf("%w: %s", ErrTimeout, x.opts.Timeout))
	defer cancel()
	select {
	case x.slots <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	x.life.Lock()
	if x.closed {
		x.life.Unlock()
		<-x.slots
		return ErrClosed
	}
	x.wg.Add(1)
	x.life.Unlock()
	done := make(chan error, 1)
	go func() {
		defer x.wg.Done()
		err := respond(ctx, responder, r, e)
		<-x.slots
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return context.Cause(ctx)
		}
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// respond turns a panic of a responder into an error.
func respond(ctx context.Context, responder Responder, r Response, e *event.Event) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%s: panic: %v", r.Name, v)
		}
	}()
	return responder.Respond(ctx, r, e)
}
