package qemu_test

import (
	"fmt"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Reads of memory that the VM has touched: -mem-prealloc.
func BenchmarkReadPhys(b *testing.B) {
	labtest.NeedRoot(b)
	for _, shared := range []bool{false, true} {
		backend := "memory-backend-ram"
		if shared {
			backend = "memory-backend-memfd"
		}
		m := start(b, false, "-m", "256", "-S", "-object", backend+",id=m,size=256M,prealloc=on", "-machine", "memory-backend=m")
		vm := m.open(qemu.Options{})
		for _, size := range []int{8, 4096, 64 << 10, 1 << 20, 64 << 20} {
			b.Run(fmt.Sprintf("shared=%v/%d", shared, size), func(b *testing.B) {
				p := make([]byte, size)
				b.SetBytes(int64(size))
				at := hypervisor.PhysAddr(1 << 20)
				for b.Loop() {
					if _, err := vm.ReadPhys(p, at); err != nil {
						b.Fatal(err)
					}
					if at += hypervisor.PhysAddr(max(size, 4096)); at+hypervisor.PhysAddr(size) > 256<<20 {
						at = 1 << 20
					}
				}
			})
		}
	}
}

// memcpy of the same size, to compare with.
func BenchmarkCopy(b *testing.B) {
	src, dst := make([]byte, 64<<20), make([]byte, 64<<20)
	for i := 0; i < len(src); i += 4096 {
		src[i] = 1
	}
	b.SetBytes(64 << 20)
	for b.Loop() {
		copy(dst, src)
	}
}
