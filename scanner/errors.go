package scanner

import (
	"errors"
	"fmt"
	"strings"
)

var (
	// ErrNoRules is returned when the given sources hold no rule at all.
	ErrNoRules = errors.New("no YARA rules found")
	// ErrRulesClosed is returned when closed Rules are used.
	ErrRulesClosed = errors.New("rules are closed")
)

// CompileMessage is an error or a warning of the YARA compiler.
type CompileMessage struct {
	File string `json:"file"`
	Line int    `json:"line"` // 0: the file as a whole
	Text string `json:"text"`
}

func (m CompileMessage) String() string {
	if m.Line == 0 {
		return m.File + ": " + m.Text
	}
	return fmt.Sprintf("%s:%d: %s", m.File, m.Line, m.Text)
}

// CompileErrors lists everything that is wrong with a set of rules. Nothing of
// the set can be used: a scan with half of it would look like a clean one.
type CompileErrors struct {
	Errors   []CompileMessage `json:"errors"` // never empty
	Warnings []CompileMessage `json:"warnings"`
}

func (e *CompileErrors) Error() string {
	var b strings.Builder
	b.WriteString("YARA rules do not compile: ")
	for i, m := range e.Errors {
		if i == 10 {
			fmt.Fprintf(&b, "\n… and %d more", len(e.Errors)-i)
			break
		}
		if i > 0 {
			b.WriteString("\n")
		}
		b.WriteString(m.String())
	}
	return b.String()
}
