package scanner

import (
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/introspect"
)

// Summary says what a scan covered. It is the last line of its output.
//
// A page is one page of one target: a frame that ten processes have mapped
// counts ten times. PagesTotal is the sum of PagesRead, PagesUnreadable,
// PagesSwapped, PagesNotRAM, PagesTimedOut and PagesLeft.
type Summary struct {
	Summary bool   `json:"summary"` // always true
	VM      string `json:"vm"`
	Rules   int    `json:"rules"` // how many rules were looked for

	PagesTotal      uint64 `json:"pages_total"`      // in RAM or swapped out
	PagesRead       uint64 `json:"pages_read"`       // looked at, those below included
	PagesSkipped    uint64 `json:"pages_skipped"`    // read, all zero and not shown to libyara
	PagesUnreadable uint64 `json:"pages_unreadable"` // RAM that could not be read
	PagesSwapped    uint64 `json:"pages_swapped"`    // not present, but the guest keeps something there
	PagesNotRAM     uint64 `json:"pages_not_ram"`    // mapped, but no RAM: a device's memory
	PagesTimedOut   uint64 `json:"pages_timed_out"`  // libyara gave up on them
	PagesLeft       uint64 `json:"pages_left"`       // known, and not reached when the scan ended

	BytesScanned    uint64  `json:"bytes_scanned"`    // shown to libyara, each byte counted once
	BytesFromCache  uint64  `json:"bytes_from_cache"` // of the same frames in the same order as bytes seen before in this run
	Findings        int     `json:"findings"`
	DurationSeconds float64 `json:"duration_seconds"`

	Complete         bool                 `json:"complete"`
	IncompleteReason string               `json:"incomplete_reason,omitempty"`
	Problems         []introspect.Problem `json:"problems,omitempty"` // the first introspect.MaxProblems
	ProblemsTotal    int                  `json:"problems_total"`
}

// finish fills in Complete and its reason. ended says why the scan stopped
// before its end, "" when it did not.
func (s *Summary) finish(ended string, cov *introspect.Coverage) {
	var why []string
	if ended != "" {
		why = append(why, ended)
	}
	for _, c := range []struct {
		n    uint64
		what string
	}{
		{s.PagesUnreadable, "unreadable"},
		{s.PagesSwapped, "swapped out"},
		{s.PagesTimedOut, "given up after the time-out"},
	} {
		if c.n > 0 {
			why = append(why, fmt.Sprintf("%d pages %s", c.n, c.what))
		}
	}
	s.Problems, s.ProblemsTotal = cov.Problems(), cov.Total()
	if len(why) == 0 && s.ProblemsTotal > 0 {
		why = append(why, fmt.Sprintf("%d problems, the first: %v", s.ProblemsTotal, s.Problems[0]))
	}
	s.Complete = len(why) == 0
	s.IncompleteReason = strings.Join(why, "; ")
}
