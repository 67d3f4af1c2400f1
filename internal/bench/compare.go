package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// scanFigures compares a full physical scan with the yara command on the same
// file with the same rules, for the rules that ship and for a thousand.
func scanFigures(ctx context.Context, o options, ram string) ([]figure, error) {
	st, err := os.Stat(ram)
	if err != nil {
		return nil, err
	}
	many := filepath.Join(o.dir, "thousand.yar")
	if err := os.WriteFile(many, thousandRules(), 0o644); err != nil {
		return nil, err
	}
	var out []figure
	for _, set := range []struct{ name, path string }{
		{"rules that ship", "rules/yara"},
		{"1,000 rules", many},
	} {
		yaraRules, err := yaraFile(o.dir, set.path)
		if err != nil {
			return nil, err
		}
		ss, err := inTurn(o.runs,
			func() (sample, error) {
				return command(ctx, []int{0, 1}, o.vantage, "scan", "image:"+ram, "--physical", "--rules", set.path, "--json", "--quiet")
			},
			func() (sample, error) {
				// The variables that the scanner sets by itself (scanner.RuleOptions).
				return command(ctx, []int{0}, "yara", "-w", "-d", "kind=physical", "-d", "pid=0", "-d", "comm=",
					"-d", "where=[physical]", "-d", "perms=", "-d", "vm=bench", yaraRules, ram)
			},
		)
		if err != nil {
			return nil, err
		}
		v, y := medianWall(ss[0]), medianWall(ss[1])
		mbs := func(d float64) float64 { return float64(st.Size()) / d / 1e6 }
		out = append(out, figure{
			Name: "physical scan, " + set.name + ": speed over yara's", Value: medianRatio(ss[1], ss[0]), Unit: "x", Limit: 1.8,
			Detail: fmt.Sprintf("vantage %.2f s (%.0f MB/s), yara %.2f s (%.0f MB/s)", v.Seconds(), mbs(v.Seconds()), y.Seconds(), mbs(y.Seconds())),
		}, figure{
			Name: "physical scan, " + set.name + ": own memory", Value: float64(maxAnon(ss[0])) / (1 << 20), Unit: "MiB", Limit: 300, AtMost: true,
			Detail: "the most anonymous memory resident at once, sampled; the mapped file is not counted",
		})
	}
	return out, nil
}

// yaraFile returns path as one file that the yara command takes: for a folder,
// a file that includes all in it.
func yaraFile(dir, path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil || !st.IsDir() {
		return path, err
	}
	files, err := filepath.Glob(filepath.Join(path, "*.yar"))
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range files {
		abs, err := filepath.Abs(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "include %q\n", abs)
	}
	out := filepath.Join(dir, "all.yar")
	return out, os.WriteFile(out, []byte(b.String()), 0o644)
}

// thousandRules returns rules of three strings each, as signature sets have
// them: a text, a text in either width, and a hex string with a gap.
func thousandRules() []byte {
	var b strings.Builder
	x := uint64(88172645463325252)
	next := func() uint64 { // xorshift: the same rules on every run
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		return x
	}
	for i := range 1000 {
		fmt.Fprintf(&b, "rule synthetic_%d {\n  strings:\n", i)
		fmt.Fprintf(&b, "    $a = \"mal%x_%x\"\n", next()&0xffff, next()&0xffffff)
		fmt.Fprintf(&b, "    $b = \"cfg%x.example\" ascii wide nocase\n", next()&0xffffff)
		n := next()
		fmt.Fprintf(&b, "    $c = { %02X %02X %02X %02X [2-6] %02X %02X }\n", n&0xff|1, n>>8&0xff, n>>16&0xff|1, n>>24&0xff, n>>32&0xff, n>>40&0xff)
		fmt.Fprintf(&b, "  condition:\n    2 of them\n}\n")
	}
	return []byte(b.String())
}

// psFigures compares `vantage ps`, with and without a cached profile, with
// sha256sum of the same file.
func psFigures(ctx context.Context, o options, ram string) ([]figure, error) {
	cache, err := os.MkdirTemp(o.dir, "cache-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	ps := func(cacheDir string) func() (sample, error) {
		return func() (sample, error) {
			return command(ctx, []int{0}, o.vantage, "ps", "image:"+ram, "--json", "--cache-dir", cacheDir)
		}
	}
	ss, err := inTurn(o.runs,
		ps(""), ps(cache),
		func() (sample, error) { return command(ctx, []int{0}, "sha256sum", ram) },
	)
	if err != nil {
		return nil, err
	}
	detail := func(i int) string {
		return fmt.Sprintf("ps %.3f s, sha256sum %.3f s", medianWall(ss[i]).Seconds(), medianWall(ss[2]).Seconds())
	}
	return []figure{
		{Name: "ps, no cached profile: time over sha256sum's", Value: medianRatio(ss[0], ss[2]), Unit: "x", Limit: 1, AtMost: true, Detail: detail(0)},
		{Name: "ps, cached profile: time over sha256sum's", Value: medianRatio(ss[1], ss[2]), Unit: "x", Limit: 0.1, AtMost: true, Detail: detail(1)},
	}, nil
}
