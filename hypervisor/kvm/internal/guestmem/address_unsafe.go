package guestmem

import "unsafe"

func addressOf(b []byte) uintptr {
	// SAFETY: only the address is used, of memory that Go does not move.
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))
}
