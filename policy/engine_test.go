package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/event"
)

func TestDecide(t *testing.T) {
	e := engineOf(t, pausing("because"), Options{})
	ev := finding("high")
	d := e.Decide(context.Background(), ev)
	if d.Err != nil {
		t.Fatal(d.Err)
	}
	if d.Verdict != Malicious || names(d.Responses) != "alert pause" || d.Responses[1].Params["why"] != "R" || d.Responses[0].Reason != "because" {
		t.Errorf("%+v", d.Result)
	}
	if d.EventID != ev.ID || d.VM != "qemu:1" || d.ID == "" || len(d.Digest) != 64 || d.EventKind != ev.Kind {
		t.Errorf("%+v", d)
	}
	if d := e.Decide(context.Background(), eventOf(event.VMSeen)); d.Err != nil || d.Verdict != Benign || d.Responses == nil || len(d.Responses) != 0 {
		t.Errorf("%+v", d)
	}
	if s := e.Stats(); s.Decisions != 2 || s.Errors != 0 || s.Running != 0 {
		t.Errorf("%+v", s)
	}
}

func TestInputIsTheEventAndItsTime(t *testing.T) {
	e := engineOf(t, `package vantage
decision := {"verdict": "benign", "responses": [{"response": "alert", "severity": "low", "reason": sprintf("%d %s %s %d", [input.now, input.schema_version, input.process.exe, time.clock(input.now)[0]])}]}
`, Options{})
	ev := finding("high")
	ev.Time = event.At(time.Unix(1_700_000_000, 123))
	d := e.Decide(context.Background(), ev)
	if d.Err != nil || d.Responses[0].Reason != "1700000000000000123 1.0 /bin/x 22" {
		t.Errorf("%v %+v", d.Err, d.Responses)
	}
}

func TestDeadline(t *testing.T) {
	const deadline = 50 * time.Millisecond
	events := newCollector()
	e := engineOf(t, endless, Options{Deadline: deadline, MaxConcurrent: 2, OnEvent: events.add})
	// More at a time than may run: those that wait for their turn give up too.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			start := time.Now()
			d := e.Decide(context.Background(), finding("high"))
			if took := time.Since(start); took > deadline+2*time.Second {
				t.Errorf("took %s with a deadline of %s", took, deadline)
			}
			if !errors.Is(d.Err, ErrDeadline) || d.FailMode != FailAlert || names(d.Responses) != "alert" || d.Verdict != Unknown {
				t.Errorf("%v %+v", d.Err, d)
			}
		})
	}
	wg.Wait()
	eventually(t, "evaluations end after the deadline", func() bool { return e.Stats().Running == 0 })
	if s := e.Stats(); s.Deadlines != 8 || s.Errors != 8 {
		t.Errorf("%+v", s)
	}
	// Eight errors in a moment are one event.
	all := events.all()
	if len(all) != 1 || all[0].Kind != event.PolicyError || all[0].Policy.Stage != event.StageEvaluate || all[0].Policy.FailMode != "alert" || all[0].CauseKind != event.FindingScan {
		t.Errorf("events %+v", all)
	}
	for _, ev := range all {
		if _, err := event.Marshal(&ev); err != nil {
			t.Error(err)
		}
	}
}

// TestCloseDuringEvaluation: Close does not wait for the policy's end.
func TestCloseDuringEvaluation(t *testing.T) {
	e := engineOf(t, endless, Options{Deadline: time.Hour})
	got := make(chan *Decision)
	go func() { got <- e.Decide(context.Background(), finding("high")) }()
	eventually(t, "evaluation begins", func() bool { return e.Stats().Running == 1 })
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if d := <-got; !errors.Is(d.Err, ErrClosed) {
		t.Errorf("%v", d.Err)
	}
	if d := e.Decide(context.Background(), finding("high")); !errors.Is(d.Err, ErrClosed) || names(d.Responses) != "alert" {
		t.Errorf("%v", d.Err)
	}
}

