package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/event"
)

func reason(t testing.TB, e *Engine) string {
	t.Helper()
	d := e.Decide(context.Background(), finding("high"))
	if d.Err != nil {
		t.Fatal(d.Err)
	}
	return d.Responses[0].Reason
}

func TestReload(t *testing.T) {
	events := newCollector()
	e := engineOf(t, pausing("one"), Options{OnEvent: events.add})
	if changed, err := e.Reload(context.Background()); err != nil || changed {
		t.Errorf("nothing changed: %v, %v", changed, err)
	}
	before := e.Info()
	for name, bad := range map[string]string{
		"syntax":      "package vantage\ndecision := {",
		"type":        deciding(`"a" + 1`),
		"no decision": "package other\nx := 1\n",
		"unsafe":      "package vantage\ndecision := x\n",
		"old syntax":  "package vantage\ndecision = 1 { true }\n",
		"unused":      "package vantage\ndecision := 1 if { x := 2 }\n",
	} {
		writeFiles(t, e.source.Path, map[string]string{"policy.rego": bad})
		changed, err := e.Reload(context.Background())
		if changed || !errors.Is(err, ErrLoad) || !strings.Contains(err.Error(), e.source.Path) {
			t.Errorf("%s: %v, %v", name, changed, err)
		}
		if e.Info().Digest != before.Digest || reason(t, e) != "one" {
			t.Errorf("%s: the last good policy does not stay", name)
		}
	}
	all := events.all()
	if len(all) != 6 || all[0].Kind != event.PolicyError || all[0].Policy.Stage != event.StageLoad || all[0].Policy.Digest != before.Digest {
		t.Errorf("events: %+v", all)
	}
	// Broken data, a folder without a policy, no folder: the same.
	writeFiles(t, e.source.Path, map[string]string{"policy.rego": pausing("two"), "data.json": "{"})
	if _, err := e.Reload(context.Background()); !errors.Is(err, ErrLoad) || reason(t, e) != "one" {
		t.Errorf("broken data: %v", err)
	}
	writeFiles(t, e.source.Path, map[string]string{"data.json": `{"vantage": {"decision": {}}}`})
	if _, err := e.Reload(context.Background()); !errors.Is(err, ErrLoad) || reason(t, e) != "one" {
		t.Errorf("data where a rule is: %v", err)
	}
	if err := os.Remove(filepath.Join(e.source.Path, "policy.rego")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Reload(context.Background()); !errors.Is(err, ErrLoad) || reason(t, e) != "one" {
		t.Errorf("no policy: %v", err)
	}
	if err := os.RemoveAll(e.source.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Reload(context.Background()); !errors.Is(err, os.ErrNotExist) || reason(t, e) != "one" {
		t.Errorf("no folder: %v", err)
	}
	writeFiles(t, e.source.Path, map[string]string{"policy.rego": pausing("two")})
	if changed, err := e.Reload(context.Background()); err != nil || !changed || reason(t, e) != "two" {
		t.Errorf("good again: %v, %v", changed, err)
	}
	if s := e.Stats(); s.Reloads != 1 || s.ReloadsFailed != 10 {
		t.Errorf("%+v", s)
	}
}

func TestNewRefusesABadPolicy(t *testing.T) {
	for name, s := range map[string]Source{
		"missing":     {Path: filepath.Join(t.TempDir(), "none")},
		"empty":       {Path: t.TempDir()},
		"neither":     {},
		"both":        {Path: "x", FS: os.DirFS(".")},
		"no archive":  {Path: filepath.Join(writeFiles(t, t.TempDir(), map[string]string{"x.rego": "package x"}), "x.rego")},
		"no decision": {Path: policyDir(t, "package vantage\nx := 1\n")},
	} {
		if e, err := New(context.Background(), Options{Source: s}); err == nil {
			t.Errorf("%s: no error", name)
			_ = e.Close()
		}
	}
}

func watched(t *testing.T, path string) (*Engine, *collector) {
	events := newCollector()
	return newEngine(t, Options{Source: Source{Path: path}, Watch: true, Debounce: 20 * time.Millisecond, OnEvent: events.add}), events
}

func TestWatchFolder(t *testing.T) {
	parent := t.TempDir()
	dir := writeFiles(t, filepath.Join(parent, "policies"), map[string]string{"policy.rego": pausing("one")})
	e, events := watched(t, dir)
	becomes := func(what, want string) {
		t.Helper()
		eventually(t, what, func() bool { return reason(t, e) == want })
	}
	writeFiles(t, dir, map[string]string{"policy.rego": pausing("two")})
	becomes("a changed file", "two")

	writeFiles(t, dir, map[string]string{"policy.rego": "package vantage\ndecision := {"})
	events.wait(t, func(ev event.Event) bool { return ev.Kind == event.PolicyError && ev.Policy.Stage == event.StageLoad })
	if got := reason(t, e); got != "two" {
		t.Errorf("%s after a broken change", got)
	}

	writeFiles(t, dir, map[string]string{"policy.rego": strings.Replace(pausing("X"), `"X"`, `data.sub.reason`, 2), "sub/data.yaml": "reason: three\n"})
	becomes("a new folder", "three")
	writeFiles(t, dir, map[string]string{"sub/data.yaml": "reason: four\n"})
	becomes("a file in the new folder", "four")

	// The whole folder is replaced.
	if err := os.Rename(dir, filepath.Join(parent, "old")); err != nil {
		t.Fatal(err)
	}
	writeFiles(t, filepath.Join(parent, "new"), map[string]string{"policy.rego": pausing("five")})
	if err := os.Rename(filepath.Join(parent, "new"), dir); err != nil {
		t.Fatal(err)
	}
	becomes("a replaced folder", "five")
	writeFiles(t, dir, map[string]string{"policy.rego": pausing("six")})
	becomes("a file in the replaced folder", "six")
}

// TestWatchLinks changes a policy as Kubernetes does: files are links through
// ..data, which is replaced.
func TestWatchLinks(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"..1/policy.rego": pausing("one"), "..2/policy.rego": pausing("two")})
	link := func(target, name string) {
		t.Helper()
		tmp := filepath.Join(dir, ".tmp")
		if err := os.Symlink(target, tmp); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..1", "..data")
	link("..data/policy.rego", "policy.rego")
	e, _ := watched(t, dir)
	if got := reason(t, e); got != "one" {
		t.Fatal(got)
	}
	link("..2", "..data")
	eventually(t, "a replaced link", func() bool { return reason(t, e) == "two" })
}

func tarGz(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	tw := tar.NewWriter(gz)
	for name, text := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), gz.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestBundle(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bundle.tar.gz")
	put := func(b []byte) {
		t.Helper()
		writeFiles(t, dir, map[string]string{"bundle.tar.gz": string(b)})
	}
	put(tarGz(t, map[string]string{
		"/.manifest":      `{"revision": "r1", "roots": ["vantage", "conf"]}`,
		"a/policy.rego":   strings.Replace(pausing("X"), `"X"`, `data.conf.reason`, 2),
		"a/bad_test.rego": "not rego",
		"conf/data.json":  `{"reason": "one"}`,
		"README.md":       "ignored",
	}))
	e, _ := watched(t, path)
	if got := reason(t, e); got != "one" || e.Info().Revision != "r1" {
		t.Errorf("%s, %+v", got, e.Info())
	}
	good := tarGz(t, map[string]string{"policy.rego": pausing("two")})
	for name, b := range map[string][]byte{
		"cut short": good[:len(good)/2],
		"no gzip":   []byte("x"),
		"roots":     tarGz(t, map[string]string{".manifest": `{"roots": ["other"]}`, "policy.rego": pausing("x")}),
		"signed":    tarGz(t, map[string]string{".signatures.json": `{"signatures": ["x"]}`, "policy.rego": pausing("x")}),
		"twice":     tarGz(t, map[string]string{"policy.rego": pausing("x"), "./policy.rego": pausing("y")}),
	} {
		put(b)
		if _, err := e.Reload(context.Background()); !errors.Is(err, ErrLoad) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := reason(t, e); got != "one" {
		t.Errorf("%s after broken bundles", got)
	}
	put(good)
	eventually(t, "a replaced bundle", func() bool { return reason(t, e) == "two" })
}

func TestLimits(t *testing.T) {
	lim := limits{files: 2, file: 1000, total: 20_000}
	zeros := func(n int) string { return strings.Repeat("\n", n) }
	for name, c := range map[string]struct {
		files map[string]string
		want  error
	}{
		"just":       {map[string]string{"a.rego": zeros(1000), "b.rego": zeros(1000)}, nil},
		"one file":   {map[string]string{"a.rego": zeros(1001)}, ErrTooLarge},
		"many files": {map[string]string{"a.rego": "", "b.rego": "", "c.rego": ""}, ErrTooLarge},
	} {
		dir := writeFiles(t, t.TempDir(), c.files)
		if _, err := readFS(os.DirFS(dir), false, lim); !errors.Is(err, c.want) {
			t.Errorf("folder, %s: %v", name, err)
		}
		if _, err := readBundle(bytes.NewReader(tarGz(t, c.files)), false, lim); !errors.Is(err, c.want) {
			t.Errorf("bundle, %s: %v", name, err)
		}
	}
	// A bomb of files that are no part of a policy.
	bomb := tarGz(t, map[string]string{"a.md": zeros(15_000), "b.md": zeros(15_000)})
	if _, err := readBundle(bytes.NewReader(bomb), false, lim); !errors.Is(err, ErrTooLarge) {
		t.Errorf("bomb: %v", err)
	}
}

// TestDecideWhileReloading: every decision is of one policy or the other, none
// fails, and none waits for a load.
func TestDecideWhileReloading(t *testing.T) {
	e := engineOf(t, pausing("0"), Options{})
	var stop atomic.Bool
	var decisions atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !stop.Load() {
				d := e.Decide(context.Background(), finding("high"))
				if d.Err != nil || len(d.Responses) != 2 || d.Responses[0].Reason != d.Responses[1].Reason {
					t.Errorf("%v %+v", d.Err, d.Responses)
					return
				}
				decisions.Add(1)
			}
		})
	}
	for i := range 40 {
		text := pausing(strings.Repeat("x", i+1))
		if i%4 == 3 {
			text = "broken"
		}
		writeFiles(t, e.source.Path, map[string]string{"policy.rego": text})
		if _, err := e.Reload(context.Background()); (err != nil) != (i%4 == 3) {
			t.Errorf("reload %d: %v", i, err)
		}
	}
	eventually(t, "decisions are taken", func() bool { return decisions.Load() > 100 })
	stop.Store(true)
	wg.Wait()
}
