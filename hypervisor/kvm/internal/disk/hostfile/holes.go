package hostfile

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// zeroChunk is how much memory is used to write zeros where the filesystem has
// no better way.
const zeroChunk = 64 << 10

// unsupported reports whether a filesystem or device says that it cannot do an
// operation, as opposed to having failed. EINVAL is what a block device says to
// a range that is not of whole blocks of its own.
func unsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV)
}

// Punch gives the space of a range back to the host: it reads as zeros then. It
// returns false, and has done nothing, where the host cannot do that.
func (f *File) Punch(off, n uint64) (bool, error) {
	if f.noPunch.Load() {
		return false, nil
	}
	ok, err := f.allocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !ok && err == nil && !f.device {
		f.noPunch.Store(true)
	}
	return ok, err
}

// WriteZeroes makes a range read as zeros, by the cheapest means: where unmap is
// set its space may be given back, else it stays allocated.
func (f *File) WriteZeroes(off, n uint64, unmap bool) error {
	if !f.writable {
		return ErrReadOnly
	}
	if unmap {
		if ok, err := f.Punch(off, n); ok || err != nil {
			return err
		}
	}
	if !f.noZero.Load() {
		ok, err := f.allocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if ok || err != nil {
			return err
		}
		if !f.device {
			f.noZero.Store(true)
		}
	}
	zeros := make([]byte, min(n, zeroChunk))
	for n > 0 {
		// The same zeros many times over: one system call for up to 16 MiB.
		var iov [][]byte
		for size := uint64(0); size < n && len(iov) < 256; {
			take := min(n-size, zeroChunk)
			iov = append(iov, zeros[:take])
			size += take
		}
		size := Len(iov)
		if err := f.WriteV(iov, off); err != nil {
			return err
		}
		off, n = off+size, n-size
	}
	return nil
}

func (f *File) allocate(mode uint32, off, n uint64) (bool, error) {
	if !f.writable {
		return false, ErrReadOnly
	}
	if n == 0 {
		return true, nil
	}
	err := f.do(func(fd int) error {
		for {
			if err := unix.Fallocate(fd, mode, int64(off), int64(n)); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
	switch {
	case err == nil:
		return true, nil
	case unsupported(err):
		return false, nil
	}
	return false, fmt.Errorf("make a hole in %q at %#x: %w", f.path, off, err)
}
