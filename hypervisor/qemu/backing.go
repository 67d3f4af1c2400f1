package qemu

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
)

// batchMin is from how many bytes on process_vm_readv is taken, which copies
// once and page-wise in batches, instead of /proc/PID/mem, which copies twice
// but needs no look at the pidfd: its file belongs to one address space.
const batchMin = 16 << 10

// backing reads one memory backend.
type backing struct {
	p    *proc.Process
	mem  *os.File // /proc/PID/mem
	hva  uint64
	size uint64

	file *os.File // of a shared backend; nil: private
	off  uint64   // of the backend in file
	why  string   // why there is no file: the remedy that MapPhys tells

	once sync.Once
	view []byte
	err  error
}

// openBacking takes hold of the memory at run, which is the whole of a backend.
func openBacking(p *proc.Process, mem *os.File, run []proc.VMA, hva, size uint64) (*backing, error) {
	b := &backing{p: p, mem: mem, hva: hva, size: size}
	first := run[0]
	if !first.Shared() || first.Inode == 0 {
		b.why = "start QEMU with a shared memory backend: -object memory-backend-memfd,id=m,size=SIZE -machine memory-backend=m"
		return b, nil
	}
	f, err := openShared(p, run)
	if err != nil {
		if gone := p.Ended(); gone != nil {
			return nil, gone
		}
		b.why = fmt.Sprintf("the memory's file could not be opened: %v", err)
		return b, nil
	}
	b.file, b.off = f, first.Offset+(hva-first.Start)
	return b, nil
}

// openShared opens the file behind a shared mapping: as the mapping itself,
// which takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, or as one of the
// process's descriptors, or by its path. Whatever was opened is the mapping's
// file by its inode.
func openShared(p *proc.Process, run []proc.VMA) (*os.File, error) {
	first := run[0]
	name := "map_files/" + strconv.FormatUint(first.Start, 16) + "-" + strconv.FormatUint(first.End, 16)
	f, err := p.OpenFile(name, unix.O_RDONLY)
	if err == nil {
		if err = sameInode(f, first); err == nil {
			return f, nil
		}
		_ = f.Close()
	}
	errs := []error{err}
	fds, err := p.FDs()
	if err != nil {
		errs = append(errs, err)
	}
	for n, link := range fds {
		if link != first.Path {
			continue
		}
		f, err := p.OpenFile("fd/"+strconv.Itoa(n), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
		if err == nil {
			if err = sameInode(f, first); err == nil {
				return f, nil
			}
			_ = f.Close()
		}
		errs = append(errs, err)
	}
	if path.IsAbs(first.Path) && !strings.HasSuffix(first.Path, " (deleted)") {
		f, err := p.OpenFile(inside(first.Path), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
		if err == nil {
			if err = sameInode(f, first); err == nil {
				return f, nil
			}
			_ = f.Close()
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// sameInode checks that f is the file of the mapping v. The device is not
// compared: stat tells another one than maps on btrfs and overlayfs.
func sameInode(f *os.File, v proc.VMA) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() || sys.Ino != v.Inode {
		return fmt.Errorf("%s: not the file that is mapped", f.Name())
	}
	return nil
}

// read reads at off in the backend; len(p) bytes are in it.
func (b *backing) read(p []byte, off uint64) (int, error) {
	if b.file != nil {
		// Not through the view: pread neither allocates what the guest never
		// touched, nor faults where the file was truncated.
		n, err := b.file.ReadAt(p, int64(b.off+off))
		if n < len(p) {
			return n, b.unreadable(err)
		}
		return n, nil
	}
	if len(p) >= batchMin {
		n, err := readProcess(b.p.PID, p, b.hva+off)
		// The number is the VM's only if the VM lives yet.
		if gone := b.p.CheckNow(); gone != nil {
			return 0, gone
		}
		if n == len(p) {
			return n, nil
		}
		if n > 0 || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
			return n, b.unreadable(err)
		}
	}
	n, err := b.mem.ReadAt(p, int64(b.hva+off))
	if n < len(p) {
		return n, b.unreadable(err)
	}
	return n, nil
}

// unreadable explains a short read: by the VM's end where that is the cause.
func (b *backing) unreadable(err error) error {
	if gone := b.p.Ended(); gone != nil {
		return gone
	}
	if err == nil || errors.Is(err, io.EOF) {
		return hypervisor.ErrUnreadable
	}
	return fmt.Errorf("%w: %w", hypervisor.ErrUnreadable, err)
}

// mapped returns a read-only view of the whole backend.
func (b *backing) mapped() ([]byte, error) {
	if b.file == nil {
		return nil, &hypervisor.NotSupportedError{What: "a view of this VM's memory", Driver: DriverName, Remedy: b.why}
	}
	b.once.Do(func() {
		// A view that reaches beyond the file's end would fault.
		st, err := b.file.Stat()
		if err != nil {
			b.err = err
			return
		}
		if st.Size() < 0 || uint64(st.Size()) < b.off || uint64(st.Size())-b.off < b.size {
			b.err = fmt.Errorf("%w: the memory's file has %#x bytes", hypervisor.ErrUnreadable, st.Size())
			return
		}
		raw, err := b.file.SyscallConn()
		if err != nil {
			b.err = err
			return
		}
		if err := raw.Control(func(fd uintptr) {
			b.view, b.err = unix.Mmap(int(fd), int64(b.off), int(b.size), unix.PROT_READ, unix.MAP_SHARED)
		}); err != nil {
			b.err = err
		}
		if b.err != nil {
			b.err = fmt.Errorf("map the memory's file: %w", b.err)
		}
	})
	return b.view, b.err
}

func (b *backing) close() error {
	var errs []error
	if b.view != nil {
		errs = append(errs, unix.Munmap(b.view))
		b.view = nil
	}
	if b.file != nil {
		errs = append(errs, b.file.Close())
	}
	return errors.Join(errs...)
}

// readProcess reads from another process's memory. It returns the bytes read
// before the first that could not be.
func readProcess(pid int, p []byte, addr uint64) (int, error) {
	done := 0
	for done < len(p) {
		n := min(len(p)-done, 1<<30) // one call moves at most MAX_RW_COUNT
		local := []unix.Iovec{{Base: &p[done], Len: uint64(n)}}
		remote := []unix.RemoteIovec{{Base: uintptr(addr) + uintptr(done), Len: n}}
		got, err := unix.ProcessVMReadv(pid, local, remote, 0)
		if got > 0 {
			done += got
		}
		if err != nil {
			return done, fmt.Errorf("process_vm_readv: %w", err)
		}
		if got < n {
			return done, nil
		}
	}
	return done, nil
}
