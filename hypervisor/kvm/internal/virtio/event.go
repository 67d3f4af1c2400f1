package virtio

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Event is something that a Serve can wait for with Queue.WaitRead, besides its
// queue. It is safe for concurrent use until Close.
type Event struct{ fd int }

// NewEvent returns an event that is not set.
func NewEvent() (*Event, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &Event{fd}, nil
}

// FD is readable while the event is set.
func (e *Event) FD() int { return e.fd }

// Set sets it.
func (e *Event) Set() { _, _ = unix.Write(e.fd, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Clear takes that back.
func (e *Event) Clear() { _, _ = unix.Read(e.fd, make([]byte, 8)) }

// Close gives the eventfd back.
func (e *Event) Close() error { return unix.Close(e.fd) }
