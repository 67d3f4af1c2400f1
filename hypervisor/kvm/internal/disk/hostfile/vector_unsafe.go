package hostfile

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVectors is the kernel's UIO_MAXIOV (include/uapi/linux/uio.h).
const maxVectors = 1024

// vectors are made once and used again: a guest's request has up to some
// hundred pieces, and there are many thousand requests a second.
type vectors struct {
	pool sync.Pool // of *[]unix.Iovec
}

// transfer does one preadv or pwritev of the first maxVectors pieces of iov, and
// returns how many bytes that did.
func (v *vectors) transfer(call uintptr, fd int, iov [][]byte, off uint64) (int, error) {
	list, _ := v.pool.Get().(*[]unix.Iovec)
	if list == nil {
		list = new([]unix.Iovec)
	}
	vs := (*list)[:0]
	for _, b := range iov {
		if len(b) == 0 {
			continue
		}
		if len(vs) == maxVectors {
			break
		}
		vs = append(vs, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
	}
	var n uintptr
	var errno unix.Errno
	if len(vs) > 0 {
		for {
			// SAFETY: vs is on the heap and not empty; each Iovec names one slice
			// that iov keeps alive, in full. The offset is one argument on 64-bit
			// systems (the kernel's pos_from_hilo ignores the second one there).
			n, _, errno = unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&vs[0])), uintptr(len(vs)), uintptr(off), 0, 0)
			if errno != unix.EINTR {
				break
			}
		}
	}
	clear(vs) // keep no guest memory alive
	*list = vs
	v.pool.Put(list)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
