package disk

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

// raw is a disk that is its file, byte for byte.
type raw struct {
	file *hostfile.File
	size uint64
	o    Options

	// probed guards the first sector of an image whose format was guessed.
	probed bool
	first  sync.Mutex
}

func newRaw(f *hostfile.File, o Options, probed bool) (*raw, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, fmt.Errorf("disk image %q is empty: give it a size (truncate -s 10G)", f.Path())
	}
	if size%sectorSize != 0 {
		return nil, fmt.Errorf("disk image %q has %d bytes, which is not a multiple of %d: is it a raw image? If so, truncate -s %%%d pads it", f.Path(), size, sectorSize, sectorSize)
	}
	return &raw{file: f, size: size, o: o, probed: probed}, nil
}

func (r *raw) Size() uint64   { return r.size }
func (r *raw) ReadOnly() bool { return r.o.ReadOnly }
func (r *raw) ID() string     { return r.o.ID }

func (r *raw) ReadV(iov [][]byte, off uint64) error {
	if err := hostfile.Check(off, hostfile.Len(iov), r.size); err != nil {
		return err
	}
	return r.file.ReadV(iov, off)
}

func (r *raw) WriteV(iov [][]byte, off uint64) error {
	n := hostfile.Len(iov)
	if err := r.mayWrite(off, n); err != nil {
		return err
	}
	if !r.probed || off >= sectorSize || n == 0 {
		return r.file.WriteV(iov, off)
	}
	// The guest can change its memory between a check and the write: what goes to
	// the first sector is a copy.
	head := make([]byte, min(n, sectorSize-off))
	hostfile.CopyIn(head, iov)
	r.first.Lock()
	defer r.first.Unlock()
	var sector [sectorSize]byte
	if err := r.file.ReadV([][]byte{sector[:]}, 0); err != nil {
		return err
	}
	copy(sector[off:], head)
	if formatOf(sector[:]) != "" {
		return ErrProbed
	}
	rest := hostfile.Cut(iov, uint64(len(head)), n-uint64(len(head)))
	return r.file.WriteV(append([][]byte{head}, rest...), off)
}

func (r *raw) mayWrite(off, n uint64) error {
	if r.o.ReadOnly {
		return ErrReadOnly
	}
	return hostfile.Check(off, n, r.size)
}

func (r *raw) Flush() error {
	if r.o.ReadOnly {
		return nil
	}
	return r.file.Sync()
}

func (r *raw) Discard(off, n uint64) error {
	if err := r.mayWrite(off, n); err != nil {
		return err
	}
	return r.zero(off, n, func(off, n uint64) error {
		_, err := r.file.Punch(off, n)
		return err
	})
}

func (r *raw) WriteZeroes(off, n uint64, unmap bool) error {
	if err := r.mayWrite(off, n); err != nil {
		return err
	}
	return r.zero(off, n, func(off, n uint64) error { return r.file.WriteZeroes(off, n, unmap) })
}

// zero zeroes a range: in the first sector of an image whose format was guessed
// as any write, for zeros may be part of a magic too.
func (r *raw) zero(off, n uint64, do func(off, n uint64) error) error {
	if r.probed && off < sectorSize && n > 0 {
		head := min(n, sectorSize-off)
		if err := r.WriteV([][]byte{make([]byte, head)}, off); err != nil {
			return err
		}
		off, n = off+head, n-head
	}
	return do(off, n)
}

func (r *raw) Close() error { return errors.Join(r.flushClose()...) }

func (r *raw) flushClose() []error {
	err := r.Flush()
	if errors.Is(err, ErrClosed) {
		return nil
	}
	return []error{err, r.file.Close()}
}
