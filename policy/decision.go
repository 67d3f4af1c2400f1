package policy

import (
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/event"
)

// Verdict is what policy says of an event.
type Verdict string

// Verdicts.
const (
	Benign     Verdict = "benign"     // nothing to do
	Suspicious Verdict = "suspicious" // a person should look
	Malicious  Verdict = "malicious"
	Unknown    Verdict = "unknown" // it cannot be told; also every decision of a fail mode
)

// Response is what is to be done about an event.
type Response struct {
	Name     string         `json:"response"` // of a Responder
	Severity event.Severity `json:"severity"`
	Reason   string         `json:"reason"`
	Params   map[string]any `json:"params,omitempty"`
}

// Names of the built-in responses.
const (
	Alert  = "alert"
	Pause  = "pause"
	Resume = "resume"
)

// Result is what a policy returned for an event.
type Result struct {
	Verdict   Verdict    `json:"verdict"`
	Responses []Response `json:"responses"` // sorted: alerts first, then by name, severity, reason
}

// Decision is the outcome of Decide.
type Decision struct {
	ID        string     `json:"decision_id"`
	Time      event.Time `json:"time"` // when it was taken; not the event's time
	EventID   string     `json:"event_id"`
	EventKind event.Kind `json:"event_kind"`
	VM        string     `json:"vm,omitempty"` // URI
	Revision  string     `json:"revision,omitempty"`
	Digest    string     `json:"digest"` // of the policy's files, SHA-256
	Result
	// FailMode is set when there was no decision of the policy and this one
	// comes from the fail mode; Error says why.
	FailMode FailMode `json:"fail_mode,omitempty"`
	Error    string   `json:"error,omitempty"`
	// Warnings are errors of builtins that left an expression undefined
	// without ending the evaluation.
	Warnings        []string `json:"warnings,omitempty"`
	DurationSeconds float64  `json:"duration_seconds"`

	// Err is the error that Error is the text of, for errors.Is.
	Err error `json:"-"`
}

// FailMode says what is done about an event when policy fails.
type FailMode string

// Fail modes.
const (
	// FailAlert raises an alert of high severity. It is the default.
	FailAlert FailMode = "alert"
	// FailPause raises an alert and pauses the VM, if the event is a finding:
	// a broken policy must not stop VMs in which nothing was found.
	FailPause FailMode = "pause"
	// FailIgnore does nothing.
	FailIgnore FailMode = "ignore"
)

// ParseFailMode returns the fail mode of name s; "" stands for FailAlert.
func ParseFailMode(s string) (FailMode, error) {
	switch m := FailMode(s); m {
	case "":
		return FailAlert, nil
	case FailAlert, FailPause, FailIgnore:
		return m, nil
	}
	return "", fmt.Errorf("fail mode %q: want alert, pause or ignore", s)
}

// result returns what m decides on an event. Nothing is done about Vantage's
// own acts: a response to them could fail the same way again.
func (m FailMode) result(e *event.Event) Result {
	r := Result{Verdict: Unknown, Responses: []Response{}}
	if m == FailIgnore || e.Kind.IsOwn() {
		return r
	}
	const reason = "policy failed; the fail mode decided"
	r.Responses = append(r.Responses, Response{Name: Alert, Severity: event.High, Reason: reason})
	if m == FailPause && e.Kind.IsFinding() {
		r.Responses = append(r.Responses, Response{Name: Pause, Severity: event.High, Reason: reason})
	}
	return r
}

// builtinResponses are the names that an Engine accepts if it is told no others.
func builtinResponses() []string { return []string{Alert, Pause, Resume} }

func isVerdict(v Verdict) bool {
	return slices.Contains([]Verdict{Benign, Suspicious, Malicious, Unknown}, v)
}
