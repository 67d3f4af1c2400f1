package linux

import "math/bits"

// Bits of vm_flags that counting pages asks for (include/linux/mm.h).
const (
	vmPFNMap  = 1 << 10
	vmHugeTLB = 1 << 22
)

// Places in vm_flags that do not have the same meaning in all kernels
// (include/linux/mm.h).
const (
	vmBitMaybeGuard = 11 // VM_DENYWRITE until 5.15
	vmBitArch5      = 37 // VM_UFFD_MINOR from 5.13 to 6.5, VM_SHADOW_STACK since
)

// mapLetters are the letters of vm_flags that show_smap_vma_flags in
// fs/proc/task_mmu.c prints, by bit. Those of protection keys have none.
var mapLetters = [64]string{
	"rd", "wr", "ex", "sh", "mr", "mw", "me", "ms",
	"gd", "um", "pf", "dw", "uw", "lo", "io", "sr",
	"rr", "dc", "de", "lf", "ac", "nr", "ht", "sf",
	"ar", "wf", "dd", "sd", "mm", "hg", "nh", "mg",
	37: "ui", 38: "ui", 40: "dp", 41: "ui", 42: "sl", 63: "sl",
}

// mapFlags returns the letters for flags.
func (m *mapFields) mapFlags(flags uint64) []string {
	out := make([]string, 0, bits.OnesCount64(flags))
	for flags != 0 {
		i := bits.TrailingZeros64(flags)
		flags &= flags - 1
		s := mapLetters[i]
		switch {
		case i == vmBitMaybeGuard && m.bitmap.ok:
			s = "gu"
		case i == vmBitArch5 && m.shadowStack:
			s = "ss"
		}
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
