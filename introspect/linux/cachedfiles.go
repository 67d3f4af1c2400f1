package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Bounds of a listing of cached files.
const (
	maxCachedBlocks = 1 << 17
	// leastInode is less than any inode takes, in bytes: the guest's memory
	// bounds how many there are.
	leastInode  = 256
	maxMountsOf = 1 << 17
)

// cachedLook is one look at all cached files.
type cachedLook struct {
	*pagesLook
	mounts map[hypervisor.VirtAddr]filePath // by super_block: where it is mounted
	dirs   map[hypervisor.VirtAddr]cachedDir
	inodes int // that may still be met
	names  int // bytes of paths of directories that may still be kept
}

// cachedDir is a directory whose path is known.
type cachedDir struct {
	path    string
	mounted bool
}

// CachedFiles lists what the page cache holds: all inodes that have pages in it,
// of every mounted filesystem and of the kernel's own (memfds, shared memory,
// block devices).
func (g *Guest) CachedFiles(ctx context.Context) (CachedFileList, error) {
	list := CachedFileList{Files: []CachedFile{}, Coverage: &introspect.Coverage{}}
	l, err := g.newPagesLook(list.Coverage)
	if err != nil {
		return list, err
	}
	f := l.f
	if f.superBlocks == 0 {
		return list, fmt.Errorf("cached files: %w", errNoSymbol("super_blocks"))
	}
	if !f.sbList.ok || !f.sbInodes.ok || !f.iSBList.ok || !f.nrPages.ok {
		return list, errors.New("cached files: this kernel's type information has no lists of inodes")
	}
	rounds := g.rounds()
	look := &cachedLook{
		pagesLook: l, dirs: map[hypervisor.VirtAddr]cachedDir{}, names: maxArgsText,
		inodes: int(hypervisor.TotalSize(g.mem.Ranges()) / leastInode),
	}
	look.findMounts(ctx, list.Coverage)
	var blocks []hypervisor.VirtAddr
	for range rounds {
		blocks = blocks[:0]
		_, err = g.r.walkList(ctx, f.superBlocks, forward, maxCachedBlocks, func(node, _ hypervisor.VirtAddr) (links, error) {
			blocks = append(blocks, node-hypervisor.VirtAddr(f.sbList.off))
			return g.r.readLinks(node)
		})
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	if ctx.Err() != nil {
		return list, fmt.Errorf("cached files: %w", ctx.Err())
	}
	if err != nil {
		list.Coverage.Add("list of filesystems", f.superBlocks, err)
	}
	for _, sb := range blocks {
		files, cov, err := look.ofSuperBlock(ctx, sb, rounds)
		list.Files = append(list.Files, files...)
		list.Coverage.Merge(cov)
		if err != nil {
			return list, fmt.Errorf("cached files: %w", err)
		}
	}
	slices.SortFunc(list.Files, func(a, b CachedFile) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Inode, b.Inode), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return list, nil
}

// findMounts notes where each filesystem is mounted in init's mount namespace.
func (l *cachedLook) findMounts(ctx context.Context, cov *introspect.Coverage) {
	l.mounts = map[hypervisor.VirtAddr]filePath{}
	if !l.f.mounts.ok || !l.f.mountChild.ok || !l.f.mntSB.ok || !l.f.sbRoot.ok {
		return
	}
	root, err := l.initRoot(ctx)
	if err != nil {
		cov.Add("mounts", 0, err)
		return
	}
	vfs := hypervisor.VirtAddr(l.g.lay.fs.mntVFS.off)
	todo := []hypervisor.VirtAddr{l.mountOf(root.mnt)}
	seen := map[hypervisor.VirtAddr]struct{}{}
	for len(todo) > 0 && len(seen) < maxMountsOf && ctx.Err() == nil {
		at := todo[0]
		todo = todo[1:]
		if _, ok := seen[at]; ok {
			continue
		}
		seen[at] = struct{}{}
		m, err := l.paths.mount(at)
		if err != nil {
			cov.Add("mounts", at, err)
			continue
		}
		if sb, err := l.g.r.ptr(at + hypervisor.VirtAddr(l.f.mntSB.off)); err == nil && l.g.r.check(at, sb, 8) == nil {
			top, err := l.g.r.ptr(sb + hypervisor.VirtAddr(l.f.sbRoot.off))
			if _, ok := l.mounts[sb]; !ok && err == nil && top == m.root {
				l.mounts[sb] = filePath{at + vfs, m.root} // all of it, not a part (a bind mount)
			}
		}
		_, err = l.g.r.walkList(ctx, at+hypervisor.VirtAddr(l.f.mounts.off), forward, maxSubs, func(node, _ hypervisor.VirtAddr) (links, error) {
			todo = append(todo, node-hypervisor.VirtAddr(l.f.mountChild.off))
			return l.g.r.readLinks(node)
		})
		if err != nil && ctx.Err() == nil {
			cov.Add("mounts", at, err)
		}
	}
}

// ofSuperBlock returns the cached files of one filesystem, as the best of
// several looks has them.
func (l *cachedLook) ofSuperBlock(ctx context.Context, sb hypervisor.VirtAddr, rounds int) ([]CachedFile, *introspect.Coverage, error) {
	var best []CachedFile
	var bestCov *introspect.Coverage
	left := l.inodes
	for range rounds {
		l.inodes = left
		files, cov, err := l.look(ctx, sb)
		if err != nil {
			return best, bestCov, err
		}
		if bestCov == nil || cov.Total() < bestCov.Total() {
			best, bestCov = files, cov
		}
		if bestCov.Complete() {
			break
		}
	}
	return best, bestCov, nil
}

func (l *cachedLook) look(ctx context.Context, sb hypervisor.VirtAddr) ([]CachedFile, *introspect.Coverage, error) {
	cov := &introspect.Coverage{}
	var files []CachedFile
	if err := l.g.r.check(sb, sb, 8); err != nil {
		cov.Add("filesystem", sb, err)
		return nil, cov, nil
	}
	o, _, err := l.g.r.object(nil, sb, spanOf(l.f.sbID, l.f.sbDev, l.f.sbRoot))
	if err != nil {
		cov.Add("filesystem", sb, err)
		return nil, cov, nil
	}
	device, dev := cString(o.bytes(l.f.sbID)), DeviceNumber(o.uint(l.f.sbDev))
	l.seed(sb, o.ptr(l.f.sbRoot))
	_, err = l.g.r.walkList(ctx, sb+hypervisor.VirtAddr(l.f.sbInodes.off), forward, l.inodes, func(node, _ hypervisor.VirtAddr) (links, error) {
		l.inodes--
		i, err := l.inode(node - hypervisor.VirtAddr(l.f.iSBList.off))
		if err != nil {
			return links{}, err
		}
		if i.sb != sb {
			return links{}, fmt.Errorf("inode at %#x: %w: it is of the filesystem at %#x", uint64(i.addr), ErrTorn, uint64(i.sb))
		}
		f, ok, err := l.file(ctx, &i)
		if err != nil {
			cov.Add("inode", i.addr, err)
		}
		if ok {
			f.Device, f.Dev = device, dev
			files = append(files, f)
		}
		return i.next, nil
	})
	if ctx.Err() != nil {
		return files, cov, ctx.Err()
	}
	if err != nil {
		cov.Add("list of inodes", sb, err)
	}
	return files, cov, nil
}

// seed notes the path of a filesystem's root directory.
func (l *cachedLook) seed(sb, root hypervisor.VirtAddr) {
	at, ok := l.mounts[sb]
	if !ok || root == 0 {
		return
	}
	if path, err := l.paths.of(at); err == nil {
		l.dirs[root] = cachedDir{path, true}
	}
}

// file returns what the page cache has of inode i; ok is false when that is
// nothing.
func (l *cachedLook) file(ctx context.Context, i *pagesInode) (f CachedFile, ok bool, err error) {
	if i.mapping == 0 {
		return f, false, nil
	}
	head, counted, err := l.mappingHead(i.mapping, i.addr)
	if err != nil || head == 0 {
		return f, false, err
	}
	f = CachedFile{
		Type: fileTypeOf(uint32(i.mode)), FSType: i.fsType, Inode: i.ino, Links: int(i.nlink), Size: i.size,
		RDev: i.rdev, KernelAddress: i.addr,
	}
	if i.fsType == "hugetlbfs" {
		return f, false, nil // its entries are large pages, which are counted elsewhere
	}
	var torn error
	bad := func(_ hypervisor.VirtAddr, err error) { torn = err }
	w := pagesXArray{r: &l.g.r, f: &l.g.lay.xa, ctx: ctx, last: ^uint64(0), left: maxFileNodes, marks: l.f.marks, bad: bad, fn: func(e pagesEntry) bool {
		switch {
		case e.entry&xaValueBit == 0:
			f.Pages += e.count
			if e.marked {
				f.PagesDirty += e.count
			}
		case i.inMemory():
			f.PagesSwapped += e.count
		}
		return f.Pages <= maxFilePages
	}}
	if err := w.walk(head); err != nil {
		torn = err
	}
	if f.Pages+f.PagesSwapped == 0 {
		return f, false, torn
	}
	f.Bytes = f.Pages * hypervisor.PageSize
	if torn == nil && f.Pages != counted && !hypervisor.IsLive(l.g.mem) {
		torn = fmt.Errorf("%w: %d pages, the kernel counts %d", ErrTorn, f.Pages, counted)
	}
	if err := l.name(&f, i); err != nil && torn == nil {
		torn = fmt.Errorf("path: %w", err)
	}
	return f, true, torn
}

// name gives f the path of one of its directory entries.
func (l *cachedLook) name(f *CachedFile, i *pagesInode) error {
	if !l.f.dAlias.ok || i.dentries == 0 || !l.g.lay.fs.usable() {
		return nil
	}
	if err := l.g.r.check(i.addr, i.dentries, 8); err != nil {
		return err
	}
	d, err := l.paths.dentry(i.dentries-hypervisor.VirtAddr(l.f.dAlias.off), i.addr)
	if err != nil {
		if n, lerr := l.g.r.u32(d.addr + hypervisor.VirtAddr(l.g.lay.fs.dLen.off)); lerr == nil && n == 0 && d.parent == d.addr {
			return nil // the kernel's own, made without a name
		}
		return err
	}
	if d.parent == d.addr {
		f.Path, err = l.paths.pseudo(d)
		f.Deleted = true
		return err
	}
	dir, err := l.dir(d.parent, d.addr)
	if err != nil {
		return err
	}
	f.Path, f.Mounted = joinDir(dir.path, d.name), dir.mounted
	if f.Deleted = d.unhashed; f.Deleted {
		f.Path += deletedMark
	}
	return nil
}

func joinDir(dir, name string) string {
	if dir == "/" {
		return "/" + name
	}
	return dir + "/" + name
}

// dir returns the path of the directory at, which the entry at from is in, and
// keeps those of all above it.
func (l *cachedLook) dir(at, from hypervisor.VirtAddr) (cachedDir, error) {
	type step struct {
		addr hypervisor.VirtAddr
		name string
	}
	var up []step
	known, ok := l.dirs[at]
	for !ok {
		if len(up) > maxPathSteps {
			return cachedDir{}, fmt.Errorf("path: %w: %d steps", ErrLimit, maxPathSteps)
		}
		d, err := l.paths.dentry(at, from)
		if err != nil {
			return cachedDir{}, err
		}
		if d.parent == d.addr {
			known = cachedDir{path: "/"} // the root of a filesystem that is mounted nowhere
			l.dirs[at] = known
			break
		}
		up = append(up, step{at, d.name})
		from, at = at, d.parent
		known, ok = l.dirs[at]
	}
	for i := len(up) - 1; i >= 0; i-- {
		known.path = joinDir(known.path, up[i].name)
		if len(known.path) > maxPathBytes {
			return cachedDir{}, fmt.Errorf("path: %w: %d bytes", ErrLimit, maxPathBytes)
		}
		if l.names -= len(known.path); l.names > 0 {
			l.dirs[up[i].addr] = known
		}
	}
	return known, nil
}
