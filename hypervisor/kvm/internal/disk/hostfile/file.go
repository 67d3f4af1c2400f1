package hostfile

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is an open image. It is safe for concurrent use; reads and writes that
// overlap in time and place do what the kernel makes of them.
type File struct {
	file     *os.File
	fd       int
	path     string
	device   bool // a block device
	writable bool
	vectors  vectors
	noPunch  atomic.Bool // the filesystem cannot
	noZero   atomic.Bool

	use    sync.RWMutex // held by whoever uses fd: no one closes it under them
	closed bool
}

// Open opens a regular file or block device.
func Open(path string, write bool) (*File, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag|unix.O_CLOEXEC|unix.O_NONBLOCK, 0) // a FIFO must not block
	if err != nil {
		return nil, openError(path, write, err)
	}
	h, err := New(f, write)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return h, nil
}

// openError says what to do about a file that cannot be opened.
func openError(path string, write bool, err error) error {
	var remedy string
	switch {
	case errors.Is(err, fs.ErrNotExist):
		remedy = "there is no such file: check the path"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		remedy = "not allowed: give this user access to it"
		if write {
			remedy = "writing is not allowed: give this user access to it, or attach the disk read-only"
		}
	case errors.Is(err, unix.EISDIR):
		remedy = "a directory: name the image in it"
	case errors.Is(err, unix.ETXTBSY):
		remedy = "it is a program that runs, or a swap file: use another one"
	default:
		return fmt.Errorf("disk image: %w", err)
	}
	return fmt.Errorf("disk image %q: %s: %w", path, remedy, errors.Unwrap(err))
}

// New takes over an open file; the caller must not use it any more unless New
// fails. It must be open for writing when write is set, and for reading anyway.
func New(f *os.File, write bool) (*File, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("disk image: %w", err)
	}
	h := &File{file: f, fd: int(f.Fd()), path: f.Name(), writable: write}
	mode := info.Mode()
	switch {
	case mode.IsRegular():
	case mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0:
		h.device = true
	default:
		return nil, fmt.Errorf("disk image %q is neither a regular file nor a block device, but %v: name the image itself", f.Name(), mode)
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("disk image %q: %w", f.Name(), err)
	}
	access := flags & unix.O_ACCMODE
	if access == unix.O_WRONLY || write && access != unix.O_RDWR {
		return nil, fmt.Errorf("disk image %q: its descriptor is not open for reading and writing: open it so, or attach the disk read-only", f.Name())
	}
	if flags&(unix.O_DIRECT|unix.O_APPEND) != 0 {
		return nil, fmt.Errorf("disk image %q: its descriptor is open with O_DIRECT or O_APPEND: open it without", f.Name())
	}
	return h, nil
}

// Path returns the name the file was opened with.
func (f *File) Path() string { return f.path }

// Device reports whether it is a block device.
func (f *File) Device() bool { return f.device }

// Writable reports whether it is open for writing.
func (f *File) Writable() bool { return f.writable }

// Identity returns which file this is on this host.
func (f *File) Identity() (device, inode uint64, err error) {
	var st unix.Stat_t
	if err := f.do(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return 0, 0, err
	}
	if f.device {
		return 0, st.Rdev, nil // whatever node names it
	}
	return st.Dev, st.Ino, nil
}

// Size returns the file's size in bytes now, which for a block device is the
// device's (BLKGETSIZE64).
func (f *File) Size() (uint64, error) {
	var size uint64
	err := f.do(func(fd int) error {
		if f.device {
			// lseek to the end answers with the same number as BLKGETSIZE64.
			n, err := unix.Seek(fd, 0, unix.SEEK_END)
			size = uint64(n)
			return err
		}
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		size = uint64(st.Size)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("size of %q: %w", f.path, err)
	}
	return size, nil
}

// Grow makes a regular file at least size bytes long; what is new reads as zeros.
func (f *File) Grow(size uint64) error {
	if size > math.MaxInt64 {
		return fmt.Errorf("grow %q to %d bytes: %w", f.path, size, unix.EFBIG)
	}
	now, err := f.Size()
	if err != nil || now >= size {
		return err
	}
	return f.do(func(fd int) error {
		if err := unix.Ftruncate(fd, int64(size)); err != nil {
			return fmt.Errorf("grow %q to %d bytes: %w", f.path, size, err)
		}
		return nil
	})
}

// do calls g with the descriptor, which stays open meanwhile.
func (f *File) do(g func(fd int) error) error {
	f.use.RLock()
	defer f.use.RUnlock()
	if f.closed {
		return ErrClosed
	}
	return g(f.fd)
}

// ReadV fills iov from off on. It returns an error that wraps ErrShort where the
// file ends before.
func (f *File) ReadV(iov [][]byte, off uint64) error {
	n, err := f.ReadSome(iov, off)
	if err == nil && n < Len(iov) {
		return fmt.Errorf("read %q at %#x: %w", f.path, off+n, ErrShort)
	}
	return err
}

// ReadSome is ReadV that is content with less at the end of the file. It returns
// the number of bytes that were read.
func (f *File) ReadSome(iov [][]byte, off uint64) (uint64, error) {
	return f.all(unix.SYS_PREADV, "read", iov, off)
}

// ReadAt is io.ReaderAt's but for the end of the file, behind which it fills p
// with zeros: an image format's tables may end in a hole.
func (f *File) ReadAt(p []byte, off uint64) error {
	n, err := f.ReadSome([][]byte{p}, off)
	clear(p[n:])
	return err
}

// WriteV writes iov from off on.
func (f *File) WriteV(iov [][]byte, off uint64) error {
	if !f.writable {
		return ErrReadOnly
	}
	n, err := f.all(unix.SYS_PWRITEV, "write", iov, off)
	if err == nil && n < Len(iov) {
		return fmt.Errorf("write %q at %#x: %w", f.path, off+n, unix.ENOSPC)
	}
	return err
}

// WriteAt writes p at off.
func (f *File) WriteAt(p []byte, off uint64) error { return f.WriteV([][]byte{p}, off) }

func (f *File) all(call uintptr, verb string, iov [][]byte, off uint64) (uint64, error) {
	f.use.RLock()
	defer f.use.RUnlock()
	if f.closed {
		return 0, ErrClosed
	}
	want := Len(iov)
	if off > math.MaxInt64 || want > math.MaxInt64-off {
		return 0, fmt.Errorf("%s %q at %#x: %w", verb, f.path, off, unix.EFBIG)
	}
	var done uint64
	for done < want {
		rest := iov
		if done > 0 {
			rest = Cut(iov, done, want-done)
		}
		n, err := f.vectors.transfer(call, f.fd, rest, off+done)
		if err != nil {
			return done, fmt.Errorf("%s %q at %#x: %w", verb, f.path, off+done, err)
		}
		if n == 0 {
			break
		}
		done += uint64(n)
	}
	return done, nil
}

// Sync returns when all that was written before is on stable storage.
func (f *File) Sync() error {
	return f.do(func(fd int) error {
		for {
			switch err := unix.Fdatasync(fd); {
			case err == nil:
				return nil
			case !errors.Is(err, unix.EINTR):
				return fmt.Errorf("flush %q: %w", f.path, err)
			}
		}
	})
}

// Close waits for whoever uses the file, and closes it. Its locks go with the
// last descriptor of the same opening.
func (f *File) Close() error {
	f.use.Lock()
	defer f.use.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return f.file.Close()
}

// Detach ends the use of f and returns the open file itself, for handing it on.
// Its locks stay.
func (f *File) Detach() *os.File {
	f.use.Lock()
	defer f.use.Unlock()
	f.closed = true
	return f.file
}
