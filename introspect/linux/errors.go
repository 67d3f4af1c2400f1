package linux

import (
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

var (
	// ErrWild is wrapped when a pointer of the guest's cannot be one: it leads
	// out of the kernel's address space, or is not aligned.
	ErrWild = errors.New("wild pointer")
	// ErrCycle is wrapped when a list or tree comes back to where it was.
	ErrCycle = errors.New("cycle")
	// ErrTorn is wrapped when a structure contradicts itself: a neighbour
	// that does not point back, a range that overlaps. On a live guest it may
	// have been changed in the middle of a read.
	ErrTorn = errors.New("structure contradicts itself")
	// ErrLimit is wrapped when a walk was longer than it may be.
	ErrLimit = errors.New("walk stopped at its limit")
	// ErrGone is returned when a process is no longer where it was listed.
	ErrGone = errors.New("the process has gone")
	// ErrNoMemory is returned for a process without user memory: a kernel
	// thread, a zombie.
	ErrNoMemory = errors.New("the process has no user memory")
	// ErrNoProcesses is wrapped when not one process could be read.
	ErrNoProcesses = errors.New("no process could be read")
)

// PointerError is a pointer in guest memory that was not followed. It wraps
// ErrWild, ErrCycle or ErrTorn.
type PointerError struct {
	Where hypervisor.VirtAddr // the structure that holds the pointer
	Value hypervisor.VirtAddr // the pointer
	Err   error
}

func (e *PointerError) Error() string {
	return fmt.Sprintf("pointer %#x in the structure at %#x: %v", uint64(e.Value), uint64(e.Where), e.Err)
}

// Unwrap returns what is wrong with the pointer.
func (e *PointerError) Unwrap() error { return e.Err }

// errNoSymbol says that the kernel has no symbol of that name.
func errNoSymbol(name string) error { return fmt.Errorf("%s: %w", name, profile.ErrNoSymbol) }
