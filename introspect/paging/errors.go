package paging

import (
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

var (
	// ErrNotMapped is wrapped by every *NotMappedError.
	ErrNotMapped = errors.New("virtual address is not mapped")
	// ErrPagingOff is returned by RootFromRegisters when CR0.PG is clear.
	ErrPagingOff = errors.New("paging is off")
	// ErrLimit is wrapped by *LimitError.
	ErrLimit = errors.New("page table walk stopped at its limit")
	// ErrBadRoot is returned for a Root whose Mode is none of the known ones.
	ErrBadRoot = errors.New("unknown paging mode")
)

// Kind says why an address has no page.
type Kind uint8

// Why an address has no page.
const (
	// KindNotPresent: the entry is all zero: nothing is there.
	KindNotPresent Kind = iota + 1
	// KindSwapped: the entry is not present but not zero either. The CPU
	// ignores its other bits; the guest's system keeps its notes there: where in
	// swap the page lies, that it is being moved, that nobody may touch it
	// (PROT_NONE: the page itself is in RAM). Which of these it is only one who
	// knows the guest's system can tell, from Entry.
	KindSwapped
	// KindReserved: the entry is present and has a bit set that must be zero.
	// A CPU would raise a page fault with RSVD.
	KindReserved
	// KindUnreadable: the table itself could not be read: it does not lie in
	// RAM, or the RAM could not be read. Err has the cause.
	KindUnreadable
	// KindNonCanonical: the address is none of this paging mode.
	KindNonCanonical
)

func (k Kind) String() string {
	switch k {
	case KindNotPresent:
		return "not present"
	case KindSwapped:
		return "not present, used by the guest's system (swapped)"
	case KindReserved:
		return "reserved bit set"
	case KindUnreadable:
		return "page table unreadable"
	case KindNonCanonical:
		return "non-canonical address"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// NotMappedError says why Addr has no page. It wraps ErrNotMapped, and Err.
type NotMappedError struct {
	Addr  hypervisor.VirtAddr // the address that was asked for
	Kind  Kind
	Level int                 // of the entry that ended the walk: 1 page table … 5 PML5; 0 without one
	Entry uint64              // that entry, 0 when it could not be read
	Table hypervisor.PhysAddr // where that entry lies
	Err   error               // cause of KindUnreadable, else nil
}

func (e *NotMappedError) Error() string {
	s := fmt.Sprintf("gva %#x: %v", uint64(e.Addr), e.Kind)
	if e.Level > 0 {
		s += fmt.Sprintf(" (level %d entry %#x at gpa %#x)", e.Level, e.Entry, uint64(e.Table))
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns ErrNotMapped and the cause.
func (e *NotMappedError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrNotMapped}
	}
	return []error{ErrNotMapped, e.Err}
}

// LimitError says that an iteration over the page tables stopped before its
// end because the tree is larger than Options allow. It wraps ErrLimit.
type LimitError struct {
	What string              // "table pages" or "mappings"
	Max  uint64              // the limit that was met
	At   hypervisor.VirtAddr // the first address that was not looked at
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("%v: %d %s, at gva %#x", ErrLimit, e.Max, e.What, uint64(e.At))
}

// Unwrap returns ErrLimit.
func (e *LimitError) Unwrap() error { return ErrLimit }
