package node

import (
	"context"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
	"github.com/vantage-vmi/vantage/introspect/paging"
	"github.com/vantage-vmi/vantage/scanner"
)

// freedRanges are the parts of the kernel's image that it gives to whoever needs
// memory once it has booted, but leaves mapped: from a symbol to a symbol, whole
// pages (free_kernel_image_pages, arch/x86/mm/init.c).
func freedRanges() [][2]string {
	return [][2]string{
		{"_etext", "__start_rodata"},
		{"__end_rodata", "_sdata"},
		{"__init_begin", "__init_end"},
		{"__start_bss_decrypted_unused", "__end_bss_decrypted"},
	}
}

// withoutFreed takes the freed parts of the kernel's image out of areas: what is
// there belongs to a process or to the page cache, and would be found in the
// kernel as well as there. A part in which a page may be executed stays: the
// kernel takes that right away when it frees it.
func withoutFreed(ctx context.Context, k *profile.Kernel, areas []scanner.Area) []scanner.Area {
	for _, r := range freedRanges() {
		lo, err1 := k.Symbol(r[0])
		hi, err2 := k.Symbol(r[1])
		lo, hi = (lo+hypervisor.PageSize-1)&^(hypervisor.PageSize-1), hi&^(hypervisor.PageSize-1)
		if err1 != nil || err2 != nil || lo < k.VirtBase || lo >= hi || executable(ctx, k.Space, lo, hi) {
			continue
		}
		areas = cutOut(areas, lo, hi)
	}
	return areas
}

// executable reports whether a page of [lo, hi) may be executed, or not all of
// them could be looked at.
func executable(ctx context.Context, as *paging.AddressSpace, lo, hi hypervisor.VirtAddr) bool {
	for m, err := range as.Mappings(ctx, lo, hi) {
		if err != nil || m.Flags.Executable() {
			return true
		}
	}
	return false
}

// cutOut returns areas without [lo, hi).
func cutOut(areas []scanner.Area, lo, hi hypervisor.VirtAddr) []scanner.Area {
	out := make([]scanner.Area, 0, len(areas)+1)
	for _, a := range areas {
		front, back := a, a
		front.End, back.Start = min(a.End, lo), max(a.Start, hi)
		for _, p := range []scanner.Area{front, back} {
			if p.Start < p.End {
				out = append(out, p)
			}
		}
	}
	return out
}
