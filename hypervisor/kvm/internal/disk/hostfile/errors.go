package hostfile

import (
	"errors"
	"fmt"
)

var (
	// ErrBounds is wrapped when an access does not lie in the disk.
	ErrBounds = errors.New("access beyond the end of the disk")
	// ErrReadOnly is wrapped by every write to a disk that was opened read-only.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrClosed is wrapped by every method of a disk after its Close.
	ErrClosed = errors.New("disk is closed")
	// ErrShort is wrapped when a file ends in front of what was in it when it was
	// opened: someone has truncated it.
	ErrShort = errors.New("file has become shorter while it is in use")
	// ErrLocked is wrapped by *LockedError.
	ErrLocked = errors.New("image is in use")
)

// LockedError is returned when another process uses an image in a way that does
// not go together with what was asked for. It wraps ErrLocked.
type LockedError struct {
	Path   string
	Write  bool   // we wanted to write
	Holder string // "process 17 (qemu-system-x86)", or "" where it cannot be told
}

func (e *LockedError) Error() string {
	how := "another process writes to it"
	if e.Write {
		how = "another process uses it"
	}
	if e.Holder != "" {
		how = "it is used by " + e.Holder
	}
	return fmt.Sprintf("%v: %s: end that one, or give this VM a copy or an overlay of the image", ErrLocked, how)
}

// Unwrap returns ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

type boundsError struct{ off, n, size uint64 }

func (e *boundsError) Error() string {
	return fmt.Sprintf("%d bytes at %#x of %d: %v", e.n, e.off, e.size, ErrBounds)
}

func (e *boundsError) Unwrap() error { return ErrBounds }
