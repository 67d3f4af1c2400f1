// Command bench measures the figures that docs/SPECIFICATION.md promises, all in
// one run over the same bytes, and fails when one is missed.
//
// It boots a guest of 1 GiB, fills its memory with processes and data, writes
// its RAM to a file, and compares Vantage with the tools that people would use
// otherwise, run for run in turn. Figures of a machine are noise; the ratios of
// one run are what is promised.
//
// It is run by `make bench`. Nothing may import it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.vantage, "vantage", "./vantage", "the binary to measure")
	flag.StringVar(&o.dir, "dir", "build/bench", "where the guest's RAM is kept between runs")
	flag.StringVar(&o.json, "json", "", "write the figures to this file")
	flag.IntVar(&o.runs, "runs", 5, "counted runs of each command")
	flag.StringVar(&o.only, "only", "", "measure only what has this in its description, as: core")
	flag.BoolVar(&o.reuse, "reuse", false, "use the RAM file of the last run when there is one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := 0
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	stop()
	os.Exit(code)
}

type options struct {
	vantage, dir, json string
	runs               int
	only               string
	reuse              bool
}

// figure is one line of the result.
type figure struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Limit  float64 `json:"limit,omitempty"`
	AtMost bool    `json:"at_most,omitempty"` // Limit is the most; else the least
	Detail string  `json:"detail"`
}

func (f figure) promised() bool { return f.Limit != 0 }

func (f figure) met() bool {
	if f.AtMost {
		return f.Value <= f.Limit
	}
	return f.Value >= f.Limit
}

func run(ctx context.Context, o options) error {
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	ram := filepath.Join(o.dir, "guest-1g.raw")
	type part struct {
		what string
		ram  bool // reads the RAM file
		do   func(context.Context, options, string) ([]figure, error)
	}
	parts := []part{
		{"full physical scan against the yara command", true, scanFigures},
		{"ps against sha256sum", true, psFigures},
		{"what looks at the guest cost", true, lookFigures},
		{"ps and modules against the crash utility", true, crashFigures},
		{"virtual reads against memcpy", true, readFigures},
		{"the core against QEMU, and what its traps cost", false, coreFigures},
	}
	parts = slices.DeleteFunc(parts, func(p part) bool { return !strings.Contains(p.what, o.only) })
	if len(parts) == 0 {
		return fmt.Errorf("-only %s: nothing is called so", o.only)
	}
	if _, err := os.Stat(ram); (err != nil || !o.reuse) && slices.ContainsFunc(parts, func(p part) bool { return p.ram }) {
		fmt.Fprintln(os.Stderr, "bench: boot and fill a guest of 1 GiB")
		if err := makeImage(ctx, ram); err != nil {
			return fmt.Errorf("make the guest's RAM file: %w", err)
		}
	}
	start := time.Now()
	var all []figure
	for _, m := range parts {
		fmt.Fprintln(os.Stderr, "bench:", m.what)
		fs, err := m.do(ctx, o, ram)
		if err != nil {
			return fmt.Errorf("%s: %w", m.what, err)
		}
		all = append(all, fs...)
	}
	missed := printFigures(all)
	fmt.Printf("\nmeasured in %s; medians of %d runs each, commands in turn\n", time.Since(start).Round(time.Second), o.runs)
	if o.json != "" {
		b, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(b, '\n'), 0o644); err != nil {
			return err
		}
	}
	if missed > 0 {
		return fmt.Errorf("%d promised figures missed", missed)
	}
	return nil
}

func printFigures(fs []figure) (missed int) {
	fmt.Printf("%-46s %12s %-8s %s\n", "FIGURE", "VALUE", "UNIT", "PROMISE")
	for _, f := range fs {
		promise := ""
		if f.promised() {
			word, verdict := "at least", "met"
			if f.AtMost {
				word = "at most"
			}
			if !f.met() {
				verdict = "MISSED"
				missed++
			}
			promise = fmt.Sprintf("%s %.3g: %s", word, f.Limit, verdict)
		}
		fmt.Printf("%-46s %12.4g %-8s %s\n", f.Name, f.Value, f.Unit, promise)
		if f.Detail != "" {
			fmt.Printf("    %s\n", f.Detail)
		}
	}
	return missed
}
