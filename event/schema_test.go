package event

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/rego"
)

// matchSchema returns a validator of JSON against a JSON Schema, by OPA's
// implementation: independent of this package.
func matchSchema(t *testing.T, schema any) func(doc []byte) []string {
	t.Helper()
	q, err := rego.New(
		rego.Query("[ok, errs] := json.match_schema(input.doc, input.schema)"),
	).PrepareForEval(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return func(doc []byte) []string {
		rs, err := q.Eval(context.Background(), rego.EvalInput(map[string]any{"doc": string(doc), "schema": schema}))
		if err != nil || len(rs) != 1 {
			t.Fatalf("match_schema: %v, %d results", err, len(rs))
		}
		var out []string
		for _, e := range rs[0].Bindings["errs"].([]any) {
			b, _ := json.Marshal(e)
			out = append(out, string(b))
		}
		if ok := rs[0].Bindings["ok"].(bool); ok != (len(out) == 0) {
			t.Fatalf("match_schema: %v with errors %v", ok, out)
		}
		return out
	}
}

// closed returns the schema with no object open to properties that it does not
// name, so that a field which it forgets is found.
func closed(t *testing.T) map[string]any {
	t.Helper()
	var s map[string]any
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	s["additionalProperties"] = false
	for name, d := range s["definitions"].(map[string]any) {
		if d := d.(map[string]any); d["type"] == "object" {
			if d["properties"] == nil {
				t.Fatalf("definition %s names no properties", name)
			}
			d["additionalProperties"] = false
		}
	}
	return s
}

func TestSchemaHoldsForEveryKind(t *testing.T) {
	match := matchSchema(t, closed(t))
	for _, e := range samples(t) {
		for _, e := range []Event{e, withHostile(e, hostile)} {
			b, err := Marshal(&e)
			if err != nil {
				t.Fatal(err)
			}
			if errs := match(b); errs != nil {
				t.Errorf("%s: %s\n%s", e.Kind, strings.Join(errs, "\n"), b)
			}
		}
	}
}

func TestSchemaRefusesWhatValidateRefuses(t *testing.T) {
	match := matchSchema(t, closed(t))
	good := string(lines(t, samples(t)[0]))
	for _, c := range [][2]string{
		{`"schema_version":"1.0"`, `"schema_version":"2.0"`},
		{`"kind":"finding.scan"`, `"kind":""`},
		{`"kind":"finding.scan"`, `"kind":"module.hidden"`},
		{`"kind":"finding.scan"`, `"kind":"scan.summary"`},
		{`"kind":"finding.scan"`, `"kind":"response.done"`},
		{`"kind":"finding.scan"`, `"kind":"policy.error"`},
		{`"severity":"info"`, `"severity":"awful"`},
		{`"vm":{`, `"vn":{`},
		{`"id":"`, `"id":"!`},
	} {
		bad := strings.Replace(good, c[0], c[1], 1)
		if bad == good {
			t.Fatalf("the sample holds no %s", c[0])
		}
		if match([]byte(bad)) == nil {
			t.Errorf("the schema accepts %s", c[1])
		}
		if _, err := Unmarshal([]byte(bad)); err == nil {
			t.Errorf("Unmarshal accepts %s", c[1])
		}
	}
}

// TestSchemaIsOpen holds the promise that readers accept newer minor versions.
func TestSchemaIsOpen(t *testing.T) {
	var s any
	if err := json.Unmarshal(Schema(), &s); err != nil {
		t.Fatal(err)
	}
	match := matchSchema(t, s)
	good := string(lines(t, samples(t)[0]))
	newer := strings.NewReplacer(`"1.0"`, `"1.9"`, `finding.scan`, `finding.new`, `"severity"`, `"new":1,"severity"`).Replace(good)
	if errs := match([]byte(newer)); errs != nil {
		t.Errorf("the schema refuses a newer minor version: %v", errs)
	}
}
