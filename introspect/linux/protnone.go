package linux

import "github.com/vantage-vmi/vantage/hypervisor"

// protNone finds the page of a mapping with PROT_NONE (or one that is unmapped
// for a moment by NUMA balancing): it stays in RAM behind an entry that is not
// present but has _PAGE_PROTNONE, which is the bit that is _PAGE_GLOBAL
// elsewhere and zero in swap entries (arch/x86/include/asm/pgtable_64.h). Its
// frame number is inverted, so that a CPU with the L1TF weakness cannot follow
// it (arch/x86/include/asm/pgtable-invert.h).
func protNone(entry uint64) (hypervisor.PhysAddr, bool) {
	const (
		present  = 1 << 0
		protnone = 1 << 8
		pfnMask  = (1<<52 - 1) &^ (hypervisor.PageSize - 1)
	)
	if entry&(present|protnone) != protnone {
		return 0, false
	}
	return hypervisor.PhysAddr(^entry & pfnMask), true
}
