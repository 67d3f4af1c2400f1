package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// file is an open memory file: the part that all formats have.
type file struct {
	mu     sync.RWMutex // held for reading during a read, so that Close cannot take the mapping away under it
	closed bool

	f      *os.File
	data   []byte // the mapped file, nil when it is not mapped
	im     *parsed
	ranges []hypervisor.Range
	info   hypervisor.Info

	cache  *chunkCache // AVML only
	chunks *chunkReader
}

// The kinds of VM that a file can be. A capability that is missing is missing
// from the type.
type (
	// mapped is a file that is mapped into memory.
	mapped struct{ *file }
	// registered is a file with vCPU registers.
	registered struct{ *file }
	// mappedRegistered is both.
	mappedRegistered struct {
		mapped
		registered registered
	}
)

var (
	_ hypervisor.VM             = (*file)(nil)
	_ hypervisor.Identified     = (*file)(nil)
	_ hypervisor.Mapper         = mapped{}
	_ hypervisor.RegisterReader = registered{}
	_ hypervisor.Mapper         = mappedRegistered{}
	_ hypervisor.RegisterReader = mappedRegistered{}
)

// newVM takes f over, unless it returns an error.
func (d *Driver) newVM(f *os.File, src *source, im *parsed, p params) (hypervisor.VM, error) {
	var rs []hypervisor.Range
	for _, g := range im.segments {
		rs = append(rs, hypervisor.Range{Start: g.phys, Size: g.size})
	}
	for _, c := range im.chunks {
		rs = append(rs, hypervisor.Range{Start: c.phys, Size: c.size})
	}
	rs, err := hypervisor.NormalizeRanges(rs)
	if err != nil {
		return nil, err
	}
	vm := &file{f: f, im: im, ranges: rs, info: hypervisor.Info{
		Name:        filepath.Base(src.path),
		URI:         p.uri(src.path),
		Driver:      driverName,
		State:       hypervisor.StateStatic,
		MemoryBytes: hypervisor.TotalSize(rs),
		VCPUs:       len(im.regs),
	}}
	if len(im.chunks) > 0 {
		vm.cache = newChunkCache(d.cacheBytes)
		vm.chunks = newChunkReader(f)
	} else if vm.data, err = d.mmap(f, src.size); err != nil {
		// Some filesystems and devices cannot be mapped: then it is read.
		d.log.Warn("memory file cannot be mapped, reading it", "path", src.path, "err", err)
		vm.data = nil
	}
	switch regs := len(im.regs) > 0; {
	case vm.data != nil && regs:
		return mappedRegistered{mapped{vm}, registered{vm}}, nil
	case vm.data != nil:
		return mapped{vm}, nil
	case regs:
		return registered{vm}, nil
	}
	return vm, nil
}

