package trap

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"
)

// The guest's vCPUs use the same bytes at the same time: what the processor does
// in one piece is done in one piece here.

// loadBytes reads up to 8 bytes of guest memory, naturally aligned ones at once.
func loadBytes(b []byte) uint64 {
	// SAFETY: b is a view of a mapping that lives as long as the VM; the pointers
	// are aligned for their types, as is checked, and stay within b.
	p := unsafe.Pointer(unsafe.SliceData(b))
	switch {
	case len(b) == 8 && uintptr(p)%8 == 0:
		return atomic.LoadUint64((*uint64)(p))
	case len(b) == 4 && uintptr(p)%4 == 0:
		return uint64(atomic.LoadUint32((*uint32)(p)))
	case len(b) == 2 && uintptr(p)%2 == 0:
		return uint64(*(*uint16)(p))
	case len(b) == 1:
		return uint64(b[0])
	}
	var t [8]byte
	copy(t[:], b)
	return binary.LittleEndian.Uint64(t[:])
}

// storeBytes writes up to 8 bytes of guest memory, naturally aligned ones at once.
func storeBytes(b []byte, v uint64) {
	// SAFETY: as in loadBytes.
	p := unsafe.Pointer(unsafe.SliceData(b))
	switch {
	case len(b) == 8 && uintptr(p)%8 == 0:
		atomic.StoreUint64((*uint64)(p), v)
	case len(b) == 4 && uintptr(p)%4 == 0:
		atomic.StoreUint32((*uint32)(p), uint32(v))
	case len(b) == 2 && uintptr(p)%2 == 0:
		*(*uint16)(p) = uint16(v)
	case len(b) == 1:
		b[0] = byte(v)
	default:
		var t [8]byte
		binary.LittleEndian.PutUint64(t[:], v)
		copy(b, t[:len(b)])
	}
}

// swapBytes writes v where old is, as one. false: something else is there, or the
// bytes are not aligned.
func swapBytes(page []byte, off, size int, old, v uint64) (swapped, aligned bool) {
	if off%size != 0 {
		return false, false
	}
	// SAFETY: as in loadBytes; page is a whole page, thus aligned, off+size is in
	// it (size is a power of two of at most 8), and words are aligned down.
	base := unsafe.Pointer(unsafe.SliceData(page))
	switch size {
	case 8:
		return atomic.CompareAndSwapUint64((*uint64)(unsafe.Add(base, off)), old, v), true
	case 4:
		return atomic.CompareAndSwapUint32((*uint32)(unsafe.Add(base, off)), uint32(old), uint32(v)), true
	}
	word := (*uint32)(unsafe.Add(base, off&^3))
	shift := 8 * (off & 3)
	mask := uint32(1)<<(8*size) - 1
	for {
		w := atomic.LoadUint32(word)
		if w>>shift&mask != uint32(old)&mask {
			return false, true
		}
		if atomic.CompareAndSwapUint32(word, w, w&^(mask<<shift)|uint32(v)&mask<<shift) {
			return true, true
		}
	}
}

// address returns where b is, for the kernel.
func address(b []byte) uintptr {
	// SAFETY: b is a mapping, which Go does not move.
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}
