package scanner

import (
	"context"
	"iter"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// Space is a guest-virtual address space; *paging.AddressSpace is one.
type Space interface {
	// Mappings yields the pages of [lo, hi) in ascending order, and as errors
	// the holes that are worth telling of.
	Mappings(ctx context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[paging.Mapping, error]
}

// Area is a named part of an address space.
type Area struct {
	Start, End hypervisor.VirtAddr // [Start, End); End 0 is the end of the address space
	Name       string              // "[heap]", "/bin/busybox", "" for anonymous memory
	Perms      string              // as in /proc/PID/maps ("r-xp"), "" when not known; only for rules
}

// AnonymousArea is the name given to areas that have none.
const AnonymousArea = "[anon]"

// Target is something to scan: a ProcessTarget, a KernelTarget or a
// PhysicalTarget.
type Target interface{ isTarget() }

// ProcessTarget is the resident memory of one process.
type ProcessTarget struct {
	PID   int
	Comm  string
	Space Space
	// Areas are the process's mappings. They are guest data and may be in any
	// order and overlap; what was scanned once is not scanned again.
	Areas []Area
}

// KernelTarget is kernel memory.
type KernelTarget struct {
	Space Space
	Areas []Area // see KernelAreas
	// Symbol names an address ("do_sys_open+0x10"), "" when it has no name. It
	// may be nil.
	Symbol func(hypervisor.VirtAddr) string
}

// PhysicalTarget is all of the guest's RAM, by physical address.
type PhysicalTarget struct{}

func (ProcessTarget) isTarget()  {}
func (KernelTarget) isTarget()   {}
func (PhysicalTarget) isTarget() {}

// Addresses of the x86-64 kernel that no KASLR moves
// (Documentation/arch/x86/x86_64/mm.rst).
const (
	kernelHalf      hypervisor.VirtAddr = 0xff00_0000_0000_0000 // with 5 levels; 0xffff_8000… with 4
	kernelImage     hypervisor.VirtAddr = 0xffff_ffff_8000_0000 // START_KERNEL_map
	kernelModules   hypervisor.VirtAddr = 0xffff_ffff_c000_0000 // MODULES_VADDR
	kernelModuleEnd hypervisor.VirtAddr = 0xffff_ffff_ff00_0000 // MODULES_END
)

// KernelAreas returns the areas of an x86-64 Linux kernel's half of the address
// space, without its direct map: that maps all of RAM once more, and is what a
// PhysicalTarget scans. directMap is where it starts (page_offset_base), physEnd
// the end of the guest's RAM.
func KernelAreas(directMap hypervisor.VirtAddr, physEnd hypervisor.PhysAddr) []Area {
	// The direct map's own end is rounded up to what the largest page maps.
	const huge = 1 << 30
	end := directMap + hypervisor.VirtAddr((uint64(physEnd)+huge-1)&^(huge-1))
	areas := []Area{
		{Start: kernelHalf, End: directMap, Name: "[kernel low]"},
		{Start: end, End: kernelImage, Name: "[vmalloc]"},
		{Start: kernelImage, End: kernelModules, Name: "[kernel]"},
		{Start: kernelModules, End: kernelModuleEnd, Name: "[modules]"},
	}
	if directMap < kernelHalf || end < directMap || end > kernelImage {
		// No direct map that can be believed: scan all but the low part, and
		// pages more than once rather than not at all.
		areas[0].End, areas[1].Start = kernelHalf, kernelHalf
	}
	out := areas[:0]
	for _, a := range areas {
		if a.Start < a.End {
			out = append(out, a)
		}
	}
	return out
}
