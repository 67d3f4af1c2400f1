package policy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/event"
)

// stream returns n findings of growing severity and a vm.seen, with a bad line
// after the first.
func stream(t testing.TB, n int) string {
	t.Helper()
	var b bytes.Buffer
	enc := event.NewEncoder(&b)
	src := event.NewSource(nil)
	for i := range n {
		ev := finding([]string{"low", "medium", "high"}[i%3])
		ev.ID, ev.Time = fmt.Sprintf("e-%d", i), event.At(time.Unix(int64(i), 0))
		if err := enc.Encode(ev); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			b.WriteString("{oops\n\n" + strings.Repeat("x", 5000) + "\n")
		}
	}
	seen := src.New(event.VMSeen, event.Info)
	seen.VM = &event.VM{Name: "web-1", URI: "qemu:1", Driver: "qemu"}
	seen.ID = "seen"
	if err := enc.Encode(&seen); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// bySeverity pauses on findings of the given severities and alerts on others.
func bySeverity(pause string) string {
	return `package vantage
default decision := {"verdict": "benign", "responses": []}
decision := {"verdict": "malicious", "responses": [{"response": "pause", "severity": "high", "reason": "p"}]} if {
	input.finding.meta.severity in ` + pause + `
} else := {"verdict": "suspicious", "responses": [{"response": "alert", "severity": "low", "reason": "a"}]} if input.finding
`
}

func TestEval(t *testing.T) {
	s := Source{Path: policyDir(t, bySeverity(`["high"]`))}
	var lines []string
	rep, err := Eval(context.Background(), s, strings.NewReader(stream(t, 6)), RunOptions{MaxLine: 4000}, func(r *EvalResult) error {
		lines = append(lines, fmt.Sprintf("%d %s %s %s", r.Line, r.EventID, r.Verdict, names(r.Responses)))
		_, err := json.Marshal(r)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "1 e-0 suspicious alert,5 e-1 suspicious alert,6 e-2 malicious pause,7 e-3 suspicious alert,8 e-4 suspicious alert,9 e-5 malicious pause,10 seen benign "
	if got := strings.Join(lines, ","); got != want {
		t.Errorf("\n%s\n%s", got, want)
	}
	if rep.Input.Events != 7 || rep.Input.BadLines != 2 || rep.Input.LineErrors[0].Line != 2 || rep.Input.LineErrors[1].Line != 4 ||
		rep.Verdicts[Suspicious] != 4 || rep.Responses["pause"] != 2 || rep.Errors != 0 || rep.Policy.Digest == "" {
		t.Errorf("%+v", rep)
	}

	// The callback's error, and a cancelled context, leave a partial report.
	stop := errors.New("enough")
	rep, err = Eval(context.Background(), s, strings.NewReader(stream(t, 6)), RunOptions{}, func(*EvalResult) error { return stop })
	if !errors.Is(err, stop) || rep.Input.Events != 1 {
		t.Errorf("%v %+v", err, rep)
	}
	ctx, cancel := context.WithCancel(context.Background())
	rep, err = Eval(ctx, s, strings.NewReader(stream(t, 6)), RunOptions{}, func(r *EvalResult) error {
		if r.EventID == "e-2" {
			cancel()
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) || rep.Input.Events != 3 {
		t.Errorf("%v %+v", err, rep)
	}
	if _, err := Eval(context.Background(), Source{Path: policyDir(t, "package x")}, strings.NewReader(""), RunOptions{}, nil); !errors.Is(err, ErrLoad) {
		t.Errorf("%v", err)
	}
}

func TestEvalCountsErrors(t *testing.T) {
	s := Source{Path: policyDir(t, endless)}
	rep, err := Eval(context.Background(), s, strings.NewReader(stream(t, 2)), RunOptions{Deadline: 20 * time.Millisecond, FailMode: FailPause}, nil)
	if err != nil || rep.Errors != 3 || rep.Responses["pause"] != 2 || rep.Responses["alert"] != 3 {
		t.Errorf("%v %+v", err, rep)
	}
}

func TestReplay(t *testing.T) {
	before := Source{Path: policyDir(t, bySeverity(`["high"]`))}
	after := Source{Path: policyDir(t, bySeverity(`["medium"]`))}
	in := stream(t, 6)
	var each []string
	rep, err := Replay(context.Background(), before, after, strings.NewReader(in), RunOptions{}, func(c *Change) error {
		each = append(each, c.EventID)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range rep.Changes {
		got = append(got, fmt.Sprintf("%d %s %s>%s %s>%s", c.Line, c.EventID, c.Before.Verdict, c.After.Verdict, names(c.Before.Responses), names(c.After.Responses)))
	}
	want := "5 e-1 suspicious>malicious alert>pause,6 e-2 malicious>suspicious pause>alert,8 e-4 suspicious>malicious alert>pause,9 e-5 malicious>suspicious pause>alert"
	if s := strings.Join(got, ","); s != want {
		t.Errorf("\n%s\n%s", s, want)
	}
	if strings.Join(each, " ") != "e-1 e-2 e-4 e-5" || rep.Changed != 4 || rep.Unchanged != 3 || rep.Input.Events != 7 || rep.Input.BadLines != 2 || rep.Truncated {
		t.Errorf("%v %+v", each, rep)
	}
	if fmt.Sprint(rep.Verdicts) != "[{malicious suspicious 2} {suspicious malicious 2}]" || fmt.Sprint(rep.Responses) != "[{alert 2 2} {pause 2 2}]" {
		t.Errorf("%v %v", rep.Verdicts, rep.Responses)
	}
	again, err := Replay(context.Background(), before, after, strings.NewReader(in), RunOptions{}, nil)
	a, _ := json.Marshal(rep)
	b, _ := json.Marshal(again)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("two replays differ: %v\n%s\n%s", err, a, b)
	}
	same, err := Replay(context.Background(), before, before, strings.NewReader(in), RunOptions{}, nil)
	if err != nil || same.Changed != 0 || same.Unchanged != 7 || same.Changes == nil {
		t.Errorf("%v %+v", err, same)
	}
}

func TestReplayOfAPolicyThatFails(t *testing.T) {
	good := Source{Path: policyDir(t, bySeverity(`["high"]`))}
	bad := Source{Path: policyDir(t, deciding(`{"verdict": "unknown", "responses": input.finding.tags}`))}
	rep, err := Replay(context.Background(), good, bad, strings.NewReader(stream(t, 3)), RunOptions{}, nil)
	// A finding without tags is decided on; vm.seen has no finding at all.
	if err != nil || rep.ErrorsAfter != 1 || rep.ErrorsBefore != 0 || rep.Changed != 4 {
		t.Errorf("%v %+v", err, rep)
	}
	if _, err := Replay(context.Background(), good, Source{Path: "/nowhere"}, strings.NewReader(""), RunOptions{}, nil); !errors.Is(err, ErrLoad) {
		t.Errorf("%v", err)
	}
}
