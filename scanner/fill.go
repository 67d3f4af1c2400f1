package scanner

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// readPiece is how much is read at once: a piece that was just copied is still
// in the CPU's cache when it is looked at for zero pages.
const readPiece = 256 << 10

// segment is a part of a buffer that shows contiguous memory.
type segment struct {
	off    int // in the buffer
	size   int
	addr   uint64
	phys   hypervisor.PhysAddr
	joined bool // the addresses go on where the segment before ends
}

// buffer holds one extent as libyara sees it. A worker has one, for all its
// extents.
type buffer struct {
	mem   hypervisor.Memory
	data  []byte
	n     int // bytes in use
	segs  []segment
	zero  [pageSize]byte
	zeros int  // all-zero pages at the end of what is in use, that follow each other
	some  bool // a byte that is not zero was seen

	stats readStats
}

// readStats count what of an extent's own part was read.
type readStats struct {
	pages      uint64 // of the own part
	read       uint64
	skipped    uint64
	unreadable uint64
	notRAM     uint64
	scanned    uint64 // bytes shown to libyara
	problems   []problem
	badEnd     uint64 // where the last unreadable place ended
}

func newBuffer(mem hypervisor.Memory, extentSize int) *buffer {
	// An extent, what is shown around it, a gap before the last run, and room
	// for a piece to land before its zero pages are taken out.
	return &buffer{mem: mem, data: make([]byte, extentSize+Overlap+lookbehind+2*gapSize+readPiece)}
}

// pagesOf returns how many pages n bytes take.
func pagesOf(n uint64) uint64 { return (n + pageSize - 1) / pageSize }

// fill reads an extent. The error is that of the whole scan: the VM is gone, or
// ctx is done. What could not be read is in the stats.
func (b *buffer) fill(ctx context.Context, e *extent) error {
	b.n, b.segs, b.zeros, b.some = 0, b.segs[:0], 0, false
	b.stats = readStats{}
	for _, r := range e.runs {
		for r.size > 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(r.size, readPiece, uint64(len(b.data)-gapSize-b.n))
			if n == 0 {
				return fmt.Errorf("extent at %#x is larger than its buffer", r.addr)
			}
			got, err := b.read(e, r, int(n))
			if err != nil {
				return err
			}
			r = r.from(r.addr + got)
		}
	}
	return nil
}

// read reads up to n bytes of r and takes the zero pages out. It returns how
// far it came, past what could not be read.
func (b *buffer) read(e *extent, r run, n int) (uint64, error) {
	if !b.follows(r.addr) {
		b.gap(r.addr)
	}
	to := b.data[b.n : b.n+n]
	var got int
	var err error
	// A driver may copy from a mapping that the host can take away.
	if fault := hypervisor.Guard(func() { got, err = b.mem.ReadPhys(to, r.phys) }); fault != nil {
		got, err = b.salvage(to, r.phys, fault)
	}
	got = min(max(got, 0), n)
	own := e.ownPart(r.addr, uint64(got))
	b.stats.pages += pagesOf(own)
	b.stats.read += pagesOf(own)
	b.compact(e, run{r.addr, r.phys, uint64(got)})
	if got == n {
		return uint64(got), nil
	}
	if errors.Is(err, hypervisor.ErrGone) || errors.Is(err, hypervisor.ErrClosed) {
		return 0, err
	}
	if err == nil {
		err = &hypervisor.AddressError{Op: "read", Addr: r.phys + hypervisor.PhysAddr(got), Err: hypervisor.ErrUnreadable}
	}
	// Go on with the next page.
	at := r.from(r.addr + uint64(got))
	bad := min(pageSize-at.addr%pageSize, at.size)
	if own := e.ownPart(at.addr, bad); own > 0 {
		b.stats.pages += pagesOf(own)
		if hypervisor.IsHole(err) {
			b.stats.notRAM += pagesOf(own)
		} else {
			b.stats.unreadable += pagesOf(own)
			b.stats.unread(problem{e.subject.kind + " memory", at.addr, err}, at.addr+bad)
		}
	}
	return uint64(got) + bad, nil
}

// unread notes a problem that reaches up to address end, unless it goes on
// where the one before ended.
func (s *readStats) unread(p problem, end uint64) {
	if p.addr != s.badEnd && len(s.problems) < maxHoles {
		s.problems = append(s.problems, p)
	}
	s.badEnd = end
}

