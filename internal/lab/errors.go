package lab

import (
	"errors"
	"fmt"
)

// ErrMissing is wrapped by errors that say that this machine lacks what the lab
// needs. Tests skip on it (labtest does so).
var ErrMissing = errors.New("missing on this machine")

// ErrUnreachable is wrapped by errors that say that a Debian suite could not be
// downloaded from. Tests skip on it (labtest does so).
var ErrUnreachable = errors.New("unreachable")

// MissingError names a program or file that is not there, and the Debian
// package that brings it. It wraps ErrMissing.
type MissingError struct {
	What    string // "qemu-system-x86_64"
	Package string // "qemu-system-x86"
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s: missing on this machine: apt-get install %s", e.What, e.Package)
}

// Unwrap returns ErrMissing.
func (e *MissingError) Unwrap() error { return ErrMissing }

// SuiteError is a failure to get a kernel of a suite. It wraps ErrUnreachable
// and the cause.
type SuiteError struct {
	Suite Suite
	Err   error
}

func (e *SuiteError) Error() string {
	return fmt.Sprintf("debian suite %s: %v", e.Suite, e.Err)
}

// Unwrap returns ErrUnreachable and the cause.
func (e *SuiteError) Unwrap() []error { return []error{ErrUnreachable, e.Err} }

// GuestError is a guest that did not do what was awaited of it. Its text ends
// with the tail of the guest's console, so that a failed test shows what the
// guest last said.
type GuestError struct {
	Name    string
	Err     error
	Console string // the console's last lines, control bytes escaped
	Stderr  string // what QEMU said, control bytes escaped
}

func (e *GuestError) Error() string {
	s := fmt.Sprintf("guest %s: %v", e.Name, e.Err)
	if e.Stderr != "" {
		s += "\n--- qemu said:\n" + e.Stderr
	}
	return s + "\n--- end of the guest's console:\n" + e.Console
}

// Unwrap returns the cause.
func (e *GuestError) Unwrap() error { return e.Err }
