package hypervisor

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// FaultError says that a view of guest memory (Mapper.MapPhys) could not be
// read although it is mapped: the file behind it was truncated, the host took
// the page away, or its disk failed. It wraps ErrUnreadable.
type FaultError struct {
	Host uintptr // the host's address that faulted
}

func (e *FaultError) Error() string {
	return fmt.Sprintf("memory view faulted at host address %#x: %v", e.Host, ErrUnreadable)
}

// Unwrap returns ErrUnreadable.
func (e *FaultError) Unwrap() error { return ErrUnreadable }

// Guard runs f, which reads views of guest memory, and turns a fault (SIGBUS,
// SIGSEGV) on such a view into a *FaultError in place of the death of the
// process. Every other panic passes. f must be Go code: a fault in C code is
// not caught. What f did before the fault stays done.
func Guard(f func()) (err error) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		r := recover()
		if r == nil {
			return
		}
		// The runtime gives Addr only to faults at an address that is not
		// near nil, so a nil dereference in f is not mistaken for one.
		if fault, ok := r.(interface {
			runtime.Error
			Addr() uintptr
		}); ok {
			err = &FaultError{Host: fault.Addr()}
			return
		}
		panic(r)
	}()
	f()
	return nil
}

// CopyView is copy for a src that is a view of guest memory: it returns how
// many bytes were copied and, when src faulted before its end, a *FaultError.
func CopyView(dst, src []byte) (n int, err error) {
	src = src[:min(len(src), len(dst))]
	err = Guard(func() { n = copy(dst, src) })
	if err == nil {
		return n, nil
	}
	// Once more in pieces that do not cross a page of the view, to tell how
	// far the good bytes go. A view need not start on a page of the file, so
	// the piece is found by halving, not by alignment.
	n, piece := 0, max(len(src)/2, 1)
	for n < len(src) {
		end := min(n+piece, len(src))
		if e := Guard(func() { copy(dst[n:end], src[n:end]) }); e == nil {
			n = end
			continue
		} else if err = e; piece == 1 {
			break
		}
		piece /= 2
	}
	return n, err
}
