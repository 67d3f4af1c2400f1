package profile

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// addressForm is how a kernel's kallsyms_offsets are meant.
type addressForm uint8

const (
	// formAbsolutePerCPU: negative offsets are relative to relative_base - 1,
	// others are absolute (per-CPU variables; CONFIG_KALLSYMS_ABSOLUTE_PERCPU,
	// up to 6.14).
	formAbsolutePerCPU addressForm = iota + 1
	// formBaseRelative: unsigned, relative to relative_base (6.15 to 6.19).
	formBaseRelative
	// formSelfRelative: signed, relative to the offset's own address (from 7.0).
	formSelfRelative
)

// addresses are a kernel's symbols' addresses.
type addresses struct {
	form    addressForm
	offsets []byte              // i32 each
	base    hypervisor.VirtAddr // relative_base, or the address of offsets
}

// at returns the address of symbol i, which must be in range.
func (a *addresses) at(i int) hypervisor.VirtAddr {
	v := int32(binary.LittleEndian.Uint32(a.offsets[4*i:]))
	switch a.form {
	case formAbsolutePerCPU:
		if v >= 0 {
			return hypervisor.VirtAddr(v)
		}
		return a.base - 1 - hypervisor.VirtAddr(int64(v))
	case formBaseRelative:
		return a.base + hypervisor.VirtAddr(uint32(v))
	}
	return a.base + hypervisor.VirtAddr(4*i) + hypervisor.VirtAddr(int64(v))
}

// plausible reports whether count addresses are sorted, the first in the image
// lo to hi is lo (_text), and nearly all lie in it. Sorted alone says little:
// with formSelfRelative zeros are.
func (a *addresses) plausible(count int, lo, hi hypervisor.VirtAddr) bool {
	if len(a.offsets) < 4*count || count == 0 {
		return false
	}
	inside := 0
	var prev hypervisor.VirtAddr
	for i := range count {
		v := a.at(i)
		if v < prev {
			return false
		}
		if v >= kernelMap && inside == 0 && v != lo {
			return false
		}
		if v >= lo && v <= hi {
			inside++
		}
		prev = v
	}
	return inside >= count-count/8
}

// addressTable says where kallsyms_offsets lie in a window, and of which form
// they are.
type addressTable struct {
	form    addressForm
	offsets int
	base    int // offset of relative_base; unused with formSelfRelative
}

// addressTables returns where the addresses that go with l may lie, in a
// window of size bytes.
func addressTables(l layout, size int) []addressTable {
	n := 4 * l.count
	after := l.tokens.index + tokenIndexLen
	var out []addressTable
	add := func(base, offsets, need int, forms ...addressForm) {
		if base < 0 || offsets < 0 || need > size {
			return
		}
		for _, f := range forms {
			out = append(out, addressTable{form: f, offsets: offsets, base: base})
		}
	}
	// From 6.4: behind the token index. Alignment must not be guessed: a table
	// read from one entry too early, or too late, can still look sorted. With a
	// relative_base tables are aligned to 8. Without one they may be aligned to
	// 4, which is tried first: padding in front is then no address of _text.
	// (They are aligned in the kernel's address space; windows begin at a
	// multiple of 8 there.)
	offsets := alignUp(after, 8)
	base := alignUp(offsets+n, 8)
	add(base, offsets, base+8, formAbsolutePerCPU, formBaseRelative)
	add(0, alignUp(after, 4), alignUp(after, 4)+n, formSelfRelative)
	add(0, offsets, offsets+n, formSelfRelative)
	// Up to 6.3: before num_syms.
	base = l.numSyms - 8
	add(base, base-alignUp(n, 8), 0, formAbsolutePerCPU, formBaseRelative)
	add(0, l.numSyms-n, 0, formSelfRelative)
	return out
}

// open returns the addresses that t says are in b, a window that begins at va.
// ok is false when relative_base is no address in the image lo to hi.
func (t addressTable) open(b []byte, va, lo, hi hypervisor.VirtAddr, count int) (a addresses, ok bool) {
	if t.offsets < 0 || t.offsets+4*count > len(b) {
		return addresses{}, false
	}
	a = addresses{form: t.form, offsets: b[t.offsets : t.offsets+4*count]}
	if t.form == formSelfRelative {
		a.base = va + hypervisor.VirtAddr(t.offsets)
		return a, true
	}
	if t.base < 0 || t.base+8 > len(b) {
		return addresses{}, false
	}
	a.base = hypervisor.VirtAddr(binary.LittleEndian.Uint64(b[t.base:]))
	return a, a.base >= lo && a.base <= hi
}