func (d *Driver) mmap(f *os.File, size int64) ([]byte, error) {
	if d.noMap {
		return nil, unix.ENODEV
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
}

// Info returns what is known of the file.
func (v *file) Info() hypervisor.Info { return v.info }

// Identity implements hypervisor.Identified: which file it is, and when it was
// changed last. Writing to a file changes its times, which nobody can set back
// but by setting the host's clock.
func (v *file) Identity() string {
	v.mu.RLock()
	defer v.mu.RUnlock()
	var st unix.Stat_t
	if v.closed || unix.Fstat(int(v.f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	return fmt.Sprintf("%s dev=%d ino=%d size=%d mtime=%d.%09d ctime=%d.%09d ranges=%v", v.info.URI, st.Dev, st.Ino, st.Size,
		st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec, v.ranges)
}

// Ranges returns the RAM that the file names.
func (v *file) Ranges() []hypervisor.Range { return v.ranges }

// Close unmaps and closes the file.
func (v *file) Close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil
	}
	v.closed = true
	v.cache = nil
	var err error
	if v.data != nil {
		err = unix.Munmap(v.data)
		v.data = nil
	}
	return errors.Join(err, v.f.Close())
}

// ReadPhys implements hypervisor.Memory.
func (v *file) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (n int, err error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed {
		return 0, fmt.Errorf("read gpa %#x: %w", uint64(gpa), hypervisor.ErrClosed)
	}
	for n < len(p) {
		at := gpa + hypervisor.PhysAddr(n)
		var done int
		if at < gpa {
			err = hypervisor.ErrNotRAM
		} else if v.cache != nil {
			done, err = v.readChunk(p[n:], at)
		} else {
			done, err = v.readSegment(p[n:], at)
		}
		n += done
		if err != nil {
			return n, &hypervisor.AddressError{Op: "read", Addr: gpa + hypervisor.PhysAddr(n), Err: err}
		}
	}
	return n, nil
}

// segmentAt returns the segment that holds at.
func (v *file) segmentAt(at hypervisor.PhysAddr) (*segment, bool) {
	segs := v.im.segments
	i, found := slices.BinarySearchFunc(segs, at, func(g segment, a hypervisor.PhysAddr) int {
		switch {
		case g.phys > a:
			return 1
		case g.end() <= a:
			return -1
		}
		return 0
	})
	if !found {
		return nil, false
	}
	return &segs[i], true
}

// readSegment reads from at on to the end of its segment.
func (v *file) readSegment(p []byte, at hypervisor.PhysAddr) (int, error) {
	g, ok := v.segmentAt(at)
	if !ok {
		return 0, hypervisor.ErrNotRAM
	}
	skip := uint64(at - g.phys)
	if skip >= g.have {
		return 0, fmt.Errorf("%w: the file was cut before it", hypervisor.ErrUnreadable)
	}
	off := g.off + int64(skip)
	p = p[:min(uint64(len(p)), g.have-skip)]
	if v.data != nil {
		return hypervisor.CopyView(p, v.data[off:])
	}
	n, err := v.f.ReadAt(p, off)
	if n < len(p) {
		return n, fmt.Errorf("%w: %w", hypervisor.ErrUnreadable, err)
	}
	return n, nil
}

// readChunk reads from at on to the end of its chunk.
func (v *file) readChunk(p []byte, at hypervisor.PhysAddr) (int, error) {
	i, found := slices.BinarySearchFunc(v.im.chunks, at, func(c chunk, a hypervisor.PhysAddr) int {
		switch {
		case c.phys > a:
			return 1
		case c.end() <= a:
			return -1
		}
		return 0
	})
	if !found {
		return 0, hypervisor.ErrNotRAM
	}
	c := v.im.chunks[i]
	if c.kind == chunkMissing {
		return 0, fmt.Errorf("%w: the file was cut before it", hypervisor.ErrUnreadable)
	}
	data, err := v.cache.get(i, int(c.size), func() ([]byte, error) { return v.chunks.read(c) })
	if err != nil {
		return 0, fmt.Errorf("%w: %w", hypervisor.ErrUnreadable, err)
	}
	return copy(p, data[at-c.phys:]), nil
}

// MapPhys implements hypervisor.Mapper: a part of the mapped file.
func (v mapped) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed {
		return nil, fmt.Errorf("map gpa %#x: %w", uint64(gpa), hypervisor.ErrClosed)
	}
	g, ok := v.segmentAt(gpa)
	if !ok {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	skip := uint64(gpa - g.phys)
	if skip >= g.have {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrUnreadable}
	}
	off := uint64(g.off) + skip
	end := off + min(limit, g.have-skip)
	return v.data[off:end:end], nil
}

// Registers implements hypervisor.RegisterReader.
func (v registered) Registers(ctx context.Context) ([]hypervisor.Registers, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.closed {
		return nil, fmt.Errorf("read registers: %w", hypervisor.ErrClosed)
	}
	return slices.Clone(v.im.regs), nil
}

// Registers implements hypervisor.RegisterReader.
func (v mappedRegistered) Registers(ctx context.Context) ([]hypervisor.Registers, error) {
	return v.registered.Registers(ctx)
}

// VMCoreInfo implements VMCoreInfoReader.
func (v *file) VMCoreInfo() []byte { return slices.Clone(v.im.vmcoreinfo) }

// VMCoreInfoReader is implemented by the VMs of this driver.
type VMCoreInfoReader interface {
	// VMCoreInfo returns the VMCOREINFO note of an ELF core: lines of KEY=VALUE
	// that the guest's kernel wrote. It is nil when there is none.
	VMCoreInfo() []byte
}
