package kvmrun

import (
	"sync/atomic"
	"unsafe"
)

// word returns the naturally aligned 64-bit word at off of a mapped kvm_run
// page, for atomic access: KVM reads and writes the page while we do.
func word(page []byte, off int) *atomic.Uint64 {
	_ = page[off+7]
	// SAFETY: off+8 is within page (checked above), page is a mapping of whole
	// pages, thus aligned, and off is a multiple of 8 wherever word is called.
	// The pointer is used before the mapping ends: Registers unmaps last.
	return (*atomic.Uint64)(unsafe.Pointer(&page[off]))
}
