package profile

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestKernelConstants(t *testing.T) {
	const (
		page    = "arch/x86/include/asm/page_64_types.h"
		pgtable = "arch/x86/include/asm/pgtable_64_types.h"
	)
	labtest.CheckConstants(t, []labtest.Constant{
		{Header: page, Name: "__START_KERNEL_map", Holds: labtest.Is(kernelMap)},
		{Header: page, Name: "KERNEL_IMAGE_SIZE", Holds: func(size uint64) bool { return size <= kernelMapSize }},
		{Header: page, Name: "__PAGE_OFFSET_BASE_L4", Holds: labtest.Is(pageOffset4)},
		{Header: page, Name: "__PAGE_OFFSET_BASE_L5", Holds: labtest.Is(pageOffset5)},
		{Header: pgtable, Name: "__VMEMMAP_BASE_L4", Holds: labtest.Is(vmemmap4)},
		{Header: pgtable, Name: "__VMEMMAP_BASE_L5", Holds: labtest.Is(vmemmap5)},
	})
}
