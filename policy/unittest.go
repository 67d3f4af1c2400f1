package policy

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/cover"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/tester"
	"github.com/open-policy-agent/opa/v1/topdown"
	"github.com/open-policy-agent/opa/v1/topdown/lineage"
)

// maxTrace is how many lines of the trace of a failed test are kept.
const maxTrace = 100

// TestOptions of Test.
type TestOptions struct {
	Filter  string        // a regular expression of the tests to run, on "data.package.test_name"; "" runs all
	Timeout time.Duration // of one test; 0 stands for 5 s
}

// TestReport is what the tests of a policy said.
type TestReport struct {
	Path            string         `json:"path"`
	Passed          int            `json:"passed"`
	Failed          int            `json:"failed"`
	Errored         int            `json:"errored"`
	Skipped         int            `json:"skipped"`
	CoveragePercent float64        `json:"coverage_percent"` // of the lines of the policy, tests not counted
	DurationSeconds float64        `json:"duration_seconds"`
	Tests           []TestResult   `json:"tests"`    // sorted by file and line
	Coverage        []FileCoverage `json:"coverage"` // sorted by file
}

// OK reports whether there were tests and all passed.
func (r *TestReport) OK() bool { return r.Failed == 0 && r.Errored == 0 && r.Passed > 0 }

// Outcomes of a test.
const (
	TestPass  = "pass"
	TestFail  = "fail"
	TestError = "error" // it could not be evaluated to its end
	TestSkip  = "skip"  // its name begins with todo_
)

// TestResult is what one test said.
type TestResult struct {
	Package         string   `json:"package"`
	Name            string   `json:"name"`
	Outcome         string   `json:"outcome"`
	File            string   `json:"file"`
	Row             int      `json:"row"` // of the test, counted from 1
	FailedAt        string   `json:"failed_at,omitempty"`
	FailedRow       int      `json:"failed_row,omitempty"`   // of FailedAt
	FailedCases     []string `json:"failed_cases,omitempty"` // of a test with cases, test_x[case]
	Cases           int      `json:"cases,omitempty"`
	Error           string   `json:"error,omitempty"`
	Output          string   `json:"output,omitempty"` // of print
	Trace           []string `json:"trace,omitempty"`  // what failed on the way, for a failed test
	DurationSeconds float64  `json:"duration_seconds"`
}

// FileCoverage says which lines of a file no test evaluated.
type FileCoverage struct {
	File       string  `json:"file"`
	Percent    float64 `json:"percent"`
	NotCovered []Lines `json:"not_covered,omitempty"`
}

// Lines is a run of lines, counted from 1, both ends included.
type Lines struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Test runs the tests (_test.rego) of a policy. A test that fails is in the
// report and no error; an error that wraps ErrLoad says that the policy or its
// tests do not compile.
func Test(ctx context.Context, s Source, opts TestOptions) (*TestReport, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	if opts.Timeout <= 0 {
		opts.Timeout = 5 * time.Second
	}
	start := time.Now()
	files, err := s.read(true)
	if err != nil {
		return nil, fmt.Errorf("%w %s: %w", ErrLoad, s.name(), err)
	}
	cov := cover.New()
	results, modules, err := runTests(ctx, s, files, opts, func(r *tester.Runner) {
		r.SetCoverageQueryTracer(cov)
	})
	if err != nil {
		return nil, err
	}
	rep := &TestReport{Path: s.name(), Tests: []TestResult{}, Coverage: []FileCoverage{}}
	var again []string
	for _, r := range results {
		t := newTestResult(r)
		rep.Tests = append(rep.Tests, t)
		switch t.Outcome {
		case TestPass:
			rep.Passed++
		case TestFail:
			rep.Failed++
			again = append(again, regexp.QuoteMeta(r.Package+"."+r.Name))
		case TestError:
			rep.Errored++
		case TestSkip:
			rep.Skipped++
		}
	}
	rep.addCoverage(cov, modules)
	if len(again) > 0 {
		// Tracing excludes coverage, so what failed is run once more for it.
		opts.Filter = "^(" + strings.Join(again, "|") + ")$"
		traced, _, err := runTests(ctx, s, files, opts, func(r *tester.Runner) { r.EnableTracing(true) })
		if err != nil {
			return nil, err
		}
		rep.addTraces(traced)
	}
	rep.DurationSeconds = time.Since(start).Seconds()
	return rep, nil
}

