package vhost

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a request. What its argument was converted from must be on the heap:
// a stack may move while the kernel writes there.
//
//go:uintptrescapes
func ioctl(fd int, req, arg uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		if e == 0 {
			return int(r), nil
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}

func ioctlPtr[T any](fd int, req uintptr, arg *T) error {
	// SAFETY: arg stays reachable until the call returns, and the kernel keeps no
	// pointer to it; that *T is as large as req says is held by TestABI.
	_, err := ioctl(fd, req, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	return err
}

// addressOf returns where guest memory is in this process, for the kernel.
func addressOf(view []byte) uint64 {
	// SAFETY: views are of mapped memory, which does not move and stays until the
	// machine ends, after the backend.
	return uint64(uintptr(unsafe.Pointer(&view[0])))
}
