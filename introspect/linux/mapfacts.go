package linux

import "github.com/vantage-vmi/vantage/hypervisor"

// mapFields is where the facts of memory areas lie, beyond those of mappings
// (vmaFields) and of cached files (pagesTable).
type mapFields struct {
	bitmap      field // of vm_flags: there since 6.19
	shadowStack bool  // the kernel has those of user programs: since 6.6
	// Of struct shmem_inode_info.
	shmemInode, shmemSwapped field

	zeroPFN, zeroPage         hypervisor.VirtAddr // a frame's number, or the page
	hugeZeroPFN, hugeZeroPage hypervisor.VirtAddr // a frame's number, or a pointer to a struct page
	swapTypes                 hypervisor.VirtAddr // how many swap areas there ever were
}

func (m *mapFields) facts() []fact {
	return []fact{
		{&m.bitmap, 0, may, []string{"vm_area_struct.flags"}},
		{&m.shmemInode, 0, may, []string{"shmem_inode_info.vfs_inode"}},
		{&m.shmemSwapped, 8, may, []string{"shmem_inode_info.swapped"}},
	}
}

func (m *mapFields) symbols() []symbol {
	return []symbol{
		{&m.zeroPFN, may, []string{"zero_page_pfn", "zero_pfn"}},
		{&m.zeroPage, may, []string{"empty_zero_page"}},
		{&m.hugeZeroPFN, may, []string{"huge_zero_pfn"}}, // since 5.11
		{&m.hugeZeroPage, may, []string{"huge_zero_folio", "huge_zero_page"}},
		{&m.swapTypes, may, []string{"nr_swapfiles"}},
	}
}

func (m *mapFields) finish(t types) {
	_, err := t.Size("thread_shstk")
	m.shadowStack = err == nil
}