func TestCallerGoesAway(t *testing.T) {
	events := newCollector()
	e := engineOf(t, endless, Options{OnEvent: events.add})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if d := e.Decide(ctx, finding("high")); !errors.Is(d.Err, context.Canceled) {
		t.Errorf("%v", d.Err)
	}
	if all := events.all(); len(all) != 0 {
		t.Errorf("an event of it: %+v", all)
	}
}

func TestFailModes(t *testing.T) {
	for _, c := range []struct {
		mode      FailMode
		kind      event.Kind
		responses string
	}{
		{"", event.FindingScan, "alert"},
		{FailAlert, event.FindingScan, "alert"},
		{FailAlert, event.VMSeen, "alert"},
		{FailPause, event.FindingScan, "alert pause"},
		{FailPause, event.ModuleHidden, "alert pause"},
		{FailPause, event.VMSeen, "alert"},
		{FailPause, event.ScanSummary, "alert"},
		{FailIgnore, event.FindingScan, ""},
		{FailPause, event.ResponseFailed, ""},
		{FailAlert, event.PolicyError, ""},
	} {
		e := engineOf(t, deciding(`{"verdict": "benign", "responses": [{"response": "quarantine", "severity": "high", "reason": ""}]}`), Options{FailMode: c.mode})
		d := e.Decide(context.Background(), eventOf(c.kind))
		if !errors.Is(d.Err, ErrResult) || names(d.Responses) != c.responses || d.Verdict != Unknown || d.Error == "" || d.FailMode == "" {
			t.Errorf("mode %q, %s: %v, %q; want %q", c.mode, c.kind, d.Err, names(d.Responses), c.responses)
		}
	}
	if _, err := New(context.Background(), Options{Source: Source{Path: "x"}, FailMode: "explode"}); err == nil {
		t.Error("unknown fail mode accepted")
	}
}

func TestErrorsOfEvaluation(t *testing.T) {
	for name, c := range map[string]struct {
		rego string
		want error
	}{
		"undefined": {"package vantage\ndecision := {\"verdict\": \"benign\", \"responses\": []} if input.kind == \"never\"\n", ErrUndefined},
		"no object": {deciding(`true`), ErrResult},
		"conflict":  {"package vantage\ndecision := x if some x in [1, 2]\n", nil},
		"too large": {deciding(`{"verdict": "benign", "responses": []}`), ErrTooLarge},
	} {
		e := engineOf(t, c.rego, Options{})
		ev := finding("high")
		if errors.Is(c.want, ErrTooLarge) {
			ev.Finding.Where = strings.Repeat("x", event.MaxLine)
		}
		d := e.Decide(context.Background(), ev)
		if d.Err == nil || c.want != nil && !errors.Is(d.Err, c.want) || names(d.Responses) != "alert" {
			t.Errorf("%s: %v", name, d.Err)
		}
	}
	// An error of a builtin makes its expression undefined, and is told.
	e := engineOf(t, `package vantage
default decision := {"verdict": "suspicious", "responses": []}
decision := {"verdict": "benign", "responses": []} if to_number(input.process.comm) > 1
`, Options{})
	if d := e.Decide(context.Background(), finding("high")); d.Err != nil || d.Verdict != Suspicious || len(d.Warnings) != 1 {
		t.Errorf("%v %+v", d.Err, d)
	}
	// An invalid event.
	if d := e.Decide(context.Background(), &event.Event{}); !errors.Is(d.Err, event.ErrVersion) {
		t.Errorf("%v", d.Err)
	}
}

