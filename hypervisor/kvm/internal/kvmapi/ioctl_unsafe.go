package kvmapi

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a request whose argument is a number, or a pointer that its caller
// converts in the call. What that points to must be on the heap: a stack that grows
// in here moves, and the kernel would write to where it was.
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

// ioctlPtr makes a request whose argument is a struct.
func ioctlPtr[T any](fd int, req uintptr, arg *T) error {
	// SAFETY: arg stays reachable until the call returns, and the kernel keeps no
	// pointer to it; that *T is as large as req says is held by TestABI.
	_, err := ioctl(fd, req, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	return err
}

// addressOf returns a's address for a field of another struct.
func addressOf[T any](a *T) uint64 {
	// SAFETY: callers keep a alive until the kernel is done with it.
	return onHeap(uintptr(unsafe.Pointer(a)))
}

// onHeap makes what its argument was converted from stay where it is.
//
//go:uintptrescapes
//go:noinline
func onHeap(a uintptr) uint64 { return uint64(a) }

// page is struct kvm_run without its ring buffers.
type page struct {
	requestInterruptWindow uint8
	immediateExit          uint8
	_                      [6]uint8
	exitReason             uint32
	readyForInterrupt      uint8
	ifFlag                 uint8
	flags                  uint16
	cr8                    uint64
	apicBase               uint64
	exit                   [256]byte // the union
	validRegs              uint64
	dirtyRegs              uint64
	regs                   Regs
	sregs                  Sregs
	events                 VCPUEvents
}

func pageOf(mem []byte) *page {
	if len(mem) < int(unsafe.Sizeof(page{})) {
		panic("kvmapi: mapping of kvm_run is too small")
	}
	// SAFETY: mem is the kernel's mapping, page-aligned, longer than page, and is
	// unmapped by VCPU.Close only.
	return (*page)(unsafe.Pointer(&mem[0]))
}

// The members of the union, each at its beginning.
type (
	ioExit struct {
		direction, size uint8
		port            uint16
		count           uint32
		dataOffset      uint64
	}
	mmioExit struct {
		physAddr uint64
		data     [8]byte
		len      uint32
		isWrite  uint8
	}
	debugExit struct {
		exception, _ uint32
		pc, dr6, dr7 uint64
	}
	msrExit struct {
		error         uint8
		_             [7]uint8
		reason, index uint32
		data          uint64
	}
	internalExit struct {
		suberror, ndata uint32
		data            [16]uint64
	}
)

func union[T any](p *page) *T {
	// SAFETY: T is one of the types above, all smaller than the union, which lies
	// 8-byte aligned at offset 32 of a page.
	return (*T)(unsafe.Pointer(&p.exit[0]))
}

// storeByte stores a flag that the kernel and another thread read at any moment.
func storeByte(p *uint8, on bool) {
	var v uint32
	if on {
		v = 1 << 8
	}
	// SAFETY: immediate_exit is the second byte of the page; its neighbour
	// request_interrupt_window is never used (the interrupt chip is the kernel's),
	// nor is the padding behind, so the aligned word may be stored as a whole.
	atomic.StoreUint32((*uint32)(unsafe.Add(unsafe.Pointer(p), -1)), v)
}

// ioctlCount is ioctlPtr for requests that return a number.
func ioctlCount[T any](fd int, req uintptr, arg *T) (int, error) {
	// SAFETY: as in ioctlPtr.
	n, err := ioctl(fd, req, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(arg)
	return n, err
}

func keepAlive[T any](s []T) { runtime.KeepAlive(s) }
