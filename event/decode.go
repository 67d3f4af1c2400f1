package event

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// MaxLine is the default limit of one event's JSON, in bytes.
const MaxLine = 1 << 20

// Unmarshal reads one event in its plain form. Fields that it does not know are
// ignored: they come with a newer minor version. It returns an error that wraps
// ErrVersion for another major version, ErrInvalid for a bad event.
func Unmarshal(b []byte) (*Event, error) {
	// The version first: an event of another major version may not even fit
	// the types.
	var head struct {
		SchemaVersion string `json:"schema_version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, jsonError(err)
	}
	if err := checkVersion(head.SchemaVersion); err != nil {
		return nil, err
	}
	e := new(Event)
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber() // integers of a rule's meta keep all their digits
	if err := dec.Decode(e); err != nil {
		return nil, jsonError(err)
	}
	if err := e.Validate(); err != nil {
		return nil, err
	}
	return normalize(e), nil
}

func jsonError(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrInvalid, err)
}

// Decoder reads events one a line from a stream that nobody has checked.
type Decoder struct {
	r    *bufio.Reader
	max  int
	line int
	err  error // of the reader; ends the stream
}

// NewDecoder returns a decoder of the plain form. Lines of more than maxLine
// bytes are errors; 0 stands for MaxLine.
func NewDecoder(r io.Reader, maxLine int) *Decoder {
	if maxLine <= 0 {
		maxLine = MaxLine
	}
	return &Decoder{r: bufio.NewReaderSize(r, 64<<10), max: maxLine}
}

// Line returns the number of the line that Next read last, counted from 1.
func (d *Decoder) Line() int { return d.line }

// Next returns the next event; blank lines are skipped. A *LineError concerns
// that line only, and Next may be called again. At the end it returns io.EOF;
// any other error is the reader's and final.
func (d *Decoder) Next() (*Event, error) {
	for {
		b, err := d.readLine()
		if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(b)) == 0 {
			continue
		}
		e, err := Unmarshal(b)
		if err != nil {
			return nil, &LineError{Line: d.line, Err: err}
		}
		return e, nil
	}
}

// readLine returns the next line without its newline. A line that is too long
// is read to its end and dropped.
func (d *Decoder) readLine() ([]byte, error) {
	if d.err != nil {
		return nil, d.err
	}
	var line []byte
	tooLong, some := false, false
	for {
		part, err := d.r.ReadSlice('\n')
		some = some || len(part) > 0
		if n := len(line) + len(bytes.TrimSuffix(part, []byte("\n"))); n > d.max {
			tooLong, line = true, nil
		}
		if !tooLong {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			d.err = err
			if !errors.Is(err, io.EOF) {
				d.err = fmt.Errorf("read events: %w", err)
				return nil, d.err
			}
			if !some {
				return nil, d.err
			}
		}
		d.line++
		if tooLong {
			return nil, &LineError{Line: d.line, Err: fmt.Errorf("%w: more than %d bytes", ErrLineTooLong, d.max)}
		}
		return bytes.TrimSuffix(line, []byte("\n")), nil
	}
}
