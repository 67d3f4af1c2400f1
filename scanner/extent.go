package scanner

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const (
	pageSize = hypervisor.PageSize
	// lookbehind is what an extent that starts at a cut shows before its start:
	// whether a word begins there depends on the byte before it.
	lookbehind = pageSize
	// borderReach is how far a match may lie on either side of a border between
	// two areas.
	borderReach = pageSize
	// gapSize is how many zeros stand for missing pages in a buffer.
	gapSize = pageSize
)

// run is memory that is contiguous in its address space and physically.
type run struct {
	addr uint64 // virtual, or physical in physical memory
	phys hypervisor.PhysAddr
	size uint64 // bytes, whole pages
}

func (r run) end() uint64 { return r.addr + r.size }

// from returns the part of r from address a on.
func (r run) from(a uint64) run {
	d := a - r.addr
	return run{a, r.phys + hypervisor.PhysAddr(d), r.size - d}
}

// subject is what a scan knows of a target.
type subject struct {
	kind    string // "process", "kernel", "physical"
	pid     int
	comm    string
	virtual bool
	symbol  func(hypervisor.VirtAddr) string
}

// extent is a piece of work: runs that libyara sees as one buffer.
type extent struct {
	seq     uint64 // findings come in this order
	subject *subject
	area    Area // that it lies in; of a border, the area before it
	next    Area // of a border, the area behind it
	runs    []run
	// lo and hi bound the addresses that are this extent's own: a match that
	// starts elsewhere belongs to a neighbour. hi 0 is the end of the address
	// space.
	lo, hi uint64
	// border is not 0 for an extent around the border of two areas: only
	// matches that straddle it count.
	border uint64

	lost lost // pages known to be missing, found while the extent was planned
}

// lost are pages and problems that the page tables told of, before the extent
// was read. They travel with an extent so that all is told in order.
type lost struct {
	swapped  uint64
	problems []problem
}

// problem is one line of a scan's coverage.
type problem struct {
	what string
	addr uint64
	err  error
}

// owns reports whether address a is one of the extent's own.
func (e *extent) owns(a uint64) bool { return a-e.lo < e.hi-e.lo }

// ownBytes is how much of the extent is its own, in bytes.
func (e *extent) ownBytes() uint64 {
	if e.border != 0 {
		return 0
	}
	var n uint64
	for _, r := range e.runs {
		n += e.ownPart(r.addr, r.size)
	}
	return n
}

// ownPart is how many of size bytes at a are the extent's own.
func (e *extent) ownPart(a, size uint64) uint64 {
	if e.border != 0 {
		return 0
	}
	// Relative to lo everything fits, also at the end of the address space.
	start, end, own := int64(a-e.lo), int64(a+size-e.lo), int64(e.hi-e.lo)
	if own < 0 { // hi - lo is 2^63 or more: all that is behind lo
		own = int64(^uint64(0) >> 1)
	}
	start, end = max(start, 0), min(end, own)
	return uint64(max(end-start, 0))
}

// external returns what the built-in variable of that name is for e.
func (e *extent) external(name, vm string) any {
	switch name {
	case externPID:
		return e.subject.pid
	case externComm:
		return e.subject.comm
	case externWhere:
		return e.area.Name
	case externPerms:
		return e.area.Perms
	case externKind:
		return e.subject.kind
	default:
		return vm
	}
}

// base is the address that others in the extent are told relative to.
func (e *extent) base() uint64 { return e.runs[0].addr }

// cacheKey identifies what a scan of the extent reads: two extents of equal key
// have the same frames in the same order, with the same holes and the same own
// part. It is a cryptographic hash, because the guest chooses its frames: a
// collision that it can make would hide an extent from the scan.
type cacheKey [sha256.Size]byte

// externals are the variables that the rules ask for: they are part of what a
// scan reads.
func (e *extent) key(externals []string, vm string) cacheKey {
	h := sha256.New()
	for _, name := range externals {
		v := fmt.Sprint(e.external(name, vm))
		fmt.Fprintf(h, "%s %d %s", name, len(v), v)
	}
	b := make([]byte, 0, 24*64)
	put := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		if len(b)+24 > cap(b) {
			h.Write(b)
			b = b[:0]
		}
	}
	base := e.base()
	put(uint64(len(e.runs)), e.lo-base, e.hi-e.lo)
	if e.border != 0 {
		put(e.border - base)
	}
	for _, r := range e.runs {
		put(r.addr-base, uint64(r.phys), r.size)
	}
	h.Write(b)
	return cacheKey(h.Sum(nil))
}
