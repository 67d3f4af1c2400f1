package hostfile

// An iov is a list of byte slices that are read or written as one run, as
// readv(2) has it. They may be views of guest memory: what is in them can change
// at any moment.

// Len returns the number of bytes in iov.
func Len(iov [][]byte) uint64 {
	var n uint64
	for _, b := range iov {
		n += uint64(len(b))
	}
	return n
}

// Cut returns the n bytes of iov from offset on, as far as there are that many,
// without copying any. The result shares nothing but the bytes with iov, except
// when it is all of it.
func Cut(iov [][]byte, offset, n uint64) [][]byte {
	if offset == 0 && n == Len(iov) {
		return iov
	}
	out := make([][]byte, 0, len(iov))
	for _, b := range iov {
		if n == 0 {
			break
		}
		size := uint64(len(b))
		if offset >= size {
			offset -= size
			continue
		}
		take := min(size-offset, n)
		out = append(out, b[offset:offset+take:offset+take])
		offset, n = 0, n-take
	}
	return out
}

// Zero fills iov with zeros.
func Zero(iov [][]byte) {
	for _, b := range iov {
		clear(b)
	}
}

// CopyOut fills iov from p, and returns the number of bytes.
func CopyOut(iov [][]byte, p []byte) int {
	n := 0
	for _, b := range iov {
		c := copy(b, p[n:])
		n += c
		if c < len(b) {
			break
		}
	}
	return n
}

// CopyIn fills p from iov, and returns the number of bytes.
func CopyIn(p []byte, iov [][]byte) int {
	n := 0
	for _, b := range iov {
		c := copy(p[n:], b)
		n += c
		if n == len(p) {
			break
		}
	}
	return n
}

// Check returns an error that wraps ErrBounds unless [off, off+n) lies in a disk
// of size bytes.
func Check(off, n, size uint64) error {
	if off > size || n > size-off {
		return &boundsError{off, n, size}
	}
	return nil
}
