package policy

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// patience is how long tests wait for what must happen; slow machines need it.
const patience = 30 * time.Second

// pausing is a policy that pauses on every finding, its reason as given.
func pausing(reason string) string {
	return fmt.Sprintf(`package vantage
default decision := {"verdict": "benign", "responses": []}
decision := {"verdict": "malicious", "responses": {
	{"response": "alert", "severity": "high", "reason": %[1]q},
	{"response": "pause", "severity": "high", "reason": %[1]q, "params": {"why": input.finding.rule}},
}} if input.kind == "finding.scan"
`, reason)
}

// deciding is a policy whose decision is the given term.
func deciding(term string) string { return "package vantage\ndecision := " + term + "\n" }

// endless is a policy that would take ages.
const endless = `package vantage
decision := {"verdict": "benign", "responses": []} if {
	count([1 | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000); a + b == input.now]) < 0
}
`

func writeFiles(t testing.TB, dir string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		// By a rename, so that a watcher never sees a half of it.
		if err := os.WriteFile(p+".tmp", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(p+".tmp", p); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func policyDir(t testing.TB, rego string) string {
	t.Helper()
	return writeFiles(t, t.TempDir(), map[string]string{"policy.rego": rego})
}

func newEngine(t testing.TB, opts Options) *Engine {
	t.Helper()
	if opts.Deadline == 0 {
		opts.Deadline = patience // tests of the deadline set their own
	}
	e, err := New(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

func engineOf(t testing.TB, rego string, opts Options) *Engine {
	t.Helper()
	opts.Path = policyDir(t, rego)
	return newEngine(t, opts)
}

func finding(severity string) *event.Event {
	e := event.NewSource(nil).New(event.FindingScan, event.High)
	e.VM = &event.VM{Name: "web-1", URI: "qemu:1", Driver: "qemu"}
	e.Process = &event.Process{PID: 7, Comm: "x", Exe: "/bin/x"}
	e.Finding = &event.Finding{Rule: "R", Where: "[heap]", Meta: map[string]any{"severity": severity}}
	return &e
}

// eventOf returns an event of any kind.
func eventOf(kind event.Kind) *event.Event {
	e := finding("high")
	e.Kind = kind
	e.Module = &event.Module{Name: "m"}
	e.Summary = &event.Summary{}
	switch kind {
	case event.ResponseDone:
		e.Response = &event.Response{Name: "alert", Outcome: event.Done}
	case event.ResponseFailed:
		e.Response = &event.Response{Name: "alert", Outcome: event.Failed, Error: "x"}
	case event.ResponseSkipped:
		e.Response = &event.Response{Name: "alert", Outcome: event.DryRun}
	case event.PolicyError:
		e.Policy = &event.Policy{Stage: event.StageLoad, Error: "x"}
	}
	return e
}

// names returns the names of d's responses: "alert pause".
func names(rs []Response) string {
	var out []string
	for _, r := range rs {
		out = append(out, r.Name)
	}
	return strings.Join(out, " ")
}

// collector gathers events that it is told of.
type collector struct {
	mu     sync.Mutex
	events []event.Event
	more   chan struct{}
}

func newCollector() *collector { return &collector{more: make(chan struct{}, 1)} }

func (c *collector) add(e event.Event) {
	c.mu.Lock()
	c.events = append(c.events, e)
	c.mu.Unlock()
	select {
	case c.more <- struct{}{}:
	default:
	}
}

func (c *collector) all() []event.Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]event.Event(nil), c.events...)
}

// wait returns the first event for which ok holds.
func (c *collector) wait(t *testing.T, ok func(event.Event) bool) event.Event {
	t.Helper()
	timeout := time.After(patience)
	for {
		for _, e := range c.all() {
			if ok(e) {
				return e
			}
		}
		select {
		case <-c.more:
		case <-timeout:
			t.Fatalf("no such event; there were %d", len(c.all()))
		}
	}
}

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	timeout := time.After(patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}
