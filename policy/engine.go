package policy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/vantage-vmi/vantage/event"
)

// DefaultDeadline is how long an evaluation may take, unless Options says
// otherwise.
const DefaultDeadline = 200 * time.Millisecond

// errorInterval is the least time between two events of errors of one stage; a
// broken policy must not flood the pipeline with its errors.
const errorInterval = time.Second

// Options of an Engine. Source is required.
type Options struct {
	Source

	Deadline      time.Duration // of one evaluation; 0 stands for DefaultDeadline
	FailMode      FailMode      // "" stands for FailAlert
	MaxConcurrent int           // evaluations at a time; 0 stands for twice the CPUs
	Responses     []string      // that the policy may ask for; nil stands for alert, pause, resume

	Watch    bool          // reload when the files at Path change
	Debounce time.Duration // quiet time before a reload; 0 stands for 200 ms

	Log     *DecisionLog      // nil: none. The caller closes it, after the Engine
	OnEvent func(event.Event) // is told of errors; must not block for long; may be nil
	Events  *event.Source     // nil stands for a new one
	Logger  *slog.Logger      // nil: none
}

// Engine decides on events. It is safe for concurrent use.
type Engine struct {
	opts   Options
	source Source
	jobs   chan job // taken by MaxConcurrent workers

	current atomic.Pointer[loadedProgram]
	reload  sync.Mutex // one load at a time

	ctx     context.Context // of all evaluations and the watcher
	cancel  context.CancelFunc
	wg      sync.WaitGroup // workers and the watcher; grows in New only
	running atomic.Int64

	stats  stats
	errMu  sync.Mutex
	errors map[event.Stage]*throttle
}

type loadedProgram struct {
	*program
	at time.Time
}

type throttle struct {
	last    time.Time
	repeats uint64
}

// Stats counts what an Engine did.
type Stats struct {
	Decisions     uint64 `json:"decisions"`
	Errors        uint64 `json:"errors"`    // decisions of the fail mode
	Deadlines     uint64 `json:"deadlines"` // errors for the deadline
	Reloads       uint64 `json:"reloads"`
	ReloadsFailed uint64 `json:"reloads_failed"`
	Running       int    `json:"running"` // evaluations now, those past their deadline included
}

type stats struct{ decisions, errors, deadlines, reloads, reloadsFailed atomic.Uint64 }

// Info tells of the policy in force.
type Info struct {
	Path     string    `json:"path"`
	Revision string    `json:"revision,omitempty"` // of the bundle's manifest
	Digest   string    `json:"digest"`             // SHA-256 of the files
	Modules  []string  `json:"modules"`
	LoadedAt time.Time `json:"loaded_at"`
}

