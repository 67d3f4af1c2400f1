package defaultpolicy_test

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/format"
	"go.uber.org/goleak"

	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/policy"
	defaultpolicy "github.com/vantage-vmi/vantage/rules/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func source() policy.Source { return policy.Source{FS: defaultpolicy.FS()} }

func TestRegoTestsPassAndCoverEverything(t *testing.T) {
	for name, s := range map[string]policy.Source{"built in": source(), "folder": {Path: "."}} {
		t.Run(name, func(t *testing.T) { testRego(t, s) })
	}
}

func testRego(t *testing.T, s policy.Source) {
	rep, err := policy.Test(context.Background(), s, policy.TestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rep.Tests {
		if r.Outcome != policy.TestPass {
			t.Errorf("%s.%s (%s:%d): %s %s %v\n%s", r.Package, r.Name, r.File, r.Row, r.Outcome, r.Error, r.FailedCases, strings.Join(r.Trace, "\n"))
		}
	}
	if !rep.OK() || rep.Passed < 20 {
		t.Errorf("%d passed", rep.Passed)
	}
	for _, f := range rep.Coverage {
		if f.Percent < 100 {
			t.Errorf("%s: %.0f%% covered, not lines %v", f.File, f.Percent, f.NotCovered)
		}
	}
}

func regoFiles(t *testing.T) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	err := fs.WalkDir(defaultpolicy.FS(), ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(p) != ".rego" {
			return err
		}
		files[p], err = fs.ReadFile(defaultpolicy.FS(), p)
		return err
	})
	if err != nil || len(files) < 6 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	return files
}

func TestRegoIsFormatted(t *testing.T) {
	for name, src := range regoFiles(t) {
		want, err := format.SourceWithOpts(name, src, format.Opts{RegoVersion: ast.RegoV1})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if !bytes.Equal(src, want) {
			t.Errorf("%s is not as `opa fmt` writes it; want\n%s", name, want)
		}
	}
}

func TestRegoHasMetadataAndTests(t *testing.T) {
	files := regoFiles(t)
	for name, src := range files {
		if strings.HasSuffix(name, "_test.rego") {
			continue
		}
		if _, ok := files[strings.TrimSuffix(name, ".rego")+"_test.rego"]; !ok {
			t.Errorf("%s has no tests", name)
		}
		m, err := ast.ParseModuleWithOpts(name, string(src), ast.ParserOptions{ProcessAnnotation: true, RegoVersion: ast.RegoV1})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(m.Annotations, func(a *ast.Annotations) bool { return a.Scope == "package" })
		if i < 0 || m.Annotations[i].Title == "" || m.Annotations[i].Description == "" {
			t.Errorf("%s: no package METADATA with title and description", name)
			continue
		}
		if sev := m.Annotations[i].Custom["severity"]; strings.HasPrefix(name, "rules/") && sev == nil {
			t.Errorf("%s: no custom severity", name)
		}
	}
}

// TestDecisions runs the default policy as the binary does.
func TestDecisions(t *testing.T) {
	e, err := policy.New(context.Background(), policy.Options{Source: source()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	src := event.NewSource(nil)
	finding := func(severity string) *event.Event {
		ev := src.New(event.FindingScan, event.Info)
		ev.VM = &event.VM{Name: "web-1", URI: "qemu:1", Driver: "qemu"}
		ev.Finding = &event.Finding{Rule: "R", Where: "[heap]", Meta: map[string]any{"severity": severity}}
		return &ev
	}
	for severity, want := range map[string]string{
		"critical": "malicious alert pause", "high": "malicious alert pause", "medium": "suspicious alert", "low": "suspicious", "": "suspicious alert",
	} {
		d := e.Decide(context.Background(), finding(severity))
		if d.Err != nil || len(d.Warnings) != 0 {
			t.Fatal(d.Err, d.Warnings)
		}
		got := []string{string(d.Verdict)}
		for _, r := range d.Responses {
			got = append(got, r.Name)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("severity %q: %s, want %s", severity, s, want)
		}
	}
}

// TestReadmeExample compiles the example and runs it next to the default rules.
func TestReadmeExample(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok1 := strings.Cut(string(readme), "```rego\n")
	example, _, ok2 := strings.Cut(rest, "```")
	if !ok1 || !ok2 {
		t.Fatal("no example")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, defaultpolicy.FS()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "mine.rego"), []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := policy.New(context.Background(), policy.Options{Source: policy.Source{Path: dir}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	ev := event.NewSource(nil).New(event.ModuleHidden, event.High)
	ev.VM = &event.VM{Name: "db-1", URI: "qemu:2", Driver: "qemu"}
	ev.Module = &event.Module{Name: "rk"}
	d := e.Decide(context.Background(), &ev)
	if d.Err != nil || d.Verdict != policy.Malicious || len(d.Responses) != 2 || d.Responses[1].Name != policy.Pause {
		t.Errorf("%v %+v", d.Err, d.Result)
	}
}

// TestReadmeNamesDisabledBuiltins keeps the list in step.
func TestReadmeNamesDisabledBuiltins(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range policy.DisabledBuiltins() {
		if !strings.Contains(string(readme), "`"+name+"`") {
			t.Errorf("README.md does not name %s", name)
		}
	}
}
