// Package uffd protects pages of a shared mapping against writes
// (Documentation/admin-guide/mm/userfaultfd.rst): a thread that writes to one,
// KVM on behalf of a guest included, waits until the page is unprotected or the
// fault is woken.
//
// It must not import anything of Vantage.
package uffd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Numbers of include/uapi/linux/userfaultfd.h.
const (
	api             = 0xaa        // UFFD_API
	ioAPI           = 0xc018_aa3f // UFFDIO_API
	ioRegister      = 0xc020_aa00 // UFFDIO_REGISTER
	ioUnregister    = 0x8010_aa01 // UFFDIO_UNREGISTER
	ioWake          = 0x8010_aa02 // UFFDIO_WAKE
	ioWriteProtect  = 0xc018_aa06 // UFFDIO_WRITEPROTECT
	ioNew           = 0xaa00      // USERFAULTFD_IOC_NEW
	featureWP       = 1 << 0      // UFFD_FEATURE_PAGEFAULT_FLAG_WP
	featureThreadID = 1 << 8      // UFFD_FEATURE_THREAD_ID
	featureWPShmem  = 1 << 12     // UFFD_FEATURE_WP_HUGETLBFS_SHMEM
	modeWP          = 1 << 1      // UFFDIO_REGISTER_MODE_WP
	wpModeWP        = 1 << 0      // UFFDIO_WRITEPROTECT_MODE_WP
	wpModeDontWake  = 1 << 1      // UFFDIO_WRITEPROTECT_MODE_DONTWAKE
	eventPageFault  = 0x12        // UFFD_EVENT_PAGEFAULT
	faultWrite      = 1 << 0      // UFFD_PAGEFAULT_FLAG_WRITE
	faultWP         = 1 << 1      // UFFD_PAGEFAULT_FLAG_WP
	messageSize     = 32          // sizeof(struct uffd_msg)
	needed          = featureWP | featureWPShmem | featureThreadID
)

// ErrNotSupported is wrapped by Open's errors.
var ErrNotSupported = errors.New("no write-protection by userfaultfd")

// FD is a userfaultfd. Its methods may be called by any goroutine.
type FD struct {
	file *os.File
}

// Fault is one access that waits.
type Fault struct {
	Addr     uintptr // of the page
	ThreadID int     // of the thread that waits; a thread of the kernel's may wait for a vCPU
	Write    bool
	WP       bool // it waits for the page's protection
}

// New makes a userfaultfd that can write-protect shared memory and name the
// threads that fault, also those that fault in the kernel, as KVM does. dev is an
// open /dev/userfaultfd (Linux >= 6.1); without it (nil) the process needs
// CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1. The error wraps
// ErrNotSupported and says what is missing.
func New(dev *os.File) (*FD, error) {
	fd, have, err := open(dev, 0)
	if err != nil {
		return nil, err
	}
	// Features are asked for once in the life of a descriptor.
	unix.Close(fd)
	if have&needed != needed {
		return nil, fmt.Errorf("%w: the kernel has features %#x of %#x: needs Linux >= 5.19", ErrNotSupported, have, needed)
	}
	if fd, _, err = open(dev, needed); err != nil {
		return nil, err
	}
	return &FD{file: os.NewFile(uintptr(fd), "userfaultfd")}, nil
}

// open makes a descriptor with the given features, and returns those that the
// kernel has.
func open(dev *os.File, features uint64) (fd int, have uint64, err error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	var r uintptr
	var e unix.Errno
	if dev != nil {
		r, _, e = unix.Syscall(unix.SYS_IOCTL, dev.Fd(), ioNew, flags)
	} else {
		r, _, e = unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
	}
	if e != 0 {
		return -1, 0, fmt.Errorf("%w: userfaultfd: %w: needs access to /dev/userfaultfd (Linux >= 6.1), CAP_SYS_PTRACE or vm.unprivileged_userfaultfd=1", ErrNotSupported, e)
	}
	arg := apiArg{api: api, features: features}
	if err := ioctl(int(r), ioAPI, &arg); err != nil {
		unix.Close(int(r))
		return -1, 0, fmt.Errorf("%w: UFFDIO_API: %w", ErrNotSupported, err)
	}
	return int(r), arg.features, nil
}

