package scanner

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
)

// writeFiles writes files below a new folder.
func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func loadPath(t testing.TB, paths ...string) (*Rules, error) {
	t.Helper()
	var from []RuleSource
	for _, p := range paths {
		from = append(from, FromPath(p))
	}
	r, err := LoadRules(RuleOptions{}, from...)
	if r != nil {
		t.Cleanup(func() { r.Close() })
	}
	return r, err
}

func TestLoadFolder(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"b.yar":          `rule same : x y { meta: n = 3 s = "text" b = true s = "again" condition: true }`,
		"a.yara":         `rule same { condition: false }`,
		"deep/er/c.yar":  `include "../../lib/helper.inc" rule c { condition: helper }`,
		"lib/helper.inc": `private rule helper { condition: true }`,
		"notes.txt":      `no rule`,
	})
	r, err := loadPath(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{dir + "/a.yara:same", dir + "/b.yar:same", dir + "/deep/er/c.yar:c"}
	if got := r.Names(); !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	if r.Count() != 4 {
		t.Errorf("%d rules, want 4 with the private one", r.Count())
	}
	info := r.Info()[1]
	if fmt.Sprint(info.Tags) != "[x y]" || fmt.Sprint(info.Meta) != "map[b:true n:3 s:[text again]]" {
		t.Errorf("info: %+v", info)
	}

	// One file, and the same one twice.
	one, err := loadPath(t, dir+"/b.yar", dir+"/./b.yar")
	if err != nil || one.Count() != 1 {
		t.Fatalf("%v, %+v", err, one)
	}
	if one.Identity() == r.Identity() {
		t.Error("other rules have the same identity")
	}
	again, err := loadPath(t, dir)
	if err != nil || again.Identity() != r.Identity() {
		t.Errorf("the same rules have identities %v and %v (%v)", r.Identity(), again.Identity(), err)
	}
	// What is included is part of the identity.
	if err := os.WriteFile(dir+"/lib/helper.inc", []byte(`private rule helper { condition: false }`), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, err = loadPath(t, dir); err != nil || again.Identity() == r.Identity() {
		t.Errorf("a changed include leaves the identity (%v)", err)
	}
}

func TestCompileErrors(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"good.yar":  "rule good { condition: true }",
		"bad.yar":   "rule ok { condition: true }\n\nrule bad1 {\n  condition:\n    $a }\n\nrule bad2 { condition: nope }\n",
		"bad2.yar":  "rule x {\n",
		"inc.yar":   "// first line\ninclude \"broken.inc\"\nrule y { condition: true }\n",
		"where.yar": "\ninclude \"no/such.inc\"\n",
		"out.yar":   "include \"../../../../etc/passwd\"\n",
		"abs.yar":   "include \"/etc/passwd\"\n",
		"self.yar":  "include \"self.yar\"\n",
		"nul.yar":   "rule n {\n\x00}",

		"broken.inc": "\n\nrule broken { condition: 1 + }\n",
	})
	r, err := loadPath(t, dir)
	var ce *CompileErrors
	if r != nil || !errors.As(err, &ce) {
		t.Fatalf("got %v, %v", r, err)
	}
	got := map[string]bool{}
	for _, m := range ce.Errors {
		rel := strings.TrimPrefix(m.String(), dir+"/")
		got[rel] = true
	}
	for _, want := range []string{
		`bad.yar:5: undefined string "$a"`,
		`bad.yar:7: undefined identifier "nope"`,
		`broken.inc:3: syntax error`,
		`nul.yar:2: NUL byte`,
		`where.yar:2: `,
		`out.yar:1: `,
		`abs.yar:1: `,
		`self.yar:1: `,
		`bad2.yar:`,
	} {
		if !slices.ContainsFunc(ce.Errors, func(m CompileMessage) bool {
			return strings.HasPrefix(strings.TrimPrefix(m.String(), dir+"/"), want)
		}) {
			t.Errorf("no error %q in:\n%v", want, ce)
		}
	}
	if strings.Contains(err.Error(), "root:") {
		t.Errorf("the error shows the file: %v", err)
	}
	if len(got) != len(ce.Errors) {
		t.Errorf("an error is told twice: %v", ce)
	}
}

func TestWarnings(t *testing.T) {
	dir := writeFiles(t, map[string]string{"w.yar": "rule w {\n strings:\n  $a = /a.*/\n condition: $a }"})
	r, err := loadPath(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if w := r.Warnings(); len(w) == 0 || w[0].File != dir+"/w.yar" || w[0].Line == 0 {
		t.Errorf("warnings: %+v", w)
	}
}

func TestIncludesStayInTheFolder(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"rules/main.yar": `include "link.inc"`,
		"secret.inc":     `rule secret { condition: true }`,
	})
	if err := os.Symlink("../secret.inc", dir+"/rules/link.inc"); err != nil {
		t.Fatal(err)
	}
	if r, err := loadPath(t, dir+"/rules"); err == nil {
		t.Errorf("a link out of the folder was followed: %v", r.Names())
	}
	if r, err := loadPath(t, dir+"/rules/main.yar"); err == nil {
		t.Errorf("a link out of the folder was followed: %v", r.Names())
	}
	// A link that stays is followed, as in a mounted ConfigMap.
	if err := os.Symlink("real.txt", dir+"/rules/l.yar"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/rules/real.txt", []byte("rule l { condition: true }"), 0o600); err != nil {
		t.Fatal(err)
	}
	os.Remove(dir + "/rules/main.yar")
	if r, err := loadPath(t, dir+"/rules"); err != nil || r.Count() != 1 {
		t.Errorf("%v, %v", r, err)
	}
}

