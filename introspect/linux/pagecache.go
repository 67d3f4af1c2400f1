package linux

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Kinds of inodes (include/uapi/linux/stat.h: S_IFMT and below).
const (
	sIFMT  = 0o170000
	sIFLNK = 0o120000
	sIFREG = 0o100000
	sIFDIR = 0o040000
)

// Bounds of cached files.
const (
	maxFileSize    = 1 << 47 // bytes of a file: more than memory has, for sparse ones
	maxFilePages   = 1 << 24 // cached pages of one file: 64 GiB
	maxFileNodes   = maxFilePages / 8
	maxFolioPages  = 1 << 18 // pages of one folio: 1 GiB
	maxCachedFiles = 4 << 20
)

var (
	// ErrNotCached is wrapped when a file is not in the guest's caches: its
	// name is in no directory entry, though the file may exist on disk.
	ErrNotCached = errors.New("not in the guest's caches")
	// ErrNotRegular is wrapped when what was asked for is no regular file.
	ErrNotRegular = errors.New("not a regular file")
)

// pagesInode is a file as its inode tells it.
type pagesInode struct {
	addr, sb, mapping hypervisor.VirtAddr
	mode              uint16
	ino, size, nlink  uint64
	link              hypervisor.VirtAddr // of a symbolic link: its text
	dentries          hypervisor.VirtAddr // first node of the list of its names
	rdev              DeviceNumber
	fsType            string
	next              links // in its super_block's list
}

// pagesLook reads cached files. It is for one goroutine.
type pagesLook struct {
	g     *Guest
	f     *pagesTable
	paths *paths
	buf   []byte
	kinds map[hypervisor.VirtAddr]string // by super_block

	swap    *swapLook // made when it is first needed
	swapErr error
}

func (g *Guest) newPagesLook(cov *introspect.Coverage) (*pagesLook, error) {
	f, err := tableOf[pagesTable](g, cov)
	if err != nil {
		return nil, fmt.Errorf("cached files: %w", err)
	}
	return &pagesLook{g: g, f: f, paths: newPaths(&g.r, &g.lay.fs), kinds: map[hypervisor.VirtAddr]string{}}, nil
}

func (l *pagesLook) inode(addr hypervisor.VirtAddr) (pagesInode, error) {
	if err := l.g.r.check(addr, addr, 8); err != nil {
		return pagesInode{}, fmt.Errorf("inode: %w", err)
	}
	o, buf, err := l.g.r.object(l.buf, addr, l.f.inodeSpan)
	l.buf = buf
	if err != nil {
		return pagesInode{}, fmt.Errorf("inode: %w", err)
	}
	i := pagesInode{
		addr: addr, sb: o.ptr(l.f.iSB), mapping: o.ptr(l.f.iMapping), mode: uint16(o.uint(l.f.iMode)),
		ino: o.uint(l.f.iIno), size: o.uint(l.f.iSize), nlink: o.uint(l.f.iNlink), link: o.ptr(l.f.iLink), dentries: o.ptr(l.f.iDentry),
		rdev: DeviceNumber(o.uint(l.f.iRDev)), next: o.links(l.f.iSBList),
	}
	if err := l.g.r.check(addr, i.sb, 8); err != nil {
		return i, fmt.Errorf("inode: %w", err)
	}
	kind, ok := l.kinds[i.sb]
	if !ok {
		if kind, err = l.paths.fsType(i.sb); err != nil {
			return i, fmt.Errorf("type of the filesystem of the inode at %#x: %w", uint64(addr), err)
		}
		l.kinds[i.sb] = kind
	}
	i.fsType = kind
	return i, nil
}

// inMemory reports whether nothing is behind the page cache: what is not in it
// is zero.
func (i *pagesInode) inMemory() bool {
	switch i.fsType {
	case "tmpfs", "ramfs", "rootfs", "devtmpfs":
		return true
	}
	return false
}

// pageRun is a part of a file that the page cache has, in one piece of physical
// memory; or, when swap is not 0, one page that was swapped out.
type pageRun struct {
	index, count uint64 // in pages
	phys         hypervisor.PhysAddr
	swap         uint64 // the kernel's swp_entry_t
	dirty        bool
}

// mappingHead returns the root of the tree of pages of the address space at
// mapping, and how many the kernel has counted in it.
func (l *pagesLook) mappingHead(mapping, host hypervisor.VirtAddr) (head, pages uint64, err error) {
	if err := l.g.r.check(host, mapping, 8); err != nil {
		return 0, 0, fmt.Errorf("address space: %w", err)
	}
	o, buf, err := l.g.r.object(l.buf, mapping, l.f.mappingSpan)
	l.buf = buf
	if err != nil {
		return 0, 0, fmt.Errorf("address space: %w", err)
	}
	if h := o.ptr(l.f.host); l.g.r.check(mapping, h, 8) != nil {
		return 0, 0, &PointerError{Where: mapping, Value: h, Err: ErrTorn}
	}
	return o.uint(l.f.pagesHead), o.uint(l.f.nrPages), nil
}

