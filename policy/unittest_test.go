package policy

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

const tested = `package vantage

decision := {"verdict": verdict, "responses": []}

default verdict := "benign"

verdict := "malicious" if input.n > 1

never if input.never
`

const tests = `package vantage_test

import data.vantage

test_good if {
	vantage.verdict == "malicious" with input as {"n": 2}
}

test_bad if {
	x := 1
	vantage.verdict == "malicious" with input as {"n": x}
	print("not reached")
}

test_cases[note] if {
	some note, n in {"one": 1, "two": 2, "three": 3}
	print("case", note)
	vantage.verdict == "malicious" with input as {"n": n}
}

test_error if {
	{k: v | some k in ["a"]; some v in [1, 2]} == {}
}

todo_test_later if false
`

func TestTest(t *testing.T) {
	dir := writeFiles(t, t.TempDir(), map[string]string{"policy.rego": tested, "policy_test.rego": tests})
	rep, err := Test(context.Background(), Source{Path: dir}, TestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Passed != 1 || rep.Failed != 2 || rep.Errored != 1 || rep.Skipped != 1 || rep.OK() {
		t.Errorf("%+v", rep)
	}
	var got []string
	byName := map[string]TestResult{}
	for _, r := range rep.Tests {
		got = append(got, r.Name+" "+r.Outcome)
		byName[r.Name] = r
		if r.File != dir+"/policy_test.rego" || r.Row == 0 || r.Package != "data.vantage_test" {
			t.Errorf("%+v", r)
		}
	}
	if s := strings.Join(got, ", "); s != "test_good pass, test_bad fail, test_cases fail, test_error error, todo_test_later skip" {
		t.Error(s)
	}
	bad := byName["test_bad"]
	if bad.Row != 9 || bad.FailedRow != 11 || !strings.Contains(bad.FailedAt, `vantage.verdict == "malicious"`) {
		t.Errorf("%+v", bad)
	}
	if len(bad.Trace) == 0 || !strings.Contains(strings.Join(bad.Trace, "\n"), "policy_test.rego:11") {
		t.Errorf("trace %s", strings.Join(bad.Trace, "\n"))
	}
	cases := byName["test_cases"]
	if cases.Cases != 3 || strings.Join(cases.FailedCases, " ") != "one" || !strings.Contains(cases.Output, "case two") {
		t.Errorf("%+v", cases)
	}
	if e := byName["test_error"].Error; !strings.Contains(e, "conflict") {
		t.Error(e)
	}
	// The default verdict and the rule "never" are not reached by any test.
	if c := rep.Coverage; len(c) != 1 || c[0].File != dir+"/policy.rego" || !slices.Contains(c[0].NotCovered, Lines{9, 9}) || slices.Contains(c[0].NotCovered, Lines{7, 7}) {
		t.Errorf("%+v", rep.Coverage)
	}
	if rep.CoveragePercent <= 0 || rep.CoveragePercent >= 100 {
		t.Errorf("%f", rep.CoveragePercent)
	}
	if _, err := json.Marshal(rep); err != nil {
		t.Error(err)
	}
	only, err := Test(context.Background(), Source{Path: dir}, TestOptions{Filter: `test_good$`})
	if err != nil || len(only.Tests) != 1 || !only.OK() {
		t.Errorf("%v %+v", err, only)
	}
}

func TestTestOfEndlessAndBroken(t *testing.T) {
	dir := writeFiles(t, t.TempDir(), map[string]string{"policy.rego": endless, "policy_test.rego": `package vantage_test
test_endless if data.vantage.decision.verdict == "benign" with input as {"now": 1}
`})
	start := time.Now()
	rep, err := Test(context.Background(), Source{Path: dir}, TestOptions{Timeout: 50 * time.Millisecond})
	if err != nil || rep.Errored != 1 || time.Since(start) > patience {
		t.Errorf("%v %+v after %s", err, rep, time.Since(start))
	}
	for name, text := range map[string]string{
		"syntax":  "package x_test\ntest_a if {",
		"type":    "package x_test\ntest_a if undefined_function(1)",
		"builtin": "package x_test\ntest_a if time.now_ns() > 0",
	} {
		writeFiles(t, dir, map[string]string{"policy_test.rego": text})
		if _, err := Test(context.Background(), Source{Path: dir}, TestOptions{}); !errors.Is(err, ErrLoad) || !strings.Contains(err.Error(), "policy_test.rego:2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// No tests are no success.
	rep, err = Test(context.Background(), Source{Path: policyDir(t, tested)}, TestOptions{})
	if err != nil || rep.OK() || rep.CoveragePercent != 0 || rep.Tests == nil {
		t.Errorf("%v %+v", err, rep)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Test(ctx, Source{Path: dir}, TestOptions{}); err == nil {
		t.Error("no error of a cancelled context")
	}
}
