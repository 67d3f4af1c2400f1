package paging

import (
	"math/rand/v2"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// benchSpace is an address space with data bytes of RAM mapped at benchBase by
// pages of level 1 (4 KiB, shuffled in physical memory if so asked) or 2 (2 MiB).
const (
	benchBase   = 0xffff_8880_0000_0000
	benchTables = 8 << 20
	benchData   = 256 << 20
)

func benchSpace(b testing.TB, level int, shuffle bool) (as *AddressSpace, pages [][]byte) {
	b.Helper()
	// Not of Go's heap, as a guest's memory never is.
	ram, err := unix.Mmap(-1, 0, benchTables+benchData, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_POPULATE)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Munmap(ram) })
	t := &tables{ram: ram, top: 0x1000, next: 0x2000}
	size := uint64(4096)
	flags := uint64(3)
	if level == 2 {
		size, flags = 2<<20, 0x83
	}
	order := rand.New(rand.NewPCG(1, 1)).Perm(benchData / int(size))
	for i := range uint64(len(order)) {
		p := i
		if shuffle {
			p = uint64(order[i])
		}
		phys := benchTables + p*size
		t.leaf(benchBase+i*size, level, phys|flags)
		pages = append(pages, ram[phys:phys+size])
	}
	return New(mappedFlat{ram}, t.root()), pages
}

var benchLayouts = []struct {
	name    string
	level   int
	shuffle bool
}{{"2M", 2, false}, {"4K", 1, false}, {"4K-shuffled", 1, true}}

// BenchmarkReadRandom reads 8 bytes at random addresses of a part of memory
// that the TLB covers ("warm") and of all of it ("all", which for 4 KiB pages is
// eight times as much as the TLB covers).
func BenchmarkReadRandom(b *testing.B) {
	for _, l := range benchLayouts {
		for _, part := range []struct {
			name string
			size uint64
		}{{"warm", 16 << 20}, {"all", benchData}} {
			b.Run(l.name+"/"+part.name, func(b *testing.B) {
				as, _ := benchSpace(b, l.level, l.shuffle)
				rng := rand.New(rand.NewPCG(2, 2))
				at := make([]hypervisor.VirtAddr, 1<<16)
				for i := range at {
					at[i] = benchBase + hypervisor.VirtAddr(rng.Uint64N(part.size-8))
				}
				p := make([]byte, 8)
				for _, va := range at {
					_, _ = as.ReadVirt(p, va)
				}
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					if _, err := as.ReadVirt(p, at[i&(len(at)-1)]); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mreads/s")
			})
		}
	}
}

// BenchmarkSequential copies 256 MiB in pieces of 1 MiB: by plain copy of the
// same pages in the same order (the yardstick), by ReadVirt, and by View and copy.
func BenchmarkSequential(b *testing.B) {
	const piece = 1 << 20
	p := make([]byte, piece)
	for _, l := range benchLayouts {
		as, pages := benchSpace(b, l.level, l.shuffle)
		for _, how := range []struct {
			name string
			read func(at uint64)
		}{
			{"memcpy", func(at uint64) {
				size := uint64(len(pages[0]))
				for n := uint64(0); n < piece; {
					n += uint64(copy(p[n:], pages[(at+n)/size][(at+n)%size:]))
				}
			}},
			{"ReadVirt", func(at uint64) {
				if _, err := as.ReadVirt(p, hypervisor.VirtAddr(benchBase+at)); err != nil {
					b.Fatal(err)
				}
			}},
			{"View", func(at uint64) {
				for n := 0; n < piece; {
					v, err := as.View(hypervisor.VirtAddr(benchBase+at+uint64(n)), uint64(piece-n))
					if err != nil {
						b.Fatal(err)
					}
					n += copy(p[n:], v)
				}
			}},
		} {
			b.Run(l.name+"/"+how.name, func(b *testing.B) {
				b.SetBytes(benchData)
				b.ReportAllocs()
				for range b.N {
					for at := uint64(0); at < benchData; at += piece {
						how.read(at)
					}
				}
			})
		}
	}
}

// BenchmarkMappings walks all tables of 256 MiB of 4 KiB pages.
func BenchmarkMappings(b *testing.B) {
	as, _ := benchSpace(b, 1, true)
	for range b.N {
		n := 0
		for _, err := range as.Mappings(b.Context(), 0, 0) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
		if n != benchData/4096 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.N)*benchData/4096/b.Elapsed().Seconds()/1e6, "Mpages/s")
}

func BenchmarkRuns(b *testing.B) {
	as, _ := benchSpace(b, 1, true)
	for range b.N {
		for r, err := range as.Runs(b.Context(), 0, 0, 0) {
			if err != nil || r.Size != benchData {
				b.Fatal(r, err)
			}
		}
	}
}
