// Package guestmem is the RAM of a machine of ours: a file in memory (NewFile),
// mapped twice. One mapping is given to KVM, and traps are armed on it; the other is
// for devices, handlers and the loader, which never fault on a trap. Clients map the
// file for themselves.
//
// It must not import anything but packages hypervisor, bus and layout.
package guestmem

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Memory is a guest's RAM. It is safe for concurrent use; what is in it is
// shared with the guest.
type Memory struct {
	file    *os.File
	ranges  []hypervisor.Range
	size    uint64
	ours    []byte
	kvms    []byte
	dirty   atomic.Pointer[[]atomic.Uint64] // a bit a page of the file; nil: not tracked
	written atomic.Pointer[func(hypervisor.PhysAddr, uint64)]
	closing sync.Once
}

// New makes RAM of the given ranges (sorted, in whole pages) out of file, which
// NewFile made for as many bytes, and takes it over. nil: it makes one itself.
func New(ranges []hypervisor.Range, file *os.File) (_ *Memory, err error) {
	m := &Memory{file: file}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("guest memory of %d bytes: %w", m.size, err), m.Close())
		}
	}()
	if m.ranges, err = hypervisor.NormalizeRanges(ranges); err != nil {
		return nil, err
	}
	m.size = hypervisor.TotalSize(m.ranges)
	if m.size == 0 {
		return nil, errors.New("no bytes asked for")
	}
	for _, r := range m.ranges {
		if r.Start.Offset() != 0 || r.Size%hypervisor.PageSize != 0 {
			return nil, fmt.Errorf("range %v is not of whole pages", r)
		}
	}
	if m.file == nil {
		if m.file, err = NewFile(m.size); err != nil {
			return nil, err
		}
	}
	if st, err := m.file.Stat(); err != nil || uint64(st.Size()) != m.size {
		return nil, fmt.Errorf("its file is of another size: %w", errors.Join(err, os.ErrInvalid))
	}
	if m.ours, err = m.mmap(); err != nil {
		return nil, err
	}
	m.kvms, err = m.mmap()
	return m, err
}

