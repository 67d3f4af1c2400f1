package net

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxIov is the most buffers that the kernel takes (UIO_MAXIOV).
const maxIov = 1024

// vector is readv or writev with memory for the kernel's vector that is used
// again and again. More than maxIov buffers are left out.
func vector(call uintptr, fd int, mem *[]unix.Iovec, iov [][]byte) (int, error) {
	v := (*mem)[:0]
	for _, b := range iov[:min(len(iov), maxIov)] {
		if len(b) > 0 {
			v = append(v, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
		}
	}
	*mem = v
	if len(v) == 0 {
		return 0, unix.EINVAL
	}
	for {
		// SAFETY: v's elements point to guest memory, which stays mapped, and v is
		// reachable until the call returns; the kernel keeps neither.
		n, _, e := unix.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(len(v)))
		if e == 0 {
			return int(n), nil
		}
		if e != unix.EINTR {
			return 0, e
		}
	}
}
