package hypervisor

import (
	"errors"
	"fmt"
)

var (
	// ErrNotSupported is wrapped by what a driver returns when it, or the host,
	// or the way a VM was started, cannot do what was asked.
	ErrNotSupported = errors.New("not supported")
	// ErrNotRAM is returned when a guest-physical address holds no RAM.
	ErrNotRAM = errors.New("no RAM at this address")
	// ErrUnreadable is returned when RAM is there but could not be read.
	ErrUnreadable = errors.New("unreadable")
	// ErrGone is returned by every method of a VM that has ended, or whose PID
	// belongs to another process by now.
	ErrGone = errors.New("the VM has ended")
	// ErrClosed is returned by every method of a VM after its Close.
	ErrClosed = errors.New("VM handle is closed")
	// ErrNotFound is returned by Open when no VM has the name that was asked for.
	ErrNotFound = errors.New("no such VM")
	// ErrNoResources is returned when something of which there are few (debug
	// registers, memory slots) is used up.
	ErrNoResources = errors.New("none left")
	// ErrBusy is returned when a VM's control channel is held by another client.
	ErrBusy = errors.New("held by another client")
)

// NotSupportedError says what is missing and how to get it. It wraps
// ErrNotSupported.
type NotSupportedError struct {
	What   string // what was asked for: "pause", "vCPU registers"
	Driver string // the driver's name
	Remedy string // how to get it: "start QEMU with -qmp unix:…", "needs Linux >= 6.2"
}

func (e *NotSupportedError) Error() string {
	s := fmt.Sprintf("%s: not supported by driver %s", e.What, e.Driver)
	if e.Remedy != "" {
		s += ": " + e.Remedy
	}
	return s
}

// Unwrap returns ErrNotSupported.
func (e *NotSupportedError) Unwrap() error { return ErrNotSupported }

// AddressError is an error at one guest-physical address.
type AddressError struct {
	Op   string // "read", "map", "write"
	Addr PhysAddr
	Err  error
}

func (e *AddressError) Error() string {
	return fmt.Sprintf("%s gpa %#x: %v", e.Op, uint64(e.Addr), e.Err)
}

// Unwrap returns the cause.
func (e *AddressError) Unwrap() error { return e.Err }