// runs calls fn for what the page cache has of the pages first to last of the
// address space at mapping, in ascending order, adjacent pieces joined. What
// does not hold together is told to bad and left out. Pages that have not been
// read from disk yet are left out too.
func (l *pagesLook) runs(ctx context.Context, i *pagesInode, first, last uint64, bad func(at hypervisor.VirtAddr, err error), fn func(pageRun) error) error {
	head, _, err := l.mappingHead(i.mapping, i.addr)
	if err != nil {
		return err
	}
	if i.fsType == "hugetlbfs" {
		return errors.New("pages of hugetlbfs are not read")
	}
	var cur pageRun
	var stop error
	flush := func() bool {
		if cur.count > 0 {
			stop = fn(cur)
		}
		cur = pageRun{}
		return stop == nil
	}
	total := uint64(0)
	w := pagesXArray{r: &l.g.r, f: &l.g.lay.xa, ctx: ctx, first: first, last: last, left: maxFileNodes, bad: bad}
	w.fn = func(e pagesEntry) bool {
		run, ok, err := l.entry(i, e)
		if err != nil {
			bad(hypervisor.VirtAddr(e.entry), err)
			return true
		}
		if !ok {
			return true
		}
		if total += run.count; total > maxFilePages {
			stop = fmt.Errorf("cached pages: %w: %d", ErrLimit, maxFilePages)
			return false
		}
		if cur.count > 0 && cur.swap == 0 && run.swap == 0 && cur.dirty == run.dirty && cur.index+cur.count == run.index &&
			cur.phys+hypervisor.PhysAddr(cur.count*hypervisor.PageSize) == run.phys {
			cur.count += run.count
			return true
		}
		if !flush() {
			return false
		}
		cur = run
		return true
	}
	if err := w.walk(head); err != nil {
		return err
	}
	if stop != nil {
		return stop
	}
	flush()
	return stop
}

// entry returns what an entry of a file's tree of pages stands for.
func (l *pagesLook) entry(i *pagesInode, e pagesEntry) (run pageRun, ok bool, err error) {
	if e.entry&xaValueBit != 0 {
		// A swapped page of tmpfs (radix_to_swp_entry), else a trace of a
		// page that was dropped (mm/workingset.c).
		if !i.inMemory() {
			return run, false, nil
		}
		return pageRun{index: e.index, count: e.count, swap: e.entry >> 1}, true, nil
	}
	page := hypervisor.VirtAddr(e.entry)
	o, err := l.page(page)
	if err != nil {
		return run, false, err
	}
	// All slots of a large page of kernels until 5.16 hold its first struct
	// page; one that stands for several indices is a first page too.
	base := o.uint(l.f.index)
	flags := o.uint(l.f.flags)
	sub := e.index - base
	switch {
	case o.ptr(l.f.mapping) != i.mapping:
		return run, false, fmt.Errorf("page: %w: it belongs to the address space at %#x", ErrTorn, o.uint(l.f.mapping))
	case e.index < base || sub+e.count > maxFolioPages:
		return run, false, fmt.Errorf("page: %w: number %d stands at %d", ErrTorn, base, e.index)
	case sub+e.count > 1 && flags>>l.f.headBit&1 == 0:
		return run, false, fmt.Errorf("page: %w: one page stands at %d indices from %d on", ErrTorn, e.count, e.index)
	case flags>>l.f.uptodate&1 == 0:
		return run, false, nil
	}
	phys, err := l.physOf(page)
	if err != nil {
		return run, false, err
	}
	return pageRun{
		index: e.index, count: e.count, dirty: flags>>l.f.dirty&1 != 0,
		phys: phys + hypervisor.PhysAddr(sub*hypervisor.PageSize),
	}, true, nil
}

// page reads the struct page at addr.
func (l *pagesLook) page(addr hypervisor.VirtAddr) (object, error) {
	if _, err := l.physOf(addr); err != nil {
		return object{}, err
	}
	o, buf, err := l.g.r.object(l.buf, addr, l.f.pageSpan)
	l.buf = buf
	return o, err
}

// physOf returns the physical page of the struct page at addr: its place in the
// kernel's array of them (page_to_pfn, CONFIG_SPARSEMEM_VMEMMAP).
func (l *pagesLook) physOf(addr hypervisor.VirtAddr) (hypervisor.PhysAddr, error) {
	base := l.g.kernel.VmemmapBase
	const maxFrames = 1 << (52 - hypervisor.PageShift)
	off := uint64(addr - base)
	if base == 0 || addr < base || off%l.f.pageSize != 0 || off/l.f.pageSize >= maxFrames {
		return 0, &PointerError{Where: base, Value: addr, Err: ErrWild}
	}
	return hypervisor.PhysAddr(off / l.f.pageSize * hypervisor.PageSize), nil
}

// cachedPage returns the physical page that holds page index of the file whose
// inode is i. ok is false when the page cache has it not.
func (l *pagesLook) cachedPage(i *pagesInode, index uint64) (phys hypervisor.PhysAddr, ok bool, err error) {
	head, _, err := l.mappingHead(i.mapping, i.addr)
	if err != nil {
		return 0, false, err
	}
	entry, err := l.g.r.lookupXAEntry(&l.g.lay.xa, hypervisor.VirtAddr(head), index)
	if err != nil || entry == 0 {
		return 0, false, err
	}
	if entry&xaValueBit != 0 {
		return 0, false, nil
	}
	run, ok, err := l.entry(i, pagesEntry{index: index, count: 1, entry: entry})
	return run.phys, ok, err
}

// inodeOfFile returns the inode of the struct file at addr.
func (l *pagesLook) inodeOfFile(addr hypervisor.VirtAddr) (pagesInode, error) {
	if err := l.g.r.check(addr, addr, 8); err != nil {
		return pagesInode{}, fmt.Errorf("file: %w", err)
	}
	at, err := l.g.r.ptr(addr + hypervisor.VirtAddr(l.f.fileInode.off))
	if err != nil {
		return pagesInode{}, fmt.Errorf("file: %w", err)
	}
	return l.inode(at)
}
