package linux

import "github.com/vantage-vmi/vantage/hypervisor"

// swapTable is where the facts of swap lie.
type swapTable struct {
	flags, pages, inuse, prio, file, bdev, zeromap, max field // in swap_info_struct
	span                                                span
	disk, diskName, diskPrivate                         field // in block_device and gendisk
	btfList, btfModule, btfBTF                          field // in btf_module
	btfData, btfSize                                    field // in btf
	pagePrivate                                         field
	infos, count, modules                               hypervisor.VirtAddr
}

func (s *swapTable) facts() []fact {
	return []fact{
		{&s.flags, 8, must, []string{"swap_info_struct.flags"}},
		{&s.pages, 4, must, []string{"swap_info_struct.pages"}},
		{&s.max, 4, must, []string{"swap_info_struct.max"}},
		{&s.inuse, 0, want, []string{"swap_info_struct.inuse_pages"}},
		{&s.prio, 2, want, []string{"swap_info_struct.prio"}},
		{&s.file, 8, want, []string{"swap_info_struct.swap_file"}},
		{&s.bdev, 8, want, []string{"swap_info_struct.bdev"}},
		{&s.zeromap, 8, may, []string{"swap_info_struct.zeromap"}}, // since 6.12
		{&s.disk, 8, want, []string{"block_device.bd_disk"}},
		{&s.diskName, 0, want, []string{"gendisk.disk_name"}},
		{&s.diskPrivate, 8, want, []string{"gendisk.private_data"}},
		{&s.btfList, 16, may, []string{"btf_module.list"}}, // since 5.11
		{&s.btfModule, 8, may, []string{"btf_module.module"}},
		{&s.btfBTF, 8, may, []string{"btf_module.btf"}},
		{&s.btfData, 8, may, []string{"btf.data"}},
		{&s.btfSize, 4, may, []string{"btf.data_size"}},
		{&s.pagePrivate, 8, want, []string{"page.private"}},
	}
}

func (s *swapTable) symbols() []symbol {
	return []symbol{
		{&s.infos, must, []string{"swap_info"}},
		{&s.count, want, []string{"nr_swapfiles"}},
		{&s.modules, may, []string{"btf_modules"}},
	}
}

func (s *swapTable) finish(types) {
	s.span = spanOf(s.flags, s.pages, s.inuse, s.prio, s.file, s.bdev, s.zeromap, s.max)
}
