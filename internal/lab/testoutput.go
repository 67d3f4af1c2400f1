package lab

import (
	"regexp"
	"strings"
)

// Outcome is how a test ended.
type Outcome string

// Outcomes of a test. OutcomeNone is that of a test that never ended: the
// binary died in it.
const (
	OutcomePass Outcome = "PASS"
	OutcomeFail Outcome = "FAIL"
	OutcomeSkip Outcome = "SKIP"
	OutcomeNone Outcome = "NONE"
)

// NestedTest is one test of a binary, a subtest too.
type NestedTest struct {
	Name    string // "TestRegisters/two_vcpus"
	Outcome Outcome
	Output  string // what it printed
}

var (
	testBegin = regexp.MustCompile(`^\s*=== (RUN|CONT|NAME|PAUSE)\s+(\S+)$`)
	testEnd   = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \([0-9.]+s\)$`)
)

// parseTestOutput reads what a Go test binary prints with -test.v.
func parseTestOutput(text string) []NestedTest {
	var ended []NestedTest
	output := map[string]*strings.Builder{}
	var order []string // of beginnings
	var current string
	for line := range strings.Lines(text) {
		trimmed := strings.TrimRight(line, "\n")
		if m := testBegin.FindStringSubmatch(trimmed); m != nil {
			current = m[2]
			if output[current] == nil {
				output[current] = &strings.Builder{}
				order = append(order, current)
			}
			continue
		}
		if m := testEnd.FindStringSubmatch(trimmed); m != nil {
			t := NestedTest{Name: m[2], Outcome: Outcome(m[1])}
			if b := output[t.Name]; b != nil {
				t.Output = b.String()
				delete(output, t.Name)
			}
			ended = append(ended, t)
			continue
		}
		if b := output[current]; b != nil {
			b.WriteString(line)
		}
	}
	for _, name := range order {
		if b := output[name]; b != nil {
			ended = append(ended, NestedTest{Name: name, Outcome: OutcomeNone, Output: b.String()})
		}
	}
	return ended
}
