package event

import (
	"errors"
	"fmt"
)

var (
	// ErrVersion is returned when an event's schema_version has another major
	// version than this package's, or none.
	ErrVersion = errors.New("event of another schema version")
	// ErrInvalid is returned when an event lacks a required field or has one
	// that the schema does not allow.
	ErrInvalid = errors.New("invalid event")
	// ErrLineTooLong is returned when a line holds more bytes than the decoder
	// accepts. The line is skipped.
	ErrLineTooLong = errors.New("line too long")
)

// LineError is an error in one line of a stream of events. The decoder goes on
// with the next line.
type LineError struct {
	Line int // counted from 1
	Err  error
}

func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns the cause.
func (e *LineError) Unwrap() error { return e.Err }
