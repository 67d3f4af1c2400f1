package uffd

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

type (
	apiArg      struct{ api, features, _ uint64 }    // struct uffdio_api
	rangeArg    struct{ start, len uint64 }          // struct uffdio_range
	registerArg struct{ start, len, mode, _ uint64 } // struct uffdio_register
	protectArg  struct{ start, len, mode uint64 }    // struct uffdio_writeprotect
)

func ioctl[T any](fd int, req uintptr, arg *T) error {
	for {
		// SAFETY: arg stays reachable until the call returns, and the kernel keeps no
		// pointer to it; TestABI holds that *T is as large as req says.
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
		runtime.KeepAlive(arg)
		switch e {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return e
		}
	}
}
