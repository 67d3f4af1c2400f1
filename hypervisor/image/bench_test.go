package image

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// BenchmarkRead reads 64 MiB: in order in pieces of 1 MiB, and pages at random.
func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	p := piece{0, pattern(0, size)}
	for name, file := range map[string][]byte{"raw": p.data, "lime": encodeLiME(p), "avml": encodeAVML(p)} {
		path := writeFile(b, name, file)
		for _, step := range []int{1 << 20, 4096} {
			b.Run(fmt.Sprintf("%s/%d", name, step), func(b *testing.B) {
				// AVML: too little cache for all of it.
				vm, err := New(Options{CacheBytes: size / 4}).Open(b.Context(), path)
				if err != nil {
					b.Fatal(err)
				}
				defer vm.Close()
				buf := make([]byte, step)
				rng := rand.New(rand.NewPCG(1, 1))
				b.SetBytes(size)
				b.ReportAllocs()
				for b.Loop() {
					for n := 0; n < size; n += step {
						at := n
						if step == 4096 {
							at = rng.IntN(size/step) * step
						}
						if _, err := vm.ReadPhys(buf, hypervisor.PhysAddr(at)); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func BenchmarkOpenAVML(b *testing.B) {
	file := encodeAVML(piece{0, pattern(0, 64<<20)})
	path := writeFile(b, "x.avml", file)
	b.SetBytes(64 << 20)
	for b.Loop() {
		vm, err := New(Options{}).Open(b.Context(), path)
		if err != nil {
			b.Fatal(err)
		}
		_ = vm.Close()
	}
}

func BenchmarkMapPhys(b *testing.B) {
	path := writeFile(b, "x", pattern(0, 16<<20))
	vm, err := New(Options{}).Open(b.Context(), path)
	if err != nil {
		b.Fatal(err)
	}
	defer vm.Close()
	m, err := hypervisor.As[hypervisor.Mapper](vm)
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		if _, err := m.MapPhys(hypervisor.PhysAddr(i&4095)<<12, 4096); err != nil {
			b.Fatal(err)
		}
	}
}
