package event

import (
	"fmt"
	"strconv"
	"strings"
)

// Limits of the schema, in bytes.
const (
	maxIDLen   = 64
	maxKindLen = 64
)

// Validate returns an error that wraps ErrVersion or ErrInvalid when e is not
// an event that this package understands. A kind that it does not know is no
// error.
func (e *Event) Validate() error {
	if err := checkVersion(e.SchemaVersion); err != nil {
		return err
	}
	switch {
	case e.ID == "" || len(e.ID) > maxIDLen || !isToken(e.ID):
		return fmt.Errorf("%w: id %.80q", ErrInvalid, e.ID)
	case len(e.Cause) > maxIDLen || !isToken(e.Cause):
		return fmt.Errorf("%w: cause %.80q", ErrInvalid, e.Cause)
	case len(e.CauseKind) > maxKindLen || !isToken(string(e.CauseKind)):
		return fmt.Errorf("%w: cause_kind %.80q", ErrInvalid, e.CauseKind)
	case e.Time.IsZero():
		return fmt.Errorf("%w: no time", ErrInvalid)
	case e.Kind == "" || len(e.Kind) > maxKindLen || !isToken(string(e.Kind)):
		return fmt.Errorf("%w: kind %.80q", ErrInvalid, e.Kind)
	case e.Severity.Rank() < 0:
		return fmt.Errorf("%w: severity %.80q", ErrInvalid, e.Severity)
	}
	if part := e.missingPart(); part != "" {
		return fmt.Errorf("%w: %s without %s", ErrInvalid, e.Kind, part)
	}
	return e.checkParts()
}

// checkParts checks the values that the schema closes.
func (e *Event) checkParts() error {
	if r := e.Response; r != nil {
		ok := r.Name != ""
		switch e.Kind {
		case ResponseDone:
			ok = ok && r.Outcome == Done
		case ResponseFailed:
			ok = ok && r.Outcome == Failed && r.Error != ""
		case ResponseSkipped:
			ok = ok && (r.Outcome == DryRun || r.Outcome == Duplicate || r.Outcome == Refused)
		}
		if !ok {
			return fmt.Errorf("%w: %s with response %.40q, outcome %.40q", ErrInvalid, e.Kind, r.Name, r.Outcome)
		}
	}
	if p := e.Policy; p != nil {
		switch p.Stage {
		case StageLoad, StageEvaluate, StageResult, StageLog:
		default:
			return fmt.Errorf("%w: policy stage %.40q", ErrInvalid, p.Stage)
		}
	}
	return nil
}

// missingPart returns the name of a part that e's kind requires and e lacks.
func (e *Event) missingPart() string {
	needVM := func(other bool, name string) string {
		switch {
		case e.VM == nil:
			return "vm"
		case !other:
			return name
		}
		return ""
	}
	switch e.Kind {
	case FindingScan:
		return needVM(e.Finding != nil, "finding")
	case ProcessHidden:
		return needVM(e.Process != nil, "process")
	case ModuleHidden:
		return needVM(e.Module != nil, "module")
	case VMSeen, VMGone:
		return needVM(true, "")
	case ScanSummary:
		return needVM(e.Summary != nil, "summary")
	case ResponseDone, ResponseFailed, ResponseSkipped:
		if e.Response == nil {
			return "response"
		}
	case PolicyError:
		if e.Policy == nil {
			return "policy"
		}
	}
	return ""
}

// checkVersion accepts MAJOR.MINOR with this package's MAJOR.
func checkVersion(v string) error {
	major, minor, ok := strings.Cut(v, ".")
	ours, _, _ := strings.Cut(SchemaVersion, ".")
	if ok {
		if _, err := strconv.ParseUint(minor, 10, 16); err != nil {
			ok = false
		}
	}
	if !ok || major != ours {
		return fmt.Errorf("%w: schema_version %.40q, want %s.x", ErrVersion, v, ours)
	}
	return nil
}

// isToken reports whether s is made of letters, digits, '.', '_', ':' and '-'.
func isToken(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case c == '.', c == '_', c == ':', c == '-':
		default:
			return false
		}
	}
	return true
}
