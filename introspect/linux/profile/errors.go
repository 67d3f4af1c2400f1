package profile

import (
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

var (
	// ErrNoKernel is returned when no running Linux kernel was found in memory.
	ErrNoKernel = errors.New("no Linux kernel found in memory")
	// ErrNoBTF is returned when the kernel carries no type information. The
	// Kernel that Find returns next to it has symbols but no Types.
	ErrNoBTF = errors.New("this kernel carries no BTF type information (built with CONFIG_DEBUG_INFO_BTF=n): its structures cannot be read")
	// ErrNoKallsyms is returned when the kernel carries no symbol table.
	ErrNoKallsyms = errors.New("this kernel carries no symbol table (built with CONFIG_KALLSYMS=n, or the table is damaged)")
	// ErrNoType is returned when the kernel has no such type, member or enumerator.
	ErrNoType = errors.New("no such type in this kernel")
	// ErrNoSymbol is returned when the kernel has no such symbol.
	ErrNoSymbol = errors.New("no such symbol in this kernel")
	// ErrDamaged is wrapped by every *DamagedError.
	ErrDamaged = errors.New("damaged")
	// ErrImplausible is wrapped by every *SanityError.
	ErrImplausible = errors.New("profile contradicts memory")
)

// DamagedError says where a table of the guest's does not hold together.
type DamagedError struct {
	Table  string // "BTF header", "kallsyms_names"
	Offset uint64 // in bytes from the table's start
	Err    error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s: damaged at offset %#x: %v", e.Table, e.Offset, e.Err)
}

// Unwrap returns ErrDamaged and the cause.
func (e *DamagedError) Unwrap() []error { return []error{ErrDamaged, e.Err} }

// SanityError says which known symbol did not land on plausible bytes. It
// wraps ErrImplausible.
type SanityError struct {
	Symbol string
	Addr   hypervisor.VirtAddr
	Want   string // what should be there
	Err    error  // why it was not seen; nil: other bytes are there
}

func (e *SanityError) Error() string {
	s := fmt.Sprintf("symbol %s at %#x: %v: want %s", e.Symbol, uint64(e.Addr), ErrImplausible, e.Want)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns ErrImplausible and the cause.
func (e *SanityError) Unwrap() []error {
	if e.Err == nil {
		return []error{ErrImplausible}
	}
	return []error{ErrImplausible, e.Err}
}
