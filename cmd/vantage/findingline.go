package main

import (
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/node"
	"github.com/vantage-vmi/vantage/scanner"
)

// findingLine is a finding as JSON: the scanner's, and what is known of the
// process that it lies in.
type findingLine struct {
	scanner.Finding
	*SubjectLine // nil: not in a process
}

// SubjectLine is the part of it that only findings in processes have. Its name is
// exported so that its strings are made valid like all others.
type SubjectLine struct {
	PPID      int            `json:"ppid"`
	UID       int            `json:"uid"`
	Exe       string         `json:"exe"`
	ExeSHA256 string         `json:"exe_sha256"`
	Problem   string         `json:"exe_problem,omitempty"`
	Container string         `json:"container"`
	Parents   []ancestorLine `json:"parents"`
}

type ancestorLine struct {
	PID  int    `json:"pid"`
	Comm string `json:"comm"`
	Exe  string `json:"exe"`
}

func newFindingLine(f *node.Finding) findingLine {
	l := findingLine{Finding: f.Finding}
	if f.Process == nil || f.Subject == nil {
		return l
	}
	p := f.Process
	l.SubjectLine = &SubjectLine{
		PPID: p.PPID, UID: p.UID, Exe: p.Exe, ExeSHA256: f.Subject.ExeSHA256, Problem: f.Subject.ExeProblem,
		Container: p.Container, Parents: make([]ancestorLine, len(f.Subject.Parents)),
	}
	for i, a := range f.Subject.Parents {
		l.Parents[i] = ancestorLine(a)
	}
	return l
}

// subjectLines say to a person what process f lies in. A hash has a line of its
// own, so that it fits a terminal.
func subjectLines(f *node.Finding) []string {
	p := f.Process
	parts := []string{fmt.Sprintf("program %s of uid %d", orDash(p.Exe), p.UID)}
	if p.Container != "" {
		parts = append(parts, "container "+shortID(p.Container))
	}
	var up []string
	for _, a := range f.Subject.Parents {
		up = append(up, fmt.Sprintf("%s[%d]", a.Comm, a.PID))
	}
	if len(up) > 0 {
		parts = append(parts, "from "+strings.Join(up, " from "))
	}
	lines := []string{strings.Join(parts, ", ")}
	if h := f.Subject.ExeSHA256; h != "" {
		lines = append(lines, "sha256 "+h)
	}
	return lines
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
