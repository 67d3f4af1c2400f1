package event

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const hostile = "\x1b[2J\x00\xff\xfe\u202e\u2028\u0085\x7f</script>\"\\\U000e0001\ufffd"

func TestMarshalIsStableAndOneLine(t *testing.T) {
	for _, e := range samples(t) {
		a, err := Marshal(&e)
		if err != nil {
			t.Fatalf("%s: %v", e.Kind, err)
		}
		b, _ := Marshal(&e)
		if !bytes.Equal(a, b) {
			t.Errorf("%s: two encodings differ", e.Kind)
		}
		if bytes.ContainsAny(a, "\n\r") {
			t.Errorf("%s: more than one line", e.Kind)
		}
		if !bytes.HasPrefix(a, []byte(`{"schema_version":"1.0","id":"`)) {
			t.Errorf("%s: starts with %.40s", e.Kind, a)
		}
		got, err := Unmarshal(a)
		if err != nil {
			t.Fatalf("%s: decode: %v", e.Kind, err)
		}
		again, err := Marshal(got)
		if err != nil || !bytes.Equal(a, again) {
			t.Errorf("%s: does not round-trip: %v\n%s\n%s", e.Kind, err, a, again)
		}
	}
}

func TestMarshalHostileStrings(t *testing.T) {
	for _, e := range samples(t) {
		e := withHostile(e, hostile)
		for name, marshal := range map[string]func() ([]byte, error){
			"plain": func() ([]byte, error) { return Marshal(&e) },
			"ocsf":  func() ([]byte, error) { return MarshalOCSF(&e, Product{}) },
		} {
			b, err := marshal()
			if err != nil {
				t.Fatalf("%s %s: %v", name, e.Kind, err)
			}
			if !utf8.Valid(b) || !json.Valid(b) {
				t.Errorf("%s %s: not valid JSON in UTF-8: %q", name, e.Kind, b)
			}
			for _, r := range string(b) {
				if r < 0x20 || isUnsafe(r) || r == '<' {
					t.Errorf("%s %s: rune %U stands in the output", name, e.Kind, r)
				}
			}
		}
		if e.Process == nil {
			continue
		}
		b, _ := Marshal(&e)
		got, err := Unmarshal(b)
		if err != nil {
			t.Fatal(err)
		}
		// All but the two bytes that are no UTF-8 comes back as it was.
		if want := strings.Replace(hostile, "\xff\xfe", `\xff\xfe`, 1); got.Process.Comm != want {
			t.Errorf("comm came back as %q, want %q", got.Process.Comm, want)
		}
	}
}

func TestEscape(t *testing.T) {
	if got, want := Escape([]byte("a\\\x00\xff é")), `a\\\x00\xff \xc3\xa9`; got != want {
		t.Errorf("Escape: %s, want %s", got, want)
	}
}

func TestMarshalRefusesInvalid(t *testing.T) {
	ok := samples(t)[0]
	for name, change := range map[string]func(*Event){
		"version":  func(e *Event) { e.SchemaVersion = "2.0" },
		"id":       func(e *Event) { e.ID = "" },
		"id space": func(e *Event) { e.ID = "a b" },
		"time":     func(e *Event) { e.Time = Time{} },
		"kind":     func(e *Event) { e.Kind = "" },
		"severity": func(e *Event) { e.Severity = "bad" },
		"vm":       func(e *Event) { e.VM = nil },
		"finding":  func(e *Event) { e.Finding = nil },
		"cause":    func(e *Event) { e.Cause = "\n" },
		"year":     func(e *Event) { e.Time = At(time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)) },
		"outcome":  func(e *Event) { e.Kind, e.Response = ResponseDone, &Response{Name: "pause", Outcome: Failed} },
		"stage":    func(e *Event) { e.Policy = &Policy{} },
	} {
		e := ok
		change(&e)
		if _, err := Marshal(&e); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestIDsSortAndDoNotRepeat(t *testing.T) {
	src := testSource() // its clock stands still
	last := ""
	for range 10000 {
		id := src.NewID(testTime)
		if id <= last {
			t.Fatalf("%s does not come after %s", id, last)
		}
		last = id
	}
	if id := src.NewID(testTime.Add(-time.Hour)); id <= last {
		t.Errorf("%s, made by a clock set back, does not come after %s", id, last)
	}
	id := testSource().NewID(testTime)
	if len(id) != 36 || id[14] != '7' || !strings.ContainsRune("89ab", rune(id[19])) {
		t.Errorf("%s is no UUIDv7", id)
	}
	var ms int64
	for _, c := range strings.ReplaceAll(id[:13], "-", "") {
		ms = ms<<4 | int64(strings.IndexRune("0123456789abcdef", c))
	}
	if ms != testTime.UnixMilli() {
		t.Errorf("%s is of millisecond %d, want %d", id, ms, testTime.UnixMilli())
	}
}

func TestTimeKeepsNanoseconds(t *testing.T) {
	in := At(testTime.In(time.FixedZone("x", 7200)))
	b, err := json.Marshal(in)
	if err != nil || string(b) != `"2026-02-03T04:05:06.007008009Z"` {
		t.Fatalf("%s, %v", b, err)
	}
	var out Time
	if err := json.Unmarshal(b, &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("%v came back as %v, %v", in, out, err)
	}
}
