package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"sync"
)

// Marshal returns the plain JSON form of e: one line without a newline, keys in
// the order of the types' fields, those of maps sorted. Bytes that are no UTF-8
// are written as the four characters \xNN; control, format and HTML characters
// as \uNNNN escapes of JSON. It returns an error when e is not valid.
func Marshal(e *Event) ([]byte, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	return MarshalLine(normalize(e))
}

// normalize returns a copy of e in which lists that the schema requires are not
// null.
func normalize(e *Event) *Event {
	if e.Finding == nil || e.Finding.Tags != nil && e.Finding.Meta != nil && e.Finding.Strings != nil {
		return e
	}
	c, f := *e, *e.Finding
	if f.Tags == nil {
		f.Tags = []string{}
	}
	if f.Meta == nil {
		f.Meta = map[string]any{}
	}
	if f.Strings == nil {
		f.Strings = []Match{}
	}
	c.Finding = &f
	return &c
}

// replacement is what encoding/json writes for a byte that is no UTF-8. A
// U+FFFD of the input itself is written as its three bytes instead.
var replacement = []byte(`\ufffd`)

// MarshalLine writes any value as JSON on one line, its strings escaped as those
// of Marshal. It is for the other records in which strings of a guest end up. A
// MarshalJSON of v itself must return compact JSON, as that of json.Marshal is.
func MarshalLine(v any) ([]byte, error) {
	b, err := marshalLine(v)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	if bytes.Contains(b, replacement) {
		b, err = json.Marshal(cleanStrings(reflect.ValueOf(v)).Interface())
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
	}
	return escapeRunes(b), nil
}

// marshalLine is json.Marshal without the second look at what v's own MarshalJSON
// returned, which is half of the time that a listing takes.
func marshalLine(v any) ([]byte, error) {
	if m, ok := v.(json.Marshaler); ok {
		if r := reflect.ValueOf(v); r.Kind() != reflect.Pointer || !r.IsNil() {
			return m.MarshalJSON()
		}
	}
	return json.Marshal(v)
}

// Encoder writes events one a line. It is safe for concurrent use.
type Encoder struct {
	mu      sync.Mutex
	w       io.Writer
	marshal func(*Event) ([]byte, error)
}

// NewEncoder returns an encoder of the plain form.
func NewEncoder(w io.Writer) *Encoder { return &Encoder{w: w, marshal: Marshal} }

// NewOCSFEncoder returns an encoder of the OCSF form.
func NewOCSFEncoder(w io.Writer, p Product) *Encoder {
	return &Encoder{w: w, marshal: func(e *Event) ([]byte, error) { return MarshalOCSF(e, p) }}
}

// Encode writes e and a newline in one call of Write.
func (enc *Encoder) Encode(e *Event) error {
	b, err := enc.marshal(e)
	if err != nil {
		return err
	}
	enc.mu.Lock()
	defer enc.mu.Unlock()
	if _, err := enc.w.Write(append(b, '\n')); err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}