// salvage reads page by page after a read faulted as a whole.
func (b *buffer) salvage(to []byte, phys hypervisor.PhysAddr, fault error) (n int, err error) {
	for n < len(to) {
		end := min(n+pageSize, len(to))
		var got int
		if f := hypervisor.Guard(func() { got, err = b.mem.ReadPhys(to[n:end], phys+hypervisor.PhysAddr(n)) }); f != nil {
			return n, fault
		}
		n += min(max(got, 0), end-n)
		if err != nil || n < end {
			return n, err
		}
	}
	return n, nil
}

// follows reports whether address a is where the buffer's last byte is followed.
func (b *buffer) follows(a uint64) bool {
	if len(b.segs) == 0 {
		return true
	}
	last := &b.segs[len(b.segs)-1]
	return last.addr+uint64(last.size) == a
}

// gap puts zeros for what is missing before address a, and no more of them than
// bytes are missing: a buffer is never larger than the memory it shows.
func (b *buffer) gap(a uint64) {
	last := &b.segs[len(b.segs)-1]
	n := int(min(a-last.addr-uint64(last.size), gapSize))
	clear(b.data[b.n : b.n+n])
	b.n += n
	b.zeros = 0
}

// compact takes in the r.size bytes that were read behind the bytes in use.
func (b *buffer) compact(e *extent, r run) {
	src := b.n
	for r.size > 0 {
		n := min(pageSize-r.addr%pageSize, r.size)
		page := b.data[src : src+int(n)]
		zero := bytes.Equal(page, b.zero[:n])
		switch {
		case !zero:
			b.zeros, b.some = 0, true
		case n == pageSize && b.follows(r.addr) && len(b.segs) > 0:
			b.zeros++
		default:
			b.zeros = 0
			if n == pageSize {
				b.zeros = 1
			}
		}
		if b.zeros >= 3 {
			// The page before is zero, and so is the one before that: this page
			// takes its place.
			b.replaceLast(e, r)
		} else {
			if src != b.n {
				copy(b.data[b.n:], page)
			}
			b.push(r.addr, r.phys, int(n))
			b.stats.scanned += e.ownPart(r.addr, n)
		}
		src += int(n)
		r = r.from(r.addr + n)
	}
}

// push says that the n bytes behind those in use show addr.
func (b *buffer) push(addr uint64, phys hypervisor.PhysAddr, n int) {
	joined := len(b.segs) > 0 && b.follows(addr)
	if joined {
		last := &b.segs[len(b.segs)-1]
		if last.off+last.size == b.n && last.phys+hypervisor.PhysAddr(last.size) == phys {
			last.size += n
			b.n += n
			return
		}
	}
	b.segs = append(b.segs, segment{off: b.n, size: n, addr: addr, phys: phys, joined: joined})
	b.n += n
}

// replaceLast lets the zero page at the end of the buffer stand for r's first
// page, and no more for its own.
func (b *buffer) replaceLast(e *extent, r run) {
	last := &b.segs[len(b.segs)-1]
	old := last.addr + uint64(last.size) - pageSize
	own := e.ownPart(old, pageSize)
	b.stats.skipped += pagesOf(own)
	b.stats.scanned += e.ownPart(r.addr, pageSize) - own
	b.n -= pageSize
	if last.size -= pageSize; last.size == 0 {
		b.segs = b.segs[:len(b.segs)-1]
	}
	b.segs = append(b.segs, segment{off: b.n, size: pageSize, addr: r.addr, phys: r.phys})
	b.n += pageSize
}

// bytes returns what libyara is to see, nil when there is nothing but zeros.
func (b *buffer) bytes() []byte {
	if !b.some {
		b.stats.skipped, b.stats.scanned = b.stats.read, 0
		return nil
	}
	return b.data[:b.n]
}

// locate returns the segment that offset off lies in.
func (b *buffer) locate(off int) (int, bool) {
	lo, hi := 0, len(b.segs)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if b.segs[mid].off+b.segs[mid].size <= off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, lo < len(b.segs) && off >= b.segs[lo].off
}

// whole reports whether the n bytes at offset off, which lies in segment i, are
// neighbours in memory too.
func (b *buffer) whole(i, off, n int) bool {
	for {
		s := &b.segs[i]
		if off+n <= s.off+s.size {
			return true
		}
		if i++; i == len(b.segs) || !b.segs[i].joined || b.segs[i].off != s.off+s.size {
			return false
		}
	}
}
