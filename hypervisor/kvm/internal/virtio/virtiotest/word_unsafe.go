package virtiotest

import "unsafe"

// word16 is a field that the device's threads look at too.
func word16(b []byte) *uint16 {
	_ = b[1]
	// SAFETY: there are two bytes; the rings' fields lie at even addresses.
	return (*uint16)(unsafe.Pointer(&b[0]))
}
