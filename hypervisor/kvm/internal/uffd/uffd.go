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

// Open makes a userfaultfd that can write-protect shared memory and name the
// threads that fault, also those that fault in the kernel, as KVM does. It needs
// Linux >= 5.19, and CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1 or the right
// to open /dev/userfaultfd (Linux >= 6.1): a process opens it before it drops its
// privileges. The error wraps ErrNotSupported and says which.
func Open() (*FD, error) {
	fd, err := open()
	if err != nil {
		return nil, fmt.Errorf("%w: userfaultfd: %w: needs CAP_SYS_PTRACE, vm.unprivileged_userfaultfd=1 or access to /dev/userfaultfd", ErrNotSupported, err)
	}
	arg := apiArg{api: api}
	if err := ioctl(fd, ioAPI, &arg); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: UFFDIO_API: %w", ErrNotSupported, err)
	}
	// Features are asked for once in the life of a descriptor.
	have := arg.features
	unix.Close(fd)
	if have&needed != needed {
		return nil, fmt.Errorf("%w: the kernel has features %#x of %#x: needs Linux >= 5.19", ErrNotSupported, have, needed)
	}
	if fd, err = open(); err != nil {
		return nil, fmt.Errorf("%w: userfaultfd: %w", ErrNotSupported, err)
	}
	arg = apiArg{api: api, features: needed}
	if err := ioctl(fd, ioAPI, &arg); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%w: UFFDIO_API: %w", ErrNotSupported, err)
	}
	return &FD{file: os.NewFile(uintptr(fd), "userfaultfd")}, nil
}

func open() (int, error) {
	const flags = unix.O_CLOEXEC | unix.O_NONBLOCK
	if dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		defer unix.Close(dev)
		if fd, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), ioNew, flags); e == 0 {
			return int(fd), nil
		}
	}
	fd, _, e := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
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

// Open lets writes pass and wakes no one: see Wake.
func (f *FD) Open(addr uintptr, size uint64) error { return f.protect(addr, size, wpModeDontWake) }

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

// Read waits for faults and returns at least one, at most as many as buf has
// room for. After Close it returns an error that wraps os.ErrClosed.
func (f *FD) Read(buf []Fault) (int, error) {
	raw := make([]byte, len(buf)*messageSize)
	for {
		n, err := f.file.Read(raw)
		if err != nil {
			return 0, err
		}
		faults := 0
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
		if faults > 0 {
			return faults, nil
		}
	}
}
