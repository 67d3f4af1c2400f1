package event

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func lines(t testing.TB, es ...Event) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := NewEncoder(&b)
	for i := range es {
		if err := enc.Encode(&es[i]); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestDecoderReadsPastBadLines(t *testing.T) {
	good := string(lines(t, samples(t)[0]))
	in := good + "\n  \n{not json}\n" + strings.Repeat("x", 5000) + "\n" +
		strings.Replace(good, `"1.0"`, `"2.0"`, 1) + strings.TrimSuffix(good, "\n")
	dec := NewDecoder(iotest.OneByteReader(strings.NewReader(in)), 4000)
	var ok int
	var bad []int
	for {
		_, err := dec.Next()
		var le *LineError
		switch {
		case err == nil:
			ok++
			continue
		case errors.As(err, &le):
			bad = append(bad, le.Line)
			continue
		case errors.Is(err, io.EOF):
		default:
			t.Fatal(err)
		}
		break
	}
	if ok != 2 || len(bad) != 3 || bad[0] != 4 || bad[1] != 5 || bad[2] != 6 {
		t.Errorf("%d events, errors in lines %v; want 2 events, errors in lines 4 5 6", ok, bad)
	}
	if dec.Line() != 7 {
		t.Errorf("last line %d, want 7", dec.Line())
	}
}

func TestDecoderLimits(t *testing.T) {
	line := lines(t, samples(t)[0])
	n := len(line) - 1
	if _, err := NewDecoder(bytes.NewReader(line), n).Next(); err != nil {
		t.Errorf("a line of exactly the limit: %v", err)
	}
	if _, err := NewDecoder(bytes.NewReader(line), n-1).Next(); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("a line one byte over the limit: %v", err)
	}
	boom := errors.New("boom")
	dec := NewDecoder(io.MultiReader(bytes.NewReader(line), iotest.ErrReader(boom)), 0)
	if _, err := dec.Next(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := dec.Next(); !errors.Is(err, boom) {
			t.Errorf("reader's error: %v", err)
		}
	}
}

func TestUnmarshalVersions(t *testing.T) {
	good := string(lines(t, samples(t)[0]))
	for in, want := range map[string]error{
		strings.Replace(good, `"1.0"`, `"1.7"`, 1):                               nil,
		strings.Replace(good, `"severity"`, `"new_field":{"a":1},"severity"`, 1): nil,
		strings.Replace(good, `finding.scan`, `finding.new`, 1):                  nil,
		strings.Replace(good, `"1.0"`, `"2.0"`, 1):                               ErrVersion,
		strings.Replace(good, `"1.0"`, `"1"`, 1):                                 ErrVersion,
		strings.Replace(good, `"1.0"`, `""`, 1):                                  ErrVersion,
		strings.Replace(good, `"1.0"`, `1.0`, 1):                                 ErrInvalid,
		`null`:                                                                   ErrVersion,
		`{}`:                                                                     ErrVersion,
		`[]`:                                                                     ErrInvalid,
		``:                                                                       ErrInvalid,
		good[:len(good)/2]:                                                       ErrInvalid,
		good + good:                                                              ErrInvalid,
		strings.Replace(good, `"0x7f0000000fa0"`, `"7f"`, 1):         ErrInvalid,
		strings.Replace(good, `"2026-02`, `"2026-22`, 1):             ErrInvalid,
		strings.Repeat("[", 1000):                                    ErrInvalid,
		`{"schema_version":"1.0","vm":` + strings.Repeat("[", 20000): ErrInvalid,
	} {
		_, err := Unmarshal([]byte(in))
		if !errors.Is(err, want) {
			t.Errorf("%.60q: %v, want %v", in, err, want)
		}
	}
}

func FuzzDecoder(f *testing.F) {
	for _, e := range samples(f) {
		f.Add(lines(f, e))
		f.Add(lines(f, withHostile(e, hostile)))
	}
	f.Add([]byte("{\"schema_version\":\"1.0\"}\n\n\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		dec := NewDecoder(bytes.NewReader(b), 4096)
		for {
			e, err := dec.Next()
			var le *LineError
			switch {
			case errors.As(err, &le):
				continue
			case errors.Is(err, io.EOF):
				return
			case err != nil:
				t.Fatal(err)
			}
			// What was accepted can be written, in both forms, and read again.
			one, err := Marshal(e)
			if err != nil {
				t.Fatalf("accepted, but cannot be written: %v", err)
			}
			again, err := Unmarshal(one)
			if err != nil {
				t.Fatalf("written, but cannot be read: %v\n%s", err, one)
			}
			two, err := Marshal(again)
			if err != nil || !bytes.Equal(one, two) {
				t.Fatalf("not stable: %v\n%s\n%s", err, one, two)
			}
			if _, err := MarshalOCSF(e, Product{}); err != nil {
				t.Fatalf("no OCSF form: %v", err)
			}
		}
	})
}

func BenchmarkMarshal(b *testing.B) {
	e := samples(b)[0]
	for b.Loop() {
		if _, err := Marshal(&e); err != nil {
			b.Fatal(err)
		}
	}
}