func TestDisabledBuiltins(t *testing.T) {
	calls := map[string]string{
		"http.send":              `http.send({"method": "get", "url": "http://localhost"})`,
		"net.lookup_ip_addr":     `net.lookup_ip_addr("localhost")`,
		"opa.runtime":            `opa.runtime()`,
		"rego.parse_module":      `rego.parse_module("x", "package x")`,
		"time.now_ns":            `time.now_ns()`,
		"rand.intn":              `rand.intn("x", 2)`,
		"uuid.rfc4122":           `uuid.rfc4122("x")`,
		"io.jwt.encode_sign":     `io.jwt.encode_sign({}, {}, {})`,
		"io.jwt.encode_sign_raw": `io.jwt.encode_sign_raw("", "", "")`,
	}
	for name := range DisabledBuiltins() {
		call, ok := calls[name]
		if !ok {
			t.Errorf("no test of %s", name)
			continue
		}
		_, err := New(context.Background(), Options{Source: Source{Path: policyDir(t, deciding(call))}})
		if !errors.Is(err, ErrLoad) || !strings.Contains(err.Error(), name+" is disabled: it ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, b := range Capabilities().Builtins {
		if b.Nondeterministic {
			t.Errorf("%s is there and not deterministic", b.Name)
		}
	}
}

func TestDataIsLaidOver(t *testing.T) {
	dir := writeFiles(t, t.TempDir(), map[string]string{
		"policy.rego":     deciding(`{"verdict": data.c.verdict, "responses": [{"response": "alert", "severity": data.c.severity, "reason": data.c.sub.reason}]}`),
		"data.yaml":       "c: {verdict: benign, severity: low}\n",
		"c/sub/data.json": `{"reason": "file"}`,
	})
	plain := newEngine(t, Options{Source: Source{Path: dir}})
	over := newEngine(t, Options{Source: Source{Path: dir, Data: map[string]any{"c": map[string]any{"severity": "high"}}}})
	if d := plain.Decide(context.Background(), finding("x")); d.Err != nil || d.Responses[0].Severity != event.Low || d.Responses[0].Reason != "file" {
		t.Errorf("%v %+v", d.Err, d)
	}
	if d := over.Decide(context.Background(), finding("x")); d.Err != nil || d.Responses[0].Severity != event.High || d.Responses[0].Reason != "file" {
		t.Errorf("%v %+v", d.Err, d)
	}
	if plain.Info().Digest == over.Info().Digest {
		t.Error("policies with different data have the same digest")
	}
}

// TestDecisionsAreDeterministic: the same event gets the same decision, by the
// same engine and by another, whatever else goes on.
func TestDecisionsAreDeterministic(t *testing.T) {
	rego := `package vantage
decision := {"verdict": "suspicious", "responses": responses}
responses contains {"response": "alert", "severity": s, "reason": sprintf("%s %d", [s, n]), "params": {"n": n, "at": input.now}} if {
	some s in ["low", "high", "info"]
	some n in [3, 1, 2]
	n + (input.now % 3) > 2
}
responses contains {"response": "pause", "severity": "high", "reason": "p"} if input.finding
`
	a, b := engineOf(t, rego, Options{}), engineOf(t, rego, Options{})
	for i := range 50 {
		ev := finding(fmt.Sprint(i))
		ev.Time = event.At(time.Unix(int64(i), int64(i)))
		var first []byte
		for _, e := range []*Engine{a, b, a, b} {
			d := e.Decide(context.Background(), ev)
			if d.Err != nil {
				t.Fatal(d.Err)
			}
			o := newOutcome(d)
			got, err := event.MarshalLine(&o)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = got
			} else if !bytes.Equal(first, got) {
				t.Fatalf("event %d:\n%s\n%s", i, first, got)
			}
		}
	}
}

func TestThrottleCountsRepeats(t *testing.T) {
	events := newCollector()
	e := engineOf(t, deciding(`1`), Options{OnEvent: events.add})
	for range 5 {
		e.Decide(context.Background(), finding("x"))
	}
	if n := len(events.all()); n != 1 {
		t.Fatalf("%d events", n)
	}
	e.errMu.Lock()
	e.errors[event.StageResult].last = time.Now().Add(-2 * errorInterval)
	e.errMu.Unlock()
	e.Decide(context.Background(), finding("x"))
	if all := events.all(); len(all) != 2 || all[1].Policy.Repeats != 4 || all[1].Policy.Stage != event.StageResult {
		t.Errorf("%+v", all)
	}
}