func TestNestedIncludesAreRelative(t *testing.T) {
	r, err := LoadRules(RuleOptions{}, FromFS(fstest.MapFS{
		"main.yar":     {Data: []byte(`include "a/x.inc" include "b/x.inc" rule m { condition: ra and rb }`)},
		"a/x.inc":      {Data: []byte(`include "common.inc"`)},
		"a/common.inc": {Data: []byte(`rule ra { condition: true }`)},
		"b/x.inc":      {Data: []byte(`include "common.inc"`)},
		"b/common.inc": {Data: []byte(`rule rb { condition: true }`)},
	}, "fs"))
	if err != nil || r.Count() != 3 {
		t.Fatalf("%v, %v", r, err)
	}
	r.Close()
}

func TestNoRules(t *testing.T) {
	dir := writeFiles(t, map[string]string{"readme.txt": "", "empty/x.yar": "// nothing"})
	for _, p := range []string{dir + "/empty", dir + "/nothing-here"} {
		if r, err := loadPath(t, p); err == nil {
			t.Errorf("%s: %v", p, r.Names())
		}
	}
	if _, err := loadPath(t, dir+"/empty"); !errors.Is(err, ErrNoRules) {
		t.Errorf("empty file: %v", err)
	}
	if _, err := loadPath(t, t.TempDir()); !errors.Is(err, ErrNoRules) {
		t.Errorf("empty folder: %v", err)
	}
	if _, err := LoadRules(RuleOptions{}); !errors.Is(err, ErrNoRules) {
		t.Errorf("no source: %v", err)
	}
	if _, err := loadPath(t, "/dev/zero"); err == nil {
		t.Error("a device was read")
	}
}

func TestExternals(t *testing.T) {
	m := newRAM(4)
	noise(m.bytes)
	load := func(text string, ext map[string]any) (*Rules, error) {
		return LoadRules(RuleOptions{Externals: ext}, FromFS(fstest.MapFS{"e.yar": {Data: []byte(text)}}, "e"))
	}
	r, err := load(`rule e { condition: limit > 3 and site == "north" and deep }`, map[string]any{"limit": 4, "site": "north", "deep": true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if fs, _ := runScan(t, m, r, []Target{PhysicalTarget{}}, Options{}); len(fs) != 1 {
		t.Errorf("%+v", fs)
	}
	other, err := load(`rule e { condition: limit > 3 and site == "north" and deep }`, map[string]any{"limit": 2, "site": "north", "deep": true})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if other.Identity() == r.Identity() {
		t.Error("externals are no part of the identity")
	}
	if _, err := load(`rule e { condition: unknown > 3 }`, nil); err == nil {
		t.Error("an unknown variable was taken")
	}
	if _, err := load(`rule e { condition: true }`, map[string]any{"x": []int{1}}); err == nil {
		t.Error("a variable of an unknown type was taken")
	}
	// A rule may have the name of a variable that it does not use.
	own, err := load(`rule pid { condition: true } rule comm { condition: pid }`, nil)
	if err != nil {
		t.Fatal(err)
	}
	own.Close()
	// All of the built-in ones.
	all, err := load(`rule all_of_them_set { condition: pid == 0 and comm == "" and where == "[physical]" and perms == "" and kind == "physical" and vm == "v" }`, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	if fs, _ := runScan(t, m, all, []Target{PhysicalTarget{}}, Options{VM: "v"}); len(fs) != 1 {
		t.Errorf("%+v", fs)
	}
}

func TestCompiledRules(t *testing.T) {
	dir := t.TempDir()
	r, err := LoadRules(RuleOptions{Externals: map[string]any{"site": "y"}}, FromFS(fstest.MapFS{"c.yar": {Data: []byte(needleRule + ` rule p { condition: pid == 7 and site == "x" }`)}}, "c"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	file := filepath.Join(dir, "rules.yac")
	if err := r.sets[0].yr.Save(file); err != nil {
		t.Fatal(err)
	}
	text := writeFiles(t, map[string]string{"more.yar": `rule more { condition: true }`})
	c, err := LoadRules(RuleOptions{Externals: map[string]any{"site": "x", "unused": 1}}, FromPath(file), FromPath(text))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Count() != 3 {
		t.Errorf("names: %v", c.Names())
	}
	m := newRAM(4)
	noise(m.bytes)
	copy(m.bytes[100:], needle)
	p, s := process(7, pages(heap, 1, "[heap]"))
	s.mapPages(heap, 0)
	fs, _ := runScan(t, m, c, []Target{p}, Options{})
	var names []string
	for _, f := range fs {
		names = append(names, f.Rule)
	}
	slices.Sort(names)
	if fmt.Sprint(names) != "[more needle p]" {
		t.Errorf("found %v", names)
	}

	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	bad := bytes.Clone(data)
	bad[4]++ // the version of the format
	for name, b := range map[string][]byte{
		"magic.yac": data[:4], "head.yac": data[:16], "half.yac": data[:len(data)/2], "version.yac": bad,
	} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadPath(t, p); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClosedRules(t *testing.T) {
	r := mustRules(t, needleRule)
	r.Close()
	if _, err := Scan(t.Context(), newRAM(1), r, nil, Options{}); !errors.Is(err, ErrRulesClosed) {
		t.Errorf("%v", err)
	}
}
