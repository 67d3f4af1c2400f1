package policy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"slices"

	"github.com/vantage-vmi/vantage/event"
)

// MaxChanges is how many changes a ReplayReport keeps; the rest are counted.
const MaxChanges = 10_000

// Change is an event on which two policies decide differently.
type Change struct {
	Line     int            `json:"line"` // of the input, counted from 1
	EventID  string         `json:"event_id"`
	Time     event.Time     `json:"time"`
	Kind     event.Kind     `json:"kind"`
	Severity event.Severity `json:"severity"`
	VM       string         `json:"vm,omitempty"` // URI
	Before   Outcome        `json:"before"`
	After    Outcome        `json:"after"`
}

// VerdictChange counts events whose verdict changes from one to another.
type VerdictChange struct {
	Before Verdict `json:"before"`
	After  Verdict `json:"after"`
	Count  int     `json:"count"`
}

// ResponseChange counts events that get, or lose, a response.
type ResponseChange struct {
	Response string `json:"response"`
	Added    int    `json:"added"`
	Removed  int    `json:"removed"`
}

// ReplayReport says which decisions would change.
type ReplayReport struct {
	Before       Policy `json:"before"`
	After        Policy `json:"after"`
	Input        Input  `json:"input"`
	Changed      int    `json:"changed"`
	Unchanged    int    `json:"unchanged"`
	ErrorsBefore int    `json:"errors_before"` // decisions of the fail mode
	ErrorsAfter  int    `json:"errors_after"`

	Verdicts  []VerdictChange  `json:"verdicts"`  // sorted
	Responses []ResponseChange `json:"responses"` // sorted
	Changes   []Change         `json:"changes"`   // in the order of the input
	Truncated bool             `json:"truncated,omitempty"`
}

// Replay decides on each event of a stream twice, by the policies before and
// after, and reports where they differ: in the verdict, in a response, or in
// whether there is an error. A decision depends on the event and the policy
// only (its input.now is the event's time), so the report is the same each
// time. each, if not nil, is called for each change as it is met, those beyond
// MaxChanges too; its error ends Replay. As for Eval, a report comes with an
// error that is met on the way.
func Replay(ctx context.Context, before, after Source, events io.Reader, opts RunOptions, each func(*Change) error) (*ReplayReport, error) {
	b, err := newOffline(ctx, before, opts)
	if err != nil {
		return nil, err
	}
	defer func() { _ = b.Close() }()
	a, err := newOffline(ctx, after, opts)
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Close() }()
	rep := &ReplayReport{
		Before: b.policy(), After: a.policy(),
		Verdicts: []VerdictChange{}, Responses: []ResponseChange{}, Changes: []Change{},
	}
	verdicts := map[[2]Verdict]int{}
	responses := map[string]*ResponseChange{}
	err = eachEvent(ctx, events, opts.MaxLine, &rep.Input, func(line int, ev *event.Event) error {
		c := Change{
			Line: line, EventID: ev.ID, Time: ev.Time, Kind: ev.Kind, Severity: ev.Severity,
			Before: newOutcome(b.Decide(ctx, ev)), After: newOutcome(a.Decide(ctx, ev)),
		}
		if ctx.Err() != nil {
			return ctx.Err() // decisions of the fail mode, then
		}
		if ev.VM != nil {
			c.VM = ev.VM.URI
		}
		if c.Before.Error != "" {
			rep.ErrorsBefore++
		}
		if c.After.Error != "" {
			rep.ErrorsAfter++
		}
		if c.Before.same(&c.After) {
			rep.Unchanged++
			return nil
		}
		rep.Changed++
		if c.Before.Verdict != c.After.Verdict {
			verdicts[[2]Verdict{c.Before.Verdict, c.After.Verdict}]++
		}
		countResponses(responses, &c)
		if len(rep.Changes) < MaxChanges {
			rep.Changes = append(rep.Changes, c)
		} else {
			rep.Truncated = true
		}
		if each == nil {
			return nil
		}
		return each(&c)
	})
	for k, n := range verdicts {
		rep.Verdicts = append(rep.Verdicts, VerdictChange{k[0], k[1], n})
	}
	slices.SortFunc(rep.Verdicts, func(a, b VerdictChange) int {
		return cmp.Or(cmp.Compare(a.Before, b.Before), cmp.Compare(a.After, b.After))
	})
	for _, name := range sortedKeys(responses) {
		rep.Responses = append(rep.Responses, *responses[name])
	}
	return rep, err
}

// same reports whether the same is done. The texts of errors may differ.
func (o *Outcome) same(p *Outcome) bool {
	a, err1 := json.Marshal(o.Result)
	b, err2 := json.Marshal(p.Result)
	return err1 == nil && err2 == nil && bytes.Equal(a, b) && (o.Error == "") == (p.Error == "")
}

func countResponses(counts map[string]*ResponseChange, c *Change) {
	has := func(o *Outcome, name string) bool {
		return slices.ContainsFunc(o.Responses, func(r Response) bool { return r.Name == name })
	}
	seen := map[string]bool{}
	for _, r := range slices.Concat(c.Before.Responses, c.After.Responses) {
		if seen[r.Name] {
			continue
		}
		seen[r.Name] = true
		before, after := has(&c.Before, r.Name), has(&c.After, r.Name)
		if before == after {
			continue
		}
		if counts[r.Name] == nil {
			counts[r.Name] = &ResponseChange{Response: r.Name}
		}
		if after {
			counts[r.Name].Added++
		} else {
			counts[r.Name].Removed++
		}
	}
}
