package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/node"
	"github.com/vantage-vmi/vantage/scanner"
)

// scanOutput prints findings as they come and summaries at the end.
type scanOutput struct {
	app   *app
	style term.Style
	bar   *progressbar.ProgressBar
	sums  []scanner.Summary
	start time.Time
}

func newScanOutput(a *app) *scanOutput {
	return &scanOutput{app: a, style: term.NewStyle(a.stdout), start: time.Now()}
}

// begin starts the progress bar of one VM, where someone watches.
func (o *scanOutput) begin(vm hypervisor.Info) {
	if o.app.quiet || term.Width(o.app.stderr) == 0 {
		return
	}
	o.bar = progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(o.app.stderr),
		progressbar.OptionSetDescription("scan "+term.Escape(vm.Name)),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
}

// progress returns what the scanner tells how far it is; nil without a bar,
// which spares it the count of the total.
func (o *scanOutput) progress() func(scanner.Progress) {
	if o.bar == nil {
		return nil
	}
	bar := o.bar
	return func(p scanner.Progress) {
		if p.Total > 0 {
			bar.ChangeMax64(int64(max(p.Total, p.Done)))
		}
		_ = bar.Set64(int64(p.Done)) // a bar that cannot be drawn is no error
	}
}

// clear takes the bar away so that lines can be printed.
func (o *scanOutput) clear() {
	if o.bar != nil {
		_ = o.bar.Clear()
	}
}

// abandon takes the bar away for good.
func (o *scanOutput) abandon() {
	o.clear()
	o.bar = nil
}

// shownStrings is how many matches of a finding a person sees.
const shownStrings = 3

func (o *scanOutput) finding(f *node.Finding) error {
	o.clear()
	if o.app.json {
		return o.app.printJSON(newFindingLine(f))
	}
	w := o.app.stdout
	where := f.Where
	if f.PID != 0 {
		where = fmt.Sprintf("pid %d %s %s", f.PID, f.Comm, f.Where)
	}
	severity, _ := f.Meta["severity"].(string)
	if severity != "" {
		severity = " (" + severity + ")"
	}
	fmt.Fprintf(w, "%s  %s%s  in %s\n", o.style.Bold(term.Escape(f.VM)), o.style.Red(term.Escape(f.Rule)),
		term.Escape(severity), term.Escape(where))
	if f.Subject != nil {
		for _, line := range subjectLines(f) {
			fmt.Fprintf(w, "    %s\n", term.Escape(line))
		}
	}
	for i, s := range f.Strings {
		if i == shownStrings {
			break
		}
		at := fmt.Sprintf("gpa %v", s.PhysAddr)
		if s.VirtAddr != nil {
			at = fmt.Sprintf("%v (gpa %v)", *s.VirtAddr, s.PhysAddr)
		}
		// Data is escaped by the scanner already.
		fmt.Fprintf(w, "    %s at %s: %s\n", term.Escape(s.Name), at, o.fit(s.Data, len(s.Name)+len(at)+10))
	}
	if len(f.Strings) > shownStrings || f.StringsTruncated {
		fmt.Fprintln(w, "    … and more matches (--json lists them)")
	}
	return nil
}

// fit cuts s, which is ASCII, to what is left of a terminal's line.
func (o *scanOutput) fit(s string, used int) string {
	width := term.Width(o.app.stdout)
	if width == 0 || len(s)+used <= width {
		return s
	}
	return s[:max(16, min(len(s), width-used-1))] + "…"
}

// response prints what was done about a finding.
func (o *scanOutput) response(name, outcome, text string) {
	o.clear()
	mark := o.style.Green(outcome)
	if outcome == "failed" {
		mark = o.style.Red(outcome)
	}
	fmt.Fprintf(o.app.stdout, "    -> %s: %s%s\n", term.Escape(name), mark, term.Escape(text))
}

