package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// maxText is how many bytes of an error's text are sent.
const maxText = 4 << 10

// Error is an error as it is sent: its text, and what a caller may branch on.
type Error struct {
	Text string `json:"text"`
	Code string `json:"code,omitempty"` // of a sentinel: see codes
	// Done is how many bytes of a write were done.
	Done uint64 `json:"done,omitempty"`

	Address *AddressError    `json:"address,omitempty"`
	Missing *NotSupported    `json:"missing,omitempty"`
	Trap    *hypervisor.Trap `json:"trap,omitempty"`
}

// AddressError is hypervisor.AddressError.
type AddressError struct {
	Op   string              `json:"op"`
	Addr hypervisor.PhysAddr `json:"addr"`
}

// NotSupported is hypervisor.NotSupportedError.
type NotSupported struct {
	What   string `json:"what"`
	Driver string `json:"driver"`
	Remedy string `json:"remedy"`
}

// ErrUnresponsive is why a client is disconnected that does not answer or read.
var ErrUnresponsive = errors.New("the client did not answer in time")

// ErrVersion is why a client is turned away that speaks other versions.
var ErrVersion = errors.New("the versions of client and machine do not fit")

// codes are the sentinels that cross the socket.
func codes() []struct {
	code string
	err  error
} {
	return []struct {
		code string
		err  error
	}{
		{"not-ram", hypervisor.ErrNotRAM},
		{"unreadable", hypervisor.ErrUnreadable},
		{"gone", hypervisor.ErrGone},
		{"no-resources", hypervisor.ErrNoResources},
		{"busy", hypervisor.ErrBusy},
		{"not-found", hypervisor.ErrNotFound},
		{"not-supported", hypervisor.ErrNotSupported},
		{"unresponsive", ErrUnresponsive},
		{"version", ErrVersion},
		{"malformed", ErrMalformed},
		{"canceled", context.Canceled},
		{"deadline", context.DeadlineExceeded},
		{"exist", os.ErrExist},
		{"not-exist", os.ErrNotExist},
		{"permission", os.ErrPermission},
	}
}

// FromError makes err ready to be sent; nil of nil.
func FromError(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Text: err.Error()}
	if len(e.Text) > maxText {
		e.Text = strings.ToValidUTF8(e.Text[:maxText], "") + "…"
	}
	for _, c := range codes() {
		if errors.Is(err, c.err) {
			e.Code = c.code
			break
		}
	}
	var address *hypervisor.AddressError
	if errors.As(err, &address) {
		e.Address = &AddressError{Op: address.Op, Addr: address.Addr}
	}
	var missing *hypervisor.NotSupportedError
	if errors.As(err, &missing) {
		e.Missing = &NotSupported{What: missing.What, Driver: missing.Driver, Remedy: missing.Remedy}
	}
	var trap *hypervisor.TrapError
	if errors.As(err, &trap) {
		e.Trap = &trap.Trap
	}
	return e
}

// remoteError has the text of the error that was sent, and wraps what it was.
type remoteError struct {
	text  string
	cause error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.cause }

// Err is the way back: an error with the text of the first that is and wraps what
// that did; nil of nil.
func (e *Error) Err() error {
	if e == nil {
		return nil
	}
	cause := errors.New(e.Text)
	for _, c := range codes() {
		if c.code == e.Code {
			cause = c.err
		}
	}
	if e.Missing != nil {
		cause = &hypervisor.NotSupportedError{What: e.Missing.What, Driver: e.Missing.Driver, Remedy: e.Missing.Remedy}
	}
	if e.Address != nil {
		cause = &hypervisor.AddressError{Op: e.Address.Op, Addr: e.Address.Addr, Err: cause}
	}
	if e.Trap != nil {
		cause = &hypervisor.TrapError{Trap: *e.Trap, Err: cause}
	}
	return &remoteError{text: e.Text, cause: cause}
}

// CheckFileName tells whether a saved machine may have a file of this name: one
// that stays in its folder, on both sides.
func CheckFileName(name string) error {
	ok := name != "" && len(name) <= 64 && name[0] != '.'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' || c == '_')
	}
	if !ok {
		return fmt.Errorf("file name %q of a saved machine: %w", name, ErrMalformed)
	}
	return nil
}