// Close closes it: what was registered is not protected any more, and who waits
// goes on.
func (f *FD) Close() error { return f.file.Close() }

// control runs do with the descriptor; os.ErrClosed after Close.
func (f *FD) control(do func(fd int) error) error {
	c, err := f.file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := c.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// Register makes faults of [addr, addr+size), whole pages of a shared mapping,
// this descriptor's. Nothing is protected by it.
func (f *FD) Register(addr uintptr, size uint64) error {
	err := f.control(func(fd int) error {
		return ioctl(fd, ioRegister, &registerArg{start: uint64(addr), len: size, mode: modeWP})
	})
	if err != nil {
		return fmt.Errorf("UFFDIO_REGISTER: %w", err)
	}
	return nil
}

// Unregister undoes Register, and takes the protection away.
func (f *FD) Unregister(addr uintptr, size uint64) error {
	err := f.control(func(fd int) error {
		return ioctl(fd, ioUnregister, &rangeArg{start: uint64(addr), len: size})
	})
	if err != nil {
		return fmt.Errorf("UFFDIO_UNREGISTER: %w", err)
	}
	return nil
}

// Protect lets writes to registered pages wait: those that are there and those
// that come to be.
func (f *FD) Protect(addr uintptr, size uint64) error { return f.protect(addr, size, wpModeWP) }

// Unprotect lets writes pass and wakes who waits.
func (f *FD) Unprotect(addr uintptr, size uint64) error { return f.protect(addr, size, 0) }

func (f *FD) protect(addr uintptr, size uint64, mode uint64) error {
	err := f.control(func(fd int) error {
		for {
			err := ioctl(fd, ioWriteProtect, &protectArg{start: uint64(addr), len: size, mode: mode})
			if !errors.Is(err, unix.EAGAIN) { // the address space changes meanwhile
				return err
			}
		}
	})
	if err != nil {
		return fmt.Errorf("UFFDIO_WRITEPROTECT: %w", err)
	}
	return nil
}

// Wake lets who waits try again.
func (f *FD) Wake(addr uintptr, size uint64) error {
	err := f.control(func(fd int) error { return ioctl(fd, ioWake, &rangeArg{start: uint64(addr), len: size}) })
	if err != nil {
		return fmt.Errorf("UFFDIO_WAKE: %w", err)
	}
	return nil
}

// Wait returns when there are faults, or with an error that wraps os.ErrClosed
// after Close. take is called then, and again whenever more may have come, until
// it returns true.
func (f *FD) Wait(take func() bool) error {
	c, err := f.file.SyscallConn()
	if err != nil {
		return err
	}
	if err := c.Read(func(uintptr) bool { return take() }); err != nil {
		return fmt.Errorf("%w: %w", os.ErrClosed, err) // its only error, which os does not name on this way
	}
	return nil
}

// Take returns the faults that are there, at most as many as buf has room for; 0
// when there are none, or after Close. It does not wait.
func (f *FD) Take(buf []Fault) int {
	raw := make([]byte, len(buf)*messageSize)
	faults := 0
	_ = f.control(func(fd int) error {
		n, err := unix.Read(fd, raw)
		if err != nil {
			return err // EAGAIN: there are none
		}
		for m := raw[:n]; len(m) >= messageSize; m = m[messageSize:] {
			if m[0] != eventPageFault {
				continue
			}
			flags := binary.LittleEndian.Uint64(m[8:])
			buf[faults] = Fault{
				Addr:     uintptr(binary.LittleEndian.Uint64(m[16:])) &^ (uintptr(os.Getpagesize()) - 1),
				ThreadID: int(binary.LittleEndian.Uint32(m[24:])),
				Write:    flags&faultWrite != 0,
				WP:       flags&faultWP != 0,
			}
			faults++
		}
		return nil
	})
	return faults
}
