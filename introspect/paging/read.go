package paging

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// ReadVirt reads len(p) bytes at va, over page boundaries. It returns the
// number of bytes read and, when that is less than len(p), why: an error that
// wraps a *NotMappedError, or one of hypervisor.Memory's ReadPhys for a page
// that lies in no RAM. The first n bytes of p are valid also with an error.
func (as *AddressSpace) ReadVirt(p []byte, va hypervisor.VirtAddr) (n int, err error) {
	for n < len(p) {
		at := va + hypervisor.VirtAddr(n)
		if n > 0 && at < va {
			return n, fmt.Errorf("read gva %#x: %w", uint64(va), &NotMappedError{Addr: at, Kind: KindNonCanonical})
		}
		e, err := as.lookup(at)
		if err != nil {
			return n, fmt.Errorf("read: %w", err)
		}
		off := uint64(at - e.Virt)
		var done int
		if off < uint64(len(e.view)) {
			done, err = hypervisor.CopyView(p[n:], e.view[off:])
		} else {
			done, err = as.readRun(p[n:], at, e)
		}
		n += done
		if err != nil {
			return n, fmt.Errorf("read gva %#x: %w", uint64(va)+uint64(n), err)
		}
	}
	return n, nil
}

// readRun reads from at, which lies in page e, through ReadPhys: as many pages
// as lie one after the other in physical memory, in one call.
func (as *AddressSpace) readRun(p []byte, at hypervisor.VirtAddr, e *tlbEntry) (int, error) {
	phys := e.At(at)
	size := as.extend(at, e, uint64(len(p)))
	return as.mem.ReadPhys(p[:size], phys)
}

// extend returns how many bytes from at on, which lies in page e, are
// contiguous in virtual and physical memory; at most limit.
func (as *AddressSpace) extend(at hypervisor.VirtAddr, e *tlbEntry, limit uint64) uint64 {
	phys := e.At(at)
	size := e.Size - uint64(at-e.Virt)
	for size < limit {
		next := at + hypervisor.VirtAddr(size)
		if next < at {
			break
		}
		n, err := as.lookup(next)
		if err != nil || n.Phys != phys+hypervisor.PhysAddr(size) {
			break
		}
		size += n.Size
	}
	return min(size, limit)
}

// View returns guest memory at va without a copy: at most limit bytes, fewer
// where the pages no longer follow each other in physical memory, or the
// mapping ends; never none without an error. The rules of hypervisor.Mapper hold:
// the view is read-only, a live guest may change it at any moment, a torn file
// faults (see hypervisor.Guard), and it ends with the VM. The error wraps
// hypervisor.ErrNotSupported when the memory cannot be mapped.
func (as *AddressSpace) View(va hypervisor.VirtAddr, limit uint64) ([]byte, error) {
	if as.mapper == nil {
		return nil, fmt.Errorf("view gva %#x: zero-copy memory: %w", uint64(va), hypervisor.ErrNotSupported)
	}
	e, err := as.lookup(va)
	if err != nil {
		return nil, fmt.Errorf("view: %w", err)
	}
	off := uint64(va - e.Virt)
	if have := uint64(len(e.view)); off < have && limit <= have-off {
		return e.view[off : off+limit : off+limit], nil
	}
	view, err := as.mapper.MapPhys(e.At(va), as.extend(va, e, limit))
	if err != nil {
		return nil, fmt.Errorf("view gva %#x: %w", uint64(va), err)
	}
	return view, nil
}
