package profile

import (
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// benchImage opens the raw memory file (of a machine without a hole in its
// RAM) that $VANTAGE_BENCH_IMAGE names.
func benchImage(b *testing.B) *fileMemory {
	path := os.Getenv("VANTAGE_BENCH_IMAGE")
	if path == "" {
		b.Skip("VANTAGE_BENCH_IMAGE names no raw memory file")
	}
	return openImage(b, path)
}

// benchRegisters are those that lead to the kernel in mem.
func benchRegisters(b *testing.B, mem hypervisor.Memory) []hypervisor.Registers {
	k, err := Find(b.Context(), mem, nil, Options{})
	if err != nil {
		b.Fatal(err)
	}
	return []hypervisor.Registers{{
		Valid: hypervisor.GroupControl,
		CR0:   1<<31 | 1, CR3: uint64(k.Root.CR3), CR4: 1 << 5, EFER: 0xd01,
	}}
}

func BenchmarkFind(b *testing.B) {
	mem := benchImage(b)
	regs := benchRegisters(b, mem)
	dir := b.TempDir()
	for _, c := range []struct {
		name string
		regs []hypervisor.Registers
		opt  Options
	}{
		{"ram-cold", nil, Options{}},
		{"ram-warm", nil, Options{CacheDir: dir}},
		{"registers-cold", regs, Options{}},
		{"registers-warm", regs, Options{CacheDir: dir}},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				k, err := Find(b.Context(), mem, c.regs, c.opt)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := k.Types.Field("task_struct.comm"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
