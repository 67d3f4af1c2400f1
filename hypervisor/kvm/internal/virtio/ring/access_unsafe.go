package ring

import "unsafe"

// The rings' 16-bit fields are shared with a guest that runs at the same time.
// sync/atomic has no 16-bit operations; on x86 an aligned plain load acquires and
// a plain store releases, so all that is needed is that the compiler makes one
// access of each, where it is written: hence noinline.

//go:noinline
func load16(b []byte, off int) uint16 {
	_ = b[off+1]
	// SAFETY: off+1 was checked, and the rings' alignment (New) makes it even.
	return *(*uint16)(unsafe.Pointer(&b[off]))
}

//go:noinline
func store16(b []byte, off int, v uint16) {
	_ = b[off+1]
	// SAFETY: as in load16.
	*(*uint16)(unsafe.Pointer(&b[off])) = v
}

//go:noinline
func storeUsed(b []byte, off int, id, n uint32) {
	_ = b[off+usedSize-1]
	// SAFETY: off+7 was checked; the used ring is aligned to four bytes.
	*(*uint32)(unsafe.Pointer(&b[off])) = id
	*(*uint32)(unsafe.Add(unsafe.Pointer(&b[off]), 4)) = n
}

//go:noinline
func loadDescriptor(b []byte, off int) (d descriptor) {
	_ = b[off+descSize-1]
	// SAFETY: off+15 was checked, and x86 loads need no alignment. This is a copy:
	// what is checked is what is used.
	return *(*descriptor)(unsafe.Pointer(&b[off]))
}

// descriptor is struct vring_desc.
type descriptor struct {
	addr  uint64
	len   uint32
	flags uint16
	next  uint16
}
