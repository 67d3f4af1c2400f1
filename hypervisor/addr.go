package hypervisor

import (
	"fmt"
	"strconv"
)

// PageSize is the size in bytes of the smallest page of x86, and the unit in
// which Vantage counts memory read and skipped.
const PageSize = 4096

// PageShift is log2(PageSize).
const PageShift = 12

// PhysAddr is a guest-physical address (gpa), in bytes.
type PhysAddr uint64

// VirtAddr is a guest-virtual address (gva), in bytes.
type VirtAddr uint64

// Frame is a guest frame number (gfn): a PhysAddr in units of PageSize.
type Frame uint64

// Frame returns the frame that a lies in.
func (a PhysAddr) Frame() Frame { return Frame(a >> PageShift) }

// Offset returns a's offset in its page, in bytes.
func (a PhysAddr) Offset() uint64 { return uint64(a) & (PageSize - 1) }

func (a PhysAddr) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// Offset returns a's offset in its page, in bytes.
func (a VirtAddr) Offset() uint64 { return uint64(a) & (PageSize - 1) }

// Page returns the address of the page that a lies in.
func (a VirtAddr) Page() VirtAddr { return a &^ (PageSize - 1) }

func (a VirtAddr) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// Addr returns the physical address of f's first byte.
func (f Frame) Addr() PhysAddr { return PhysAddr(f << PageShift) }

// MarshalText writes a as 0x-prefixed hexadecimal: JSON numbers lose the low
// bits of 64-bit addresses in most readers.
func (a PhysAddr) MarshalText() ([]byte, error) { return hexText(uint64(a)), nil }

// UnmarshalText reads what MarshalText wrote.
func (a *PhysAddr) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 0, 64)
	*a = PhysAddr(v)
	return err
}

// MarshalText writes a as 0x-prefixed hexadecimal.
func (a VirtAddr) MarshalText() ([]byte, error) { return hexText(uint64(a)), nil }

// UnmarshalText reads what MarshalText wrote.
func (a *VirtAddr) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 0, 64)
	*a = VirtAddr(v)
	return err
}

func hexText(v uint64) []byte {
	return strconv.AppendUint([]byte("0x"), v, 16)
}