// runTests compiles files anew, as OPA's runner rewrites what it is given, and
// returns the results in the order of the files.
func runTests(ctx context.Context, s Source, files []file, opts TestOptions, setup func(*tester.Runner)) ([]*tester.Result, map[string]*ast.Module, error) {
	l, err := s.parse(files)
	if err != nil {
		return nil, nil, fmt.Errorf("%w %s: %w", ErrLoad, s.name(), err)
	}
	store := inmem.NewFromObjectWithOpts(l.data, inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(true))
	txn, err := store.NewTransaction(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer store.Abort(ctx, txn)
	r := tester.NewRunner().
		SetCompiler(newCompiler(storage.NonEmpty(ctx, store, txn), true)).
		SetStore(store).
		SetModules(l.modules).
		SetTimeout(opts.Timeout).
		SetCoverageRuns(nil).
		Filter(opts.Filter)
	setup(r)
	ch, err := r.RunTests(ctx, txn)
	if err != nil {
		var errs ast.Errors
		if errors.As(err, &errs) {
			err = explain(errs)
		}
		return nil, nil, fmt.Errorf("%w %s: %w", ErrLoad, s.name(), err)
	}
	var results []*tester.Result
	for res := range ch {
		results = append(results, res)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	slices.SortFunc(results, func(a, b *tester.Result) int {
		return cmp.Or(
			cmp.Compare(a.Location.File, b.Location.File),
			cmp.Compare(a.Location.Row, b.Location.Row),
			cmp.Compare(a.Name, b.Name))
	})
	return results, l.modules, nil
}

func newTestResult(r *tester.Result) TestResult {
	t := TestResult{
		Package: r.Package, Name: r.Name, File: r.Location.File, Row: r.Location.Row,
		Output: string(r.Output), DurationSeconds: r.Duration.Seconds(),
	}
	for path, sub := range r.SubResults.Iter {
		if len(sub.SubResults) > 0 {
			continue
		}
		t.Cases++
		if sub.Fail {
			t.FailedCases = append(t.FailedCases, strings.Join(path, "/"))
		}
	}
	switch {
	case r.Skip:
		t.Outcome = TestSkip
	case r.Error != nil:
		t.Outcome, t.Error = TestError, r.Error.Error()
	case r.Fail:
		t.Outcome = TestFail
	default:
		t.Outcome = TestPass
	}
	return t
}

// addTraces says of the failed tests where they failed.
func (r *TestReport) addTraces(traced []*tester.Result) {
	for _, tr := range traced {
		i := slices.IndexFunc(r.Tests, func(t TestResult) bool { return t.Package == tr.Package && t.Name == tr.Name })
		if i < 0 {
			continue
		}
		t := &r.Tests[i]
		for _, e := range tr.Trace {
			if e.Op == topdown.FailOp && e.Location != nil && e.Location.File == t.File {
				t.FailedAt, t.FailedRow = string(e.Location.Text), e.Location.Row
			}
		}
		var b bytes.Buffer
		topdown.PrettyTraceWithLocation(&b, lineage.Fails(tr.Trace))
		lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		if n := len(lines) - maxTrace; n > 0 {
			lines = append(lines[:maxTrace], fmt.Sprintf("… and %d lines more", n))
		}
		t.Trace = lines
	}
}

// addCoverage adds the coverage of the files that are no tests.
func (r *TestReport) addCoverage(cov *cover.Cover, modules map[string]*ast.Module) {
	policy := map[string]*ast.Module{}
	for name, m := range modules {
		if !strings.HasSuffix(name, "_test.rego") {
			policy[name] = m
		}
	}
	report := cov.Report(policy)
	covered, all := 0, 0
	for _, name := range sortedKeys(policy) {
		f := report.Files[name]
		fc := FileCoverage{File: name, Percent: round(f.Coverage)}
		for _, n := range f.NotCovered {
			fc.NotCovered = append(fc.NotCovered, Lines{n.Start.Row, n.End.Row})
		}
		r.Coverage = append(r.Coverage, fc)
		covered += f.CoveredLines
		all += f.CoveredLines + f.NotCoveredLines
	}
	if all > 0 {
		r.CoveragePercent = round(100 * float64(covered) / float64(all))
	}
}

// round keeps two digits after the point.
func round(f float64) float64 { return float64(int(f*100+0.5)) / 100 }
