package linux

import (
	"github.com/vantage-vmi/vantage/hypervisor"
)

// pagesTable is where the facts of cached files lie: inodes, their address
// spaces, struct page, and the directory entries that lead to them.
type pagesTable struct {
	iMode, iSB, iMapping, iIno, iSize, iLink, iDentry, iSBList, iNlink field
	inodeSpan                                                          span
	host, pagesHead, nrPages                                           field // in address_space
	mappingSpan                                                        span
	flags, mapping, index, compound                                    field // in struct page
	pageSpan                                                           span
	dFlags, dInode, dAlias                                             field
	subdirs, dChild                                                    field // lists, until 6.7
	children, dSib                                                     field // hash lists since
	mounts, mountChild                                                 field
	fileInode                                                          field
	taskFS, fsRoot                                                     field
	vdsoImage, vdsoData, vdsoSize                                      field // in mm_struct and vdso_image
	sbList, sbInodes, sbID, sbDev, sbRoot                              field
	iRDev                                                              field
	marks                                                              field // in xa_node
	startCode                                                          field // in mm_struct
	mntSB                                                              field
	pageSize                                                           uint64 // of struct page
	uptodate, dirty, headBit                                           uint64 // bits of page flags
	superBlocks                                                        hypervisor.VirtAddr
}

func (p *pagesTable) facts() []fact {
	return []fact{
		{&p.iMode, 2, must, []string{"inode.i_mode"}},
		{&p.iSB, 8, must, []string{"inode.i_sb"}},
		{&p.iMapping, 8, must, []string{"inode.i_mapping"}},
		{&p.iIno, 8, want, []string{"inode.i_ino"}},
		{&p.iSize, 8, must, []string{"inode.i_size"}},
		{&p.iLink, 8, want, []string{"inode.i_link"}},
		{&p.iDentry, 8, want, []string{"inode.i_dentry"}},
		{&p.iSBList, 16, want, []string{"inode.i_sb_list"}},
		{&p.iNlink, 4, want, []string{"inode.i_nlink"}},
		{&p.host, 8, must, []string{"address_space.host"}},
		{&p.pagesHead, 8, must, []string{"address_space.i_pages.xa_head"}},
		{&p.nrPages, 8, want, []string{"address_space.nrpages"}},
		{&p.flags, 8, must, []string{"page.flags"}},
		{&p.mapping, 8, must, []string{"page.mapping"}},
		{&p.index, 8, must, []string{"page.index", "page.__folio_index"}},            // renamed in 6.16
		{&p.compound, 8, want, []string{"page.compound_head", "page.compound_info"}}, // renamed in 7.0
		{&p.dFlags, 4, want, []string{"dentry.d_flags"}},
		{&p.dInode, 8, must, []string{"dentry.d_inode"}},
		{&p.dAlias, 16, want, []string{"dentry.d_u.d_alias", "dentry.d_alias"}},
		{&p.subdirs, 16, may, []string{"dentry.d_subdirs"}},
		{&p.dChild, 16, may, []string{"dentry.d_child"}},
		{&p.children, 8, may, []string{"dentry.d_children"}}, // since 6.8
		{&p.dSib, 16, may, []string{"dentry.d_sib"}},
		{&p.mounts, 16, want, []string{"mount.mnt_mounts"}},
		{&p.mountChild, 16, want, []string{"mount.mnt_child"}},
		{&p.fileInode, 8, must, []string{"file.f_inode"}},
		{&p.taskFS, 8, want, []string{"task_struct.fs"}},
		{&p.fsRoot, 16, want, []string{"fs_struct.root"}},
		{&p.vdsoImage, 8, may, []string{"mm_struct.context.vdso_image"}},
		{&p.vdsoData, 8, may, []string{"vdso_image.data"}},
		{&p.vdsoSize, 8, may, []string{"vdso_image.size"}},
		{&p.sbList, 16, want, []string{"super_block.s_list"}},
		{&p.sbInodes, 16, want, []string{"super_block.s_inodes"}},
		{&p.startCode, 8, want, []string{"mm_struct.start_code"}},
		{&p.sbDev, 4, want, []string{"super_block.s_dev"}},
		{&p.sbRoot, 8, want, []string{"super_block.s_root"}},
		{&p.iRDev, 4, want, []string{"inode.i_rdev"}},
		{&p.marks, 0, want, []string{"xa_node.marks", "xa_node.tags"}},
		{&p.mntSB, 8, want, []string{"mount.mnt.mnt_sb"}},
		{&p.sbID, 0, want, []string{"super_block.s_id"}},
	}
}

func (p *pagesTable) symbols() []symbol {
	return []symbol{{&p.superBlocks, want, []string{"super_blocks"}}}
}

// maxStructPage bounds sizeof(struct page); it is 64 on x86-64.
const maxStructPage = 512

func (p *pagesTable) finish(t types) {
	p.pageSize = 64
	if n, err := t.Size("page"); err == nil && n >= 32 && n <= maxStructPage {
		p.pageSize = n
	}
	// Where they are from 6.10 on (include/linux/page-flags.h).
	p.uptodate, p.dirty, p.headBit = 3, 4, 6
	for name, to := range map[string]*uint64{"PG_uptodate": &p.uptodate, "PG_dirty": &p.dirty, "PG_head": &p.headBit} {
		if v, err := t.EnumValue("pageflags", name); err == nil && v >= 0 && v < 64 {
			*to = uint64(v)
		}
	}
	if p.sbID.size > 64 {
		p.sbID.size = 64
	}
	p.inodeSpan = spanOf(p.iMode, p.iSB, p.iMapping, p.iIno, p.iSize, p.iLink, p.iNlink, p.iRDev, p.iDentry, p.iSBList)
	p.mappingSpan = spanOf(p.host, p.pagesHead, p.nrPages)
	p.pageSpan = spanOf(p.flags, p.mapping, p.index, p.compound)
}

// listsChildren reports whether the children of a directory entry can be listed.
func (p *pagesTable) listsChildren() bool {
	return p.subdirs.ok && p.dChild.ok || p.children.ok && p.dSib.ok
}
