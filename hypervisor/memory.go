package hypervisor

import (
	"errors"
	"fmt"
	"math"
	"slices"
)

// Range is a run of guest-physical RAM: Size bytes from Start.
type Range struct {
	Start PhysAddr `json:"start"`
	Size  uint64   `json:"size"`
}

// End returns the address one past the range's last byte. A valid range never
// wraps: see NormalizeRanges.
func (r Range) End() PhysAddr { return r.Start + PhysAddr(r.Size) }

// Contains reports whether a lies in r.
func (r Range) Contains(a PhysAddr) bool {
	return a >= r.Start && uint64(a-r.Start) < r.Size
}

func (r Range) String() string { return fmt.Sprintf("%#x-%#x", uint64(r.Start), uint64(r.End())) }

// Memory is a guest's physical memory, read only.
type Memory interface {
	// ReadPhys reads len(p) bytes at gpa. It returns the number of bytes read
	// and, when that is less than len(p), why: an *AddressError that wraps
	// ErrNotRAM (a hole) or ErrUnreadable (a torn file, a page the host lost),
	// or an error that wraps ErrGone when the VM has ended. The first n bytes
	// of p are always valid. It is safe for concurrent use.
	ReadPhys(p []byte, gpa PhysAddr) (n int, err error)
	// Ranges returns the guest's RAM: sorted, merged, without overlap. The
	// caller must not change it.
	Ranges() []Range
}

// Mapper is Memory that can be seen without a copy.
type Mapper interface {
	// MapPhys returns a view of guest memory that starts at gpa and is at most
	// limit bytes long; it is shorter where the mapping ends (never empty
	// without an error). The view is read-only, shared with a guest that may
	// change it at any moment, and valid until the VM is closed. Memory that is
	// lost later (a file truncated while it is open) faults: whoever reads a
	// view does so under Guard, or by CopyView. Errors as those of ReadPhys. It
	// is safe for concurrent use.
	MapPhys(gpa PhysAddr, limit uint64) ([]byte, error)
}

// Writer is Memory that can be written.
type Writer interface {
	// WritePhys writes p at gpa; results as for ReadPhys.
	WritePhys(p []byte, gpa PhysAddr) (n int, err error)
}

// TotalSize returns the number of bytes in rs.
func TotalSize(rs []Range) uint64 {
	var n uint64
	for _, r := range rs {
		n += r.Size
	}
	return n
}

// FindRange returns the range of sorted rs that holds gpa.
func FindRange(rs []Range, gpa PhysAddr) (Range, bool) {
	i, ok := slices.BinarySearchFunc(rs, gpa, func(r Range, a PhysAddr) int {
		switch {
		case r.Contains(a):
			return 0
		case r.Start > a:
			return 1
		}
		return -1
	})
	if !ok {
		return Range{}, false
	}
	return rs[i], true
}

// NormalizeRanges sorts rs, drops empty ranges and merges neighbours. It
// returns an error when two ranges overlap or one wraps around the address
// space.
func NormalizeRanges(rs []Range) ([]Range, error) {
	rs = slices.Clone(rs)
	slices.SortFunc(rs, func(a, b Range) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	var out []Range
	for _, r := range rs {
		if r.Size == 0 {
			continue
		}
		if r.Size > math.MaxUint64-uint64(r.Start) {
			return nil, fmt.Errorf("memory range at %v: size %#x wraps around", r.Start, r.Size)
		}
		if n := len(out); n > 0 {
			last := &out[n-1]
			if last.End() > r.Start {
				return nil, fmt.Errorf("memory ranges %v and %v overlap", *last, r)
			}
			if last.End() == r.Start {
				last.Size += r.Size
				continue
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// ReadFull is ReadPhys for callers to whom a part is worth nothing: it returns
// an error unless all of p was read.
func ReadFull(m Memory, p []byte, gpa PhysAddr) error {
	n, err := m.ReadPhys(p, gpa)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = &AddressError{Op: "read", Addr: gpa + PhysAddr(n), Err: ErrUnreadable}
	}
	return err
}

// IsHole reports whether err says that an address holds no RAM, as opposed to
// RAM that could not be read.
func IsHole(err error) bool { return errors.Is(err, ErrNotRAM) }
