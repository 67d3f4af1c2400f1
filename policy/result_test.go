package policy

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/util"
)

const goodResult = `{"verdict": "malicious", "responses": [
	{"response": "resume", "severity": "low", "reason": "z"},
	{"response": "alert", "severity": "low", "reason": "b"},
	{"response": "alert", "severity": "critical", "reason": "c", "params": {"a": [1, {"b": null}]}},
	{"response": "alert", "severity": "low", "reason": "a", "params": {}}]}`

func decodeText(t testing.TB, text string) (Result, error) {
	t.Helper()
	var v any
	if err := util.UnmarshalJSON([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return decodeResult(v, builtinResponses())
}

func TestDecodeResult(t *testing.T) {
	r, err := decodeText(t, goodResult)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, x := range r.Responses {
		got = append(got, x.Name+" "+string(x.Severity)+" "+x.Reason)
	}
	if s := strings.Join(got, ", "); s != "alert critical c, alert low a, alert low b, resume low z" {
		t.Error(s)
	}
	if r.Responses[1].Params != nil || r.Responses[0].Params["a"] == nil {
		t.Errorf("%+v", r.Responses)
	}
}

func TestDecodeResultIsStrict(t *testing.T) {
	one := func(s string) string { return `{"verdict": "benign", "responses": [` + s + `]}` }
	for _, text := range []string{
		`null`, `true`, `[]`, `"x"`, `1`, `{}`,
		`{"verdict": "benign"}`,
		`{"responses": []}`,
		`{"verdict": "bad", "responses": []}`,
		`{"verdict": ["benign"], "responses": []}`,
		`{"verdict": "Benign", "responses": []}`,
		`{"verdict": "benign", "responses": {}}`,
		`{"verdict": "benign", "responses": null}`,
		`{"verdict": "benign", "responses": [], "extra": 1}`,
		one(`"alert"`),
		one(`{}`),
		one(`{"response": "alert", "severity": "high"}`),
		one(`{"response": "alert", "reason": "x"}`),
		one(`{"response": "alert", "severity": "awful", "reason": "x"}`),
		one(`{"response": "alert", "severity": 3, "reason": "x"}`),
		one(`{"response": "alert", "severity": "high", "reason": 1}`),
		one(`{"response": "alert", "severity": "high", "reason": "x", "params": []}`),
		one(`{"response": "alert", "severity": "high", "reason": "x", "extra": 1}`),
		one(`{"response": "alert", "severity": "high", "reason": "` + strings.Repeat("x", maxReason+1) + `"}`),
		one(`{"response": "alert", "severity": "high", "reason": "x", "params": {"x": "` + strings.Repeat("x", maxParams) + `"}}`),
		one(`{"response": "kill_process", "severity": "high", "reason": "x"}`),
		one(`{"response": "", "severity": "high", "reason": "x"}`),
		one(`{"response": "pause", "severity": "high", "reason": "x"}, {"response": "resume", "severity": "high", "reason": "x"}`),
		one(strings.TrimSuffix(strings.Repeat(`{"response": "alert", "severity": "high", "reason": "x"},`, maxResponses+1), ",")),
	} {
		if r, err := decodeText(t, text); !errors.Is(err, ErrResult) || !reflect.DeepEqual(r, Result{}) {
			t.Errorf("%.100s: %v, %+v", text, err, r)
		}
	}
}

func FuzzDecodeResult(f *testing.F) {
	f.Add([]byte(goodResult))
	f.Add([]byte(`{"verdict": "benign", "responses": []}`))
	f.Add([]byte(`{"verdict": "benign", "responses": [{"response": "pause", "severity": "high", "reason": "\u0000", "params": {"": 1e999}}]}`))
	f.Add([]byte(`[{"verdict": null}]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v any
		if util.UnmarshalJSON(b, &v) != nil {
			return
		}
		r, err := decodeResult(v, builtinResponses())
		if err != nil {
			if !errors.Is(err, ErrResult) {
				t.Fatalf("%v", err)
			}
			return
		}
		// What was accepted is written and accepted again, as the same.
		out, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var w any
		if err := util.UnmarshalJSON(out, &w); err != nil {
			t.Fatal(err)
		}
		again, err := decodeResult(w, builtinResponses())
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if two, _ := json.Marshal(again); string(two) != string(out) {
			t.Fatalf("not stable:\n%s\n%s", out, two)
		}
	})
}
