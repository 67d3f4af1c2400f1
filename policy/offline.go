package policy

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/vantage-vmi/vantage/event"
)

// maxLineErrors is how many errors of lines a report keeps; the rest are
// counted.
const maxLineErrors = 100

// RunOptions of Eval and Replay.
type RunOptions struct {
	Deadline  time.Duration // of one evaluation; 0 stands for 5 s: a busy machine must not change a report
	FailMode  FailMode      // "" stands for FailAlert
	Responses []string      // that the policy may ask for; nil stands for alert, pause, resume
	MaxLine   int           // bytes of one event; 0 stands for event.MaxLine
}

// LineProblem is a line of the input that is no event.
type LineProblem struct {
	Line  int    `json:"line"` // counted from 1
	Error string `json:"error"`
}

// Input says what was read. Lines that are no events are left out of all else.
type Input struct {
	Events     int           `json:"events"`
	BadLines   int           `json:"bad_lines"`
	LineErrors []LineProblem `json:"line_errors,omitempty"` // the first of them
}

// Outcome is the part of a decision that is the same each time it is taken.
type Outcome struct {
	Result
	FailMode FailMode `json:"fail_mode,omitempty"`
	Error    string   `json:"error,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

func newOutcome(d *Decision) Outcome {
	return Outcome{Result: d.Result, FailMode: d.FailMode, Error: d.Error, Warnings: d.Warnings}
}

// EvalResult is the decision on one event of the input.
type EvalResult struct {
	Line     int            `json:"line"`
	EventID  string         `json:"event_id"`
	Time     event.Time     `json:"time"`
	Kind     event.Kind     `json:"kind"`
	Severity event.Severity `json:"severity"`
	VM       string         `json:"vm,omitempty"` // URI
	Outcome
}

// Policy says which policy a report is of.
type Policy struct {
	Path     string `json:"path"`
	Revision string `json:"revision,omitempty"`
	Digest   string `json:"digest"`
}

// EvalReport sums up what Eval decided.
type EvalReport struct {
	Policy    Policy          `json:"policy"`
	Input     Input           `json:"input"`
	Errors    int             `json:"errors"` // decisions of the fail mode
	Verdicts  map[Verdict]int `json:"verdicts"`
	Responses map[string]int  `json:"responses"`
}

// Eval decides on each event of a stream (the plain JSON form, one a line) as
// an Engine would, and carries out nothing. each, if not nil, is called for
// each in the order of the input; its error ends Eval. The report says what was
// done up to an error, and is nil only when the policy did not load.
func Eval(ctx context.Context, s Source, events io.Reader, opts RunOptions, each func(*EvalResult) error) (*EvalReport, error) {
	e, err := newOffline(ctx, s, opts)
	if err != nil {
		return nil, err
	}
	defer func() { _ = e.Close() }()
	rep := &EvalReport{Policy: e.policy(), Verdicts: map[Verdict]int{}, Responses: map[string]int{}}
	err = eachEvent(ctx, events, opts.MaxLine, &rep.Input, func(line int, ev *event.Event) error {
		d := e.Decide(ctx, ev)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if d.Err != nil {
			rep.Errors++
		}
		rep.Verdicts[d.Verdict]++
		for _, r := range d.Responses {
			rep.Responses[r.Name]++
		}
		if each == nil {
			return nil
		}
		return each(&EvalResult{
			Line: line, EventID: ev.ID, Time: ev.Time, Kind: ev.Kind, Severity: ev.Severity,
			VM: d.VM, Outcome: newOutcome(d),
		})
	})
	return rep, err
}

// newOffline returns an engine for a stream of events.
func newOffline(ctx context.Context, s Source, opts RunOptions) (*Engine, error) {
	if opts.Deadline <= 0 {
		opts.Deadline = 5 * time.Second
	}
	return New(ctx, Options{Source: s, Deadline: opts.Deadline, FailMode: opts.FailMode, Responses: opts.Responses})
}

func (e *Engine) policy() Policy {
	i := e.Info()
	return Policy{Path: i.Path, Revision: i.Revision, Digest: i.Digest}
}

// eachEvent calls f for each event of r, and notes the lines that are none.
func eachEvent(ctx context.Context, r io.Reader, maxLine int, in *Input, f func(line int, e *event.Event) error) error {
	dec := event.NewDecoder(r, maxLine)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := dec.Next()
		var bad *event.LineError
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.As(err, &bad):
			in.BadLines++
			if len(in.LineErrors) < maxLineErrors {
				in.LineErrors = append(in.LineErrors, LineProblem{bad.Line, bad.Err.Error()})
			}
			continue
		case err != nil:
			return err
		}
		in.Events++
		if err := f(dec.Line(), e); err != nil {
			return err
		}
	}
}
