package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/vantage-vmi/vantage/event"
)

// Limits of what a policy may return.
const (
	maxResponses = 64
	maxReason    = 4 << 10 // bytes
	maxParams    = 64 << 10
)

// decodeResult reads what Rego returned for data.vantage.decision. It is
// strict: whatever it does not understand is an error that wraps ErrResult,
// never left out, as a misspelt "pause" must not become no response.
func decodeResult(v any, known []string) (Result, error) {
	bad := func(format string, args ...any) (Result, error) {
		return Result{}, fmt.Errorf("%w: %s", ErrResult, fmt.Sprintf(format, args...))
	}
	m, ok := v.(map[string]any)
	if !ok {
		return bad("want an object, got %s", typeName(v))
	}
	for k := range m {
		if k != "verdict" && k != "responses" {
			return bad("unknown field %.80q", k)
		}
	}
	verdict, ok := m["verdict"].(string)
	if !ok || !isVerdict(Verdict(verdict)) {
		return bad("verdict %.80q: want benign, suspicious, malicious or unknown", fmt.Sprint(m["verdict"]))
	}
	// A set of Rego arrives as a list.
	list, ok := m["responses"].([]any)
	if !ok {
		return bad("responses: want a set or an array, got %s", typeName(m["responses"]))
	}
	if len(list) > maxResponses {
		return bad("%d responses, at most %d", len(list), maxResponses)
	}
	r := Result{Verdict: Verdict(verdict), Responses: make([]Response, 0, len(list))}
	has := map[string]bool{}
	for i, x := range list {
		resp, err := decodeResponse(x, known)
		if err != nil {
			return bad("responses[%d]: %v", i, err)
		}
		has[resp.Name] = true
		r.Responses = append(r.Responses, resp)
	}
	if has[Pause] && has[Resume] {
		return bad("both pause and resume")
	}
	sortResponses(r.Responses)
	return r, nil
}

func decodeResponse(v any, known []string) (Response, error) {
	m, ok := v.(map[string]any)
	if !ok {
		return Response{}, fmt.Errorf("want an object, got %s", typeName(v))
	}
	for k := range m {
		switch k {
		case "response", "severity", "reason", "params":
		default:
			return Response{}, fmt.Errorf("unknown field %.80q", k)
		}
	}
	var r Response
	if r.Name, ok = m["response"].(string); !ok || !slices.Contains(known, r.Name) {
		return Response{}, fmt.Errorf("%w %.80q: want one of %s", ErrUnknownResponse, fmt.Sprint(m["response"]), strings.Join(known, ", "))
	}
	sev, ok := m["severity"].(string)
	if r.Severity = event.Severity(sev); !ok || r.Severity.Rank() < 0 {
		return Response{}, fmt.Errorf("severity %.80q: want one of %v", fmt.Sprint(m["severity"]), event.Severities())
	}
	if r.Reason, ok = m["reason"].(string); !ok || len(r.Reason) > maxReason {
		return Response{}, fmt.Errorf("reason: want a string of at most %d bytes", maxReason)
	}
	if p, set := m["params"]; set {
		if r.Params, ok = p.(map[string]any); !ok {
			return Response{}, fmt.Errorf("params: want an object, got %s", typeName(p))
		}
		if b, err := json.Marshal(r.Params); err != nil || len(b) > maxParams {
			return Response{}, fmt.Errorf("params: want JSON of at most %d bytes", maxParams)
		}
		if len(r.Params) == 0 {
			r.Params = nil
		}
	}
	return r, nil
}

// sortResponses puts alerts first, as nothing that follows can delay them, and
// the rest in an order that does not depend on Rego's.
func sortResponses(rs []Response) {
	slices.SortStableFunc(rs, func(a, b Response) int {
		rank := func(r Response) int {
			if r.Name == Alert {
				return 0
			}
			return 1
		}
		return cmp.Or(
			cmp.Compare(rank(a), rank(b)),
			cmp.Compare(a.Name, b.Name),
			cmp.Compare(b.Severity.Rank(), a.Severity.Rank()),
			cmp.Compare(a.Reason, b.Reason),
			bytes.Compare(paramsKey(a), paramsKey(b)),
		)
	})
}

func paramsKey(r Response) []byte {
	b, _ := json.Marshal(r.Params) // decodeResponse has marshalled it before
	return b
}

func typeName(v any) string {
	switch v.(type) {
	case nil:
		return "nothing"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case json.Number, float64, int, int64:
		return "a number"
	case []any:
		return "an array or set"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("%T", v)
}
