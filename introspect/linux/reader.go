package linux

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// virtReader reads guest-virtual memory: a *paging.AddressSpace.
type virtReader interface {
	ReadVirt(p []byte, va hypervisor.VirtAddr) (n int, err error)
}

// reader reads the kernel's structures. It is safe for concurrent use.
type reader struct {
	virtReader
	// lowest is where the kernel's half of the address space begins.
	lowest hypervisor.VirtAddr
}

// First addresses of the kernel's half, with 4 and with 5 levels of tables
// (Documentation/arch/x86/x86_64/mm.rst).
const (
	kernelHalf4Level hypervisor.VirtAddr = 0xffff_8000_0000_0000
	kernelHalf5Level hypervisor.VirtAddr = 0xff00_0000_0000_0000
	// maxErrno: the last page's addresses are error numbers, never objects
	// (include/linux/err.h).
	maxErrno = 4095
)

// check returns why p, found in the structure at where, cannot be the address
// of a kernel object.
func (r *reader) check(where, p hypervisor.VirtAddr, align uint64) error {
	if p < r.lowest || p > ^hypervisor.VirtAddr(0)-maxErrno || uint64(p)%align != 0 {
		return &PointerError{Where: where, Value: p, Err: ErrWild}
	}
	return nil
}

// full reads all of p at va.
func (r *reader) full(p []byte, va hypervisor.VirtAddr) error {
	n, err := r.ReadVirt(p, va)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("read gva %#x: %w", uint64(va)+uint64(n), hypervisor.ErrUnreadable)
	}
	return err
}

func (r *reader) u64(va hypervisor.VirtAddr) (uint64, error) {
	var b [8]byte
	err := r.full(b[:], va)
	return binary.LittleEndian.Uint64(b[:]), err
}

func (r *reader) u32(va hypervisor.VirtAddr) (uint32, error) {
	var b [4]byte
	err := r.full(b[:], va)
	return binary.LittleEndian.Uint32(b[:]), err
}

func (r *reader) ptr(va hypervisor.VirtAddr) (hypervisor.VirtAddr, error) {
	v, err := r.u64(va)
	return hypervisor.VirtAddr(v), err
}

// cstring reads a NUL-terminated string of at most limit bytes, page by page,
// so that it never touches a page behind the string's last one.
func (r *reader) cstring(va hypervisor.VirtAddr, limit int) (string, error) {
	if err := r.check(va, va, 1); err != nil {
		return "", err
	}
	var out []byte
	var chunk [256]byte
	for len(out) < limit {
		at := va + hypervisor.VirtAddr(len(out))
		n := min(len(chunk), limit-len(out), int(hypervisor.PageSize-at.Offset()))
		if err := r.full(chunk[:n], at); err != nil {
			return string(out), err
		}
		if i := bytes.IndexByte(chunk[:n], 0); i >= 0 {
			return string(append(out, chunk[:i]...)), nil
		}
		out = append(out, chunk[:n]...)
	}
	return string(out), fmt.Errorf("string at %#x: %w: %d bytes", uint64(va), ErrLimit, limit)
}

// object is a copy of a part of a guest structure.
type object struct {
	addr hypervisor.VirtAddr // of the whole structure
	lo   uint64              // offset of data in it
	data []byte
}

// object reads the span sp of the structure at addr into buf (grown if need
// be), and returns it and buf for the next call. The object is valid until then.
func (r *reader) object(buf []byte, addr hypervisor.VirtAddr, sp span) (object, []byte, error) {
	n := int(sp.hi - sp.lo)
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	o := object{addr: addr, lo: sp.lo, data: buf}
	return o, buf, r.full(buf, addr+hypervisor.VirtAddr(sp.lo))
}

// bytes returns f's bytes, nil when this kernel has no such field.
func (o object) bytes(f field) []byte {
	if !f.ok || f.off < o.lo {
		return nil
	}
	lo := f.off - o.lo
	if lo > uint64(len(o.data)) || f.size > uint64(len(o.data))-lo {
		return nil
	}
	return o.data[lo : lo+f.size]
}

// uint returns f as an unsigned number of its own size; 0 when this kernel has
// no such field.
func (o object) uint(f field) uint64 {
	b := o.bytes(f)
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	}
	if len(b) >= 8 {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// int32 returns a field that the kernel declares as int.
func (o object) int32(f field) int32 { return int32(o.uint(f)) }

// ptr returns a pointer field.
func (o object) ptr(f field) hypervisor.VirtAddr { return hypervisor.VirtAddr(o.uint(f)) }

// at returns the guest's address of f.
func (o object) at(f field) hypervisor.VirtAddr { return o.addr + hypervisor.VirtAddr(f.off) }

// links are a list_head's pointers.
type links struct{ next, prev hypervisor.VirtAddr }

// links returns the list_head f.
func (o object) links(f field) links {
	b := o.bytes(f)
	if len(b) < 16 {
		return links{}
	}
	return links{
		next: hypervisor.VirtAddr(binary.LittleEndian.Uint64(b)),
		prev: hypervisor.VirtAddr(binary.LittleEndian.Uint64(b[8:])),
	}
}

// readLinks reads the list_head at va.
func (r *reader) readLinks(va hypervisor.VirtAddr) (links, error) {
	var b [16]byte
	if err := r.full(b[:], va); err != nil {
		return links{}, err
	}
	return object{data: b[:]}.links(field{size: 16, ok: true}), nil
}