func (m *Memory) mmap() ([]byte, error) {
	b, err := unix.Mmap(int(m.file.Fd()), 0, int(m.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, err
	}
	// Huge pages where the host gives them to shared memory (shmem_enabled); not
	// an error where it does not. A core of this process is not the guest's.
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	_ = unix.Madvise(b, unix.MADV_DONTDUMP)
	return b, nil
}

// Close unmaps and closes. No vCPU, device or view may be in use any more.
func (m *Memory) Close() error {
	var errs []error
	m.closing.Do(func() {
		for _, b := range [][]byte{m.ours, m.kvms} {
			if b != nil {
				errs = append(errs, unix.Munmap(b))
			}
		}
		if m.file != nil {
			errs = append(errs, m.file.Close())
		}
	})
	return errors.Join(errs...)
}

// File returns the memfd. The ranges lie in it one behind the other.
func (m *Memory) File() *os.File { return m.file }

// Ranges returns the RAM: sorted, merged. The caller must not change it.
func (m *Memory) Ranges() []hypervisor.Range { return m.ranges }

// Size returns the number of bytes of RAM, which is that of the file.
func (m *Memory) Size() uint64 { return m.size }

// Offset returns where gpa is in the file, and how many bytes follow in the
// same range.
func (m *Memory) Offset(gpa hypervisor.PhysAddr) (off, room uint64, ok bool) {
	for _, r := range m.ranges {
		if r.Contains(gpa) {
			in := uint64(gpa - r.Start)
			return off + in, r.Size - in, true
		}
		off += r.Size
	}
	return 0, 0, false
}

// View returns size bytes at gpa of our mapping: shared with the guest, valid
// until Close. It returns an error that wraps hypervisor.ErrNotRAM unless all of
// them lie in one range. Who writes through it calls Dirtied.
func (m *Memory) View(gpa hypervisor.PhysAddr, size uint64) ([]byte, error) {
	off, room, ok := m.Offset(gpa)
	if !ok || size > room {
		return nil, &hypervisor.AddressError{Op: "view", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	return m.ours[off : off+size : off+size], nil
}

// KVMView is View of the mapping that KVM has: only for arming traps on it.
func (m *Memory) KVMView(gpa hypervisor.PhysAddr, size uint64) ([]byte, error) {
	off, room, ok := m.Offset(gpa)
	if !ok || size > room {
		return nil, &hypervisor.AddressError{Op: "view", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	return m.kvms[off : off+size : off+size], nil
}

// KVMAddrToPhys is the way back: the gpa of a host address in KVM's mapping.
func (m *Memory) KVMAddrToPhys(addr uintptr) (hypervisor.PhysAddr, bool) {
	base := addressOf(m.kvms)
	if addr < base || uint64(addr-base) >= m.size {
		return 0, false
	}
	off := uint64(addr - base)
	for _, r := range m.ranges {
		if off < r.Size {
			return r.Start + hypervisor.PhysAddr(off), true
		}
		off -= r.Size
	}
	return 0, false
}

// KVMAddr returns the host address of gpa in KVM's mapping.
func (m *Memory) KVMAddr(gpa hypervisor.PhysAddr) (uintptr, bool) {
	off, _, ok := m.Offset(gpa)
	return addressOf(m.kvms) + uintptr(off), ok
}

// ReadPhys is hypervisor.Memory's.
func (m *Memory) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	return m.each(p, "read", gpa, func(view, p []byte, _ hypervisor.PhysAddr) { copy(p, view) })
}

// WritePhys is hypervisor.Writer's.
func (m *Memory) WritePhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	return m.each(p, "write", gpa, func(view, p []byte, gpa hypervisor.PhysAddr) {
		copy(view, p)
		m.Dirtied(gpa, uint64(len(p)))
	})
}

func (m *Memory) each(p []byte, op string, gpa hypervisor.PhysAddr, do func(view, p []byte, gpa hypervisor.PhysAddr)) (int, error) {
	n := 0
	for n < len(p) {
		at := gpa + hypervisor.PhysAddr(n)
		off, room, ok := m.Offset(at)
		if !ok {
			return n, &hypervisor.AddressError{Op: op, Addr: at, Err: hypervisor.ErrNotRAM}
		}
		size := min(uint64(len(p)-n), room)
		do(m.ours[off:off+size], p[n:n+int(size)], at)
		n += int(size)
	}
	return n, nil
}

// Discard gives whole pages back to the host: they read as zeros until someone
// writes them. It returns an error that wraps hypervisor.ErrNotRAM unless all of
// them lie in one range.
func (m *Memory) Discard(gpa hypervisor.PhysAddr, size uint64) error {
	off, room, ok := m.Offset(gpa)
	if !ok || size > room || gpa.Offset() != 0 || size%hypervisor.PageSize != 0 {
		return &hypervisor.AddressError{Op: "discard", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	err := unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(size))
	if err != nil {
		return &hypervisor.AddressError{Op: "discard", Addr: gpa, Err: err}
	}
	m.Dirtied(gpa, size)
	return nil
}

// TrackDirty begins to note what Dirtied says, or ends it.
func (m *Memory) TrackDirty(on bool) {
	if !on {
		m.dirty.Store(nil)
		return
	}
	pages := m.size / hypervisor.PageSize
	bitmap := make([]atomic.Uint64, (pages+63)/64)
	m.dirty.Store(&bitmap)
}

// OnDirtied lets f be told of each call of Dirtied, by the goroutine that makes
// it; nil: no one is told. f must not block.
func (m *Memory) OnDirtied(f func(gpa hypervisor.PhysAddr, size uint64)) {
	if f == nil {
		m.written.Store(nil)
		return
	}
	m.written.Store(&f)
}

// Dirtied notes that size bytes at gpa were written through a view. KVM sees
// only the guest's own writes.
func (m *Memory) Dirtied(gpa hypervisor.PhysAddr, size uint64) {
	if f := m.written.Load(); f != nil {
		(*f)(gpa, size)
	}
	bitmap := m.dirty.Load()
	if bitmap == nil || size == 0 {
		return
	}
	off, room, ok := m.Offset(gpa)
	if !ok {
		return
	}
	last := (off + min(size, room) - 1) / hypervisor.PageSize
	for p := off / hypervisor.PageSize; p <= last; p++ {
		(*bitmap)[p/64].Or(1 << (p % 64))
	}
}

// TakeDirty calls f with each page that Dirtied has named since the last call.
func (m *Memory) TakeDirty(f func(hypervisor.Frame)) {
	bitmap := m.dirty.Load()
	if bitmap == nil {
		return
	}
	var start uint64 // in the file, in pages
	for _, r := range m.ranges {
		n := r.Size / hypervisor.PageSize
		for p := start; p < start+n; {
			// A word may hold the pages of two ranges: take only this one's.
			in := p % 64
			width := min(64-in, start+n-p)
			mask := (^uint64(0) >> (64 - width)) << in
			old := (*bitmap)[p/64].And(^mask) & mask
			for ; old != 0; old &= old - 1 {
				page := p - in + uint64(bits.TrailingZeros64(old))
				f(r.Start.Frame() + hypervisor.Frame(page-start))
			}
			p += width
		}
		start += n
	}
}
