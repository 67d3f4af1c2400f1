package main

import (
	"fmt"
	"time"

	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect"
)

// printJSON prints v as one line. People look at it on terminals too, so what a
// terminal acts on is escaped, as in events; to a program it means the same.
func (a *app) printJSON(v any) error {
	b, err := event.MarshalLine(v)
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	_, err = a.stdout.Write(append(b, '\n'))
	return err
}

// incomplete reports what a walk missed on stderr and returns the error that
// ends the program with status 3; nil when nothing was missed.
func (a *app) incomplete(c *introspect.Coverage) error {
	if c == nil || c.Complete() {
		return nil
	}
	problems := c.Problems()
	if a.json {
		err := a.printJSONErr(struct {
			Incomplete bool                 `json:"incomplete"`
			Total      int                  `json:"problems_total"`
			Problems   []introspect.Problem `json:"problems"`
		}{true, c.Total(), problems})
		if err != nil {
			return err
		}
		return &exitError{code: exitIncomplete}
	}
	const most = 8
	fmt.Fprintf(a.stderr, "vantage: incomplete: %d things could not be read\n", c.Total())
	for i, p := range problems {
		if i == most {
			fmt.Fprintf(a.stderr, "  … and %d more (--json lists them)\n", c.Total()-most)
			break
		}
		fmt.Fprintf(a.stderr, "  %s\n", term.Escape(p.String()))
	}
	return &exitError{code: exitIncomplete}
}

// printJSONErr prints v as one line on stderr, where all that is not a result
// goes.
func (a *app) printJSONErr(v any) error {
	b, err := event.MarshalLine(v)
	if err != nil {
		return fmt.Errorf("encode output: %w", err)
	}
	_, err = fmt.Fprintf(a.stderr, "%s\n", b)
	return err
}

// bytesText writes n as people read it: 512M, 1.5G.
func bytesText(n uint64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%dB", n)
	}
	v, i := float64(n), -1
	for v >= unit && i < 5 {
		v /= unit
		i++
	}
	if v == float64(uint64(v)) || v >= 100 {
		return fmt.Sprintf("%.0f%c", v, "KMGTPE"[i])
	}
	return fmt.Sprintf("%.1f%c", v, "KMGTPE"[i])
}

// timeText writes t for a table; the zero time as "-".
func timeText(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02 15:04:05")
}