func (o *scanOutput) summary(s scanner.Summary) error {
	o.abandon()
	o.sums = append(o.sums, s)
	if o.app.json {
		return nil
	}
	w := o.app.stdout
	found := fmt.Sprintf("%d findings", s.Findings)
	switch {
	case s.Findings == 1:
		found = o.style.Red("1 finding")
	case s.Findings > 0:
		found = o.style.Red(found)
	}
	ram := s.PagesTotal - s.PagesNotRAM // a device's registers are nothing to scan
	fmt.Fprintf(w, "%s: %s; %s of %d pages in %.2fs (%d rules)\n", o.style.Bold(term.Escape(s.VM)), found,
		percent(s.PagesRead, ram), ram, s.DurationSeconds, s.Rules)
	var missed []string
	for _, m := range []struct {
		n    uint64
		what string
	}{
		{s.PagesSwapped, "swapped out"}, {s.PagesUnreadable, "unreadable"},
		{s.PagesTimedOut, "timed out"}, {s.PagesLeft, "not reached"},
	} {
		if m.n > 0 {
			missed = append(missed, fmt.Sprintf("%d %s", m.n, m.what))
		}
	}
	if len(missed) > 0 {
		fmt.Fprintf(w, "    not scanned: %s\n", strings.Join(missed, ", "))
	}
	if !s.Complete && s.IncompleteReason != "" {
		fmt.Fprintf(w, "    incomplete: %s\n", term.Escape(s.IncompleteReason))
		for i, p := range s.Problems {
			if i == shownStrings {
				fmt.Fprintf(w, "      … and %d more (--json lists them)\n", s.ProblemsTotal-shownStrings)
				break
			}
			fmt.Fprintf(w, "      %s\n", term.Escape(p.String()))
		}
	}
	return nil
}

func percent(part, whole uint64) string {
	switch {
	case whole == 0, part == whole:
		return "all"
	case part*1000/whole == 999:
		return "over 99.9%"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}

// totals is the last line of a scan of several VMs.
type totals struct {
	scanner.Summary
	VMs []scanner.Summary `json:"vms"`
}

// finish prints the last line and returns what ends the program.
func (o *scanOutput) finish(ctx context.Context, vms int, failed []error) error {
	t := totals{VMs: o.sums}
	t.Summary.Summary, t.Complete = true, len(failed) == 0
	for _, s := range o.sums {
		t.Rules = s.Rules
		t.PagesTotal += s.PagesTotal
		t.PagesRead += s.PagesRead
		t.PagesSkipped += s.PagesSkipped
		t.PagesUnreadable += s.PagesUnreadable
		t.PagesSwapped += s.PagesSwapped
		t.PagesNotRAM += s.PagesNotRAM
		t.PagesTimedOut += s.PagesTimedOut
		t.PagesLeft += s.PagesLeft
		t.BytesScanned += s.BytesScanned
		t.BytesFromCache += s.BytesFromCache
		t.Findings += s.Findings
		t.ProblemsTotal += s.ProblemsTotal
		if !s.Complete {
			t.Complete = false
			t.IncompleteReason = s.IncompleteReason
		}
	}
	t.DurationSeconds = time.Since(o.start).Seconds()
	if n := len(failed) + max(0, vms-len(failed)-len(o.sums)); n > 0 {
		t.Complete = false
		t.IncompleteReason = fmt.Sprintf("%d of %d VMs were not scanned", n, vms)
	}
	if o.app.json {
		var err error
		if vms == 1 && len(o.sums) == 1 {
			err = o.app.printJSON(o.sums[0])
		} else {
			err = o.app.printJSON(t)
		}
		if err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return &exitError{code: exitIncomplete}
	case t.Findings > 0:
		return &exitError{code: exitFound}
	case len(o.sums) == 0:
		return &exitError{code: exitFailed}
	case !t.Complete:
		return &exitError{code: exitIncomplete}
	}
	return nil
}