// New loads the policy and returns an engine. It returns an error that wraps
// ErrLoad when the policy is not good: there is no last good one to keep yet.
func New(ctx context.Context, opts Options) (*Engine, error) {
	mode, err := ParseFailMode(string(opts.FailMode))
	if err != nil {
		return nil, err
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	opts.FailMode = mode
	if opts.Deadline <= 0 {
		opts.Deadline = DefaultDeadline
	}
	if opts.MaxConcurrent <= 0 {
		opts.MaxConcurrent = 2 * runtime.GOMAXPROCS(0)
	}
	if opts.Responses == nil {
		opts.Responses = builtinResponses()
	}
	if opts.Debounce <= 0 {
		opts.Debounce = 200 * time.Millisecond
	}
	if opts.Events == nil {
		opts.Events = event.NewSource(nil)
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	opts.Responses = slices.Clone(opts.Responses)
	e := &Engine{
		opts:   opts,
		source: opts.Source,
		jobs:   make(chan job),
		errors: map[event.Stage]*throttle{},
	}
	p, err := load(ctx, e.source, opts.Responses)
	if err != nil {
		return nil, err
	}
	e.current.Store(&loadedProgram{p, time.Now()})
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if opts.Watch && opts.FS == nil {
		if err := e.watch(); err != nil {
			e.cancel()
			return nil, fmt.Errorf("watch policy: %w", err)
		}
	}
	for range opts.MaxConcurrent {
		e.wg.Go(e.work)
	}
	return e, nil
}

// Close stops watching and waits for evaluations to end. OPA cancels them; one
// that is inside of a builtin ends when the builtin does.
func (e *Engine) Close() error {
	e.cancel()
	e.wg.Wait()
	return nil
}

// Info tells of the policy in force.
func (e *Engine) Info() Info {
	p := e.current.Load()
	return Info{Path: e.source.name(), Revision: p.revision, Digest: p.digest, Modules: slices.Clone(p.modules), LoadedAt: p.at}
}

// Stats returns what the engine did up to now.
func (e *Engine) Stats() Stats {
	return Stats{
		Decisions: e.stats.decisions.Load(), Errors: e.stats.errors.Load(), Deadlines: e.stats.deadlines.Load(),
		Reloads: e.stats.reloads.Load(), ReloadsFailed: e.stats.reloadsFailed.Load(), Running: int(e.running.Load()),
	}
}

// Reload loads the policy again and puts it in force at once, for all
// evaluations that begin afterwards; changed is false when it is the same as
// before. On any error the policy in force stays, the error is told by an event
// too, and it wraps ErrLoad.
func (e *Engine) Reload(ctx context.Context) (changed bool, err error) {
	e.reload.Lock()
	defer e.reload.Unlock()
	old := e.current.Load()
	p, err := load(ctx, e.source, e.opts.Responses)
	if err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		e.stats.reloadsFailed.Add(1)
		e.opts.Logger.Error("policy not reloaded, the last good one stays", "path", e.source.name(), "err", err)
		e.tell(event.Policy{Stage: event.StageLoad, Path: e.source.name(), Revision: old.revision, Digest: old.digest, Error: err.Error()}, event.High, nil)
		return false, err
	}
	if p.digest == old.digest {
		return false, nil
	}
	e.current.Store(&loadedProgram{p, time.Now()})
	e.stats.reloads.Add(1)
	e.opts.Logger.Info("policy reloaded", "path", e.source.name(), "revision", p.revision, "digest", p.digest)
	return true, nil
}

// Decide returns what is to be done about ev. It takes no longer than the
// deadline and always returns a decision; when the policy failed, Err says how
// and the responses are those of the fail mode.
func (e *Engine) Decide(ctx context.Context, ev *event.Event) *Decision {
	start := time.Now()
	p := e.current.Load()
	d := &Decision{
		ID: e.opts.Events.NewID(start), Time: event.At(start),
		EventID: ev.ID, EventKind: ev.Kind,
		Revision: p.revision, Digest: p.digest,
	}
	if ev.VM != nil {
		d.VM = ev.VM.URI
	}
	var in []byte
	d.Result, d.Warnings, in, d.Err = e.evaluate(ctx, p.program, ev)
	if d.Err != nil {
		d.Error = d.Err.Error()
		d.FailMode = e.opts.FailMode
		d.Result = e.opts.FailMode.result(ev)
	}
	d.DurationSeconds = time.Since(start).Seconds()

	e.stats.decisions.Add(1)
	if d.Err != nil {
		e.failed(d, ev)
	}
	if e.opts.Log != nil {
		e.opts.Log.add(d, in)
	}
	return d
}

func (e *Engine) failed(d *Decision, ev *event.Event) {
	e.stats.errors.Add(1)
	if errors.Is(d.Err, ErrDeadline) {
		e.stats.deadlines.Add(1)
	}
	if errors.Is(d.Err, context.Canceled) || errors.Is(d.Err, ErrClosed) {
		return // the caller went away; the policy did nothing wrong
	}
	stage := event.StageEvaluate
	if errors.Is(d.Err, ErrResult) || errors.Is(d.Err, ErrUndefined) {
		stage = event.StageResult
	}
	e.opts.Logger.Warn("policy failed, the fail mode decided", "stage", stage, "fail_mode", d.FailMode, "event", ev.ID, "err", d.Err)
	e.tell(event.Policy{
		Stage: stage, Path: e.source.name(), Revision: d.Revision, Digest: d.Digest,
		FailMode: string(d.FailMode), Error: d.Error,
	}, event.High, ev)
}

// job is one evaluation.
type job struct {
	ctx     context.Context
	program *program
	input   ast.Value
	at      time.Time
	done    chan<- outcome // has room: the caller may be gone
}

type outcome struct {
	result   Result
	warnings []string
	err      error
}

// work evaluates until Close. A goroutine that lives on keeps the deep stack
// that OPA needs; growing a new one for each event takes a fifth of its time.
func (e *Engine) work() {
	for {
		select {
		case j := <-e.jobs:
			e.running.Add(1)
			var o outcome
			o.result, o.warnings, o.err = j.program.eval(j.ctx, j.input, j.at)
			e.running.Add(-1)
			j.done <- o
		case <-e.ctx.Done():
			return
		}
	}
}

// evaluate has a worker run the policy and leaves it there at the deadline: OPA
// is told to stop, but a builtin may take its time to notice. There are never
// more than MaxConcurrent such.
func (e *Engine) evaluate(ctx context.Context, p *program, ev *event.Event) (Result, []string, []byte, error) {
	in, raw, err := input(ev)
	if err != nil {
		return Result{}, nil, nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, e.opts.Deadline, ErrDeadline)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	if ctx.Err() != nil || e.ctx.Err() != nil {
		return Result{}, nil, raw, e.cause(ctx)
	}
	done := make(chan outcome, 1)
	select {
	case e.jobs <- job{ctx, p, in, ev.Time.Time, done}:
	case <-ctx.Done():
		return Result{}, nil, raw, e.cause(ctx)
	}
	select {
	case o := <-done:
		if o.err != nil && ctx.Err() != nil {
			o.err = e.cause(ctx)
		}
		return o.result, o.warnings, raw, o.err
	case <-ctx.Done():
		return Result{}, nil, raw, e.cause(ctx)
	}
}

func (e *Engine) cause(ctx context.Context) error {
	if e.ctx.Err() != nil {
		return ErrClosed
	}
	if err := context.Cause(ctx); errors.Is(err, ErrDeadline) {
		return fmt.Errorf("%w: %s", ErrDeadline, e.opts.Deadline)
	} else if err != nil {
		return err
	}
	return ctx.Err()
}

// tell makes an event of an error, unless there was one of its stage a moment
// ago; then it is counted in the next.
func (e *Engine) tell(p event.Policy, sev event.Severity, cause *event.Event) {
	if e.opts.OnEvent == nil {
		return
	}
	now := time.Now()
	e.errMu.Lock()
	t := e.errors[p.Stage]
	if t == nil {
		t = &throttle{}
		e.errors[p.Stage] = t
	}
	// A failed load is an act of the operator's, and rare: always told.
	quiet := p.Stage != event.StageLoad && now.Sub(t.last) < errorInterval
	if quiet {
		t.repeats++
	} else {
		p.Repeats, t.repeats, t.last = t.repeats, 0, now
	}
	e.errMu.Unlock()
	if quiet {
		return
	}
	ev := e.opts.Events.New(event.PolicyError, sev)
	ev.Policy = &p
	if cause != nil {
		ev.Cause, ev.CauseKind, ev.VM = cause.ID, cause.Kind, cause.VM
	}
	e.opts.OnEvent(ev)
}

func inputDigest(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}
