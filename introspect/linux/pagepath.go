package linux

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of a lookup of a path.
const (
	maxChildren = 1 << 20 // of one directory
	maxSymlinks = 40      // MAXSYMLINKS, include/linux/namei.h
	maxOvers    = 64      // mounts on top of each other at one place
	maxSubs     = 1 << 17 // mounts below one mount; sysctl fs.mount-max is 100000
)

// lookup returns the directory entry that path names, from the root directory
// of init (pid 1), and its inode. Only what the kernel has in its cache of
// directory entries can be found; it returns an error that wraps ErrNotCached
// for what is not.
func (l *pagesLook) lookup(ctx context.Context, path string) (filePath, pagesInode, error) {
	root, err := l.initRoot(ctx)
	if err != nil {
		return filePath{}, pagesInode{}, fmt.Errorf("root directory: %w", err)
	}
	return l.lookupAt(ctx, root, path)
}

// initRoot returns the root directory of init.
func (l *pagesLook) initRoot(ctx context.Context) (filePath, error) {
	f := &l.g.lay.task
	var init hypervisor.VirtAddr
	var s taskScan
	// It is the first process ever, and so the first of their list.
	_, err := l.g.r.walkList(ctx, l.g.sym.initTask+hypervisor.VirtAddr(f.tasks.off), forward, maxThreads(l.g.mem), func(node, _ hypervisor.VirtAddr) (links, error) {
		t, err := s.read(&l.g.r, f, node-hypervisor.VirtAddr(f.tasks.off))
		if err == nil && t.pid == 1 {
			init, err = t.addr, errPathFound
		}
		return t.tasks, err
	})
	if init == 0 {
		if err == nil {
			err = errors.New("there is no process 1")
		}
		return filePath{}, err
	}
	return l.taskRoot(init)
}

// errPathFound ends a walk that has found what it looked for.
var errPathFound = errors.New("found")

// taskRoot returns the root directory of the task at addr.
func (l *pagesLook) taskRoot(addr hypervisor.VirtAddr) (filePath, error) {
	if !l.f.taskFS.ok || !l.f.fsRoot.ok || !l.g.lay.fs.usable() {
		return filePath{}, errNoPaths
	}
	fs, err := l.g.r.ptr(addr + hypervisor.VirtAddr(l.f.taskFS.off))
	if err != nil {
		return filePath{}, err
	}
	if err := l.g.r.check(addr, fs, 8); err != nil {
		return filePath{}, err
	}
	o, buf, err := l.g.r.object(l.buf, fs, spanOf(l.f.fsRoot))
	l.buf = buf
	if err != nil {
		return filePath{}, err
	}
	return l.paths.pathAt(o, l.f.fsRoot), nil
}

// lookupAt is lookup from the directory root.
func (l *pagesLook) lookupAt(ctx context.Context, root filePath, path string) (filePath, pagesInode, error) {
	if !l.f.listsChildren() {
		return filePath{}, pagesInode{}, errNoPaths
	}
	root, err := l.over(ctx, root)
	if err != nil {
		return filePath{}, pagesInode{}, err
	}
	at := root
	parts := strings.Split(path, "/")
	symlinks := 0
	for steps := 0; len(parts) > 0; steps++ {
		name := parts[0]
		parts = parts[1:]
		if steps > maxPathSteps {
			return at, pagesInode{}, fmt.Errorf("path: %w: %d steps", ErrLimit, maxPathSteps)
		}
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			if at, err = l.up(ctx, root, at); err != nil {
				return at, pagesInode{}, err
			}
			continue
		case len(name) > nameMax:
			return at, pagesInode{}, fmt.Errorf("name of %d bytes: %w", len(name), ErrNotCached)
		}
		child, inode, err := l.child(ctx, at.dentry, name)
		if err != nil {
			return at, pagesInode{}, err
		}
		next := filePath{at.mnt, child}
		i, err := l.inode(inode)
		if err != nil {
			return at, pagesInode{}, err
		}
		if i.mode&sIFMT == sIFLNK {
			if symlinks++; symlinks > maxSymlinks {
				return at, pagesInode{}, fmt.Errorf("symbolic links: %w: %d", ErrLimit, maxSymlinks)
			}
			text, err := l.linkText(&i)
			if err != nil {
				return at, pagesInode{}, fmt.Errorf("symbolic link: %w", err)
			}
			if strings.HasPrefix(text, "/") {
				at = root
			}
			parts = append(strings.Split(text, "/"), parts...)
			continue
		}
		if at, err = l.over(ctx, next); err != nil {
			return at, pagesInode{}, err
		}
	}
	inode, err := l.g.r.ptr(at.dentry + hypervisor.VirtAddr(l.f.dInode.off))
	if err != nil {
		return at, pagesInode{}, err
	}
	i, err := l.inode(inode)
	return at, i, err
}

// linkText returns what the symbolic link i points to: kept with the inode, or
// in the file's first page.
func (l *pagesLook) linkText(i *pagesInode) (string, error) {
	if i.link != 0 {
		return l.g.r.cstring(i.link, maxPathBytes)
	}
	if i.size == 0 || i.size > hypervisor.PageSize {
		return "", fmt.Errorf("%d bytes: %w", i.size, ErrTorn)
	}
	phys, ok, err := l.cachedPage(i, 0)
	if err == nil && !ok {
		err = ErrNotCached
	}
	if err != nil {
		return "", err
	}
	b := make([]byte, i.size)
	if n, err := l.g.mem.ReadPhys(b, phys); n < len(b) {
		return "", err
	}
	text, _, _ := strings.Cut(string(b), "\x00")
	return text, nil
}

// mountOf returns the struct mount of a struct vfsmount.
func (l *pagesLook) mountOf(vfs hypervisor.VirtAddr) hypervisor.VirtAddr {
	return vfs - hypervisor.VirtAddr(l.g.lay.fs.mntVFS.off)
}

// over returns the root of what is mounted at p, p itself when nothing is.
func (l *pagesLook) over(ctx context.Context, p filePath) (filePath, error) {
	if !l.f.mounts.ok || !l.f.mountChild.ok {
		return p, nil
	}
	vfs := l.g.lay.fs.mntVFS.off
	for range maxOvers {
		if err := l.g.r.check(p.mnt, p.mnt, 8); err != nil {
			return p, fmt.Errorf("mount: %w", err)
		}
		parent := l.mountOf(p.mnt)
		var found mount
		_, err := l.g.r.walkList(ctx, parent+hypervisor.VirtAddr(l.f.mounts.off), forward, maxSubs, func(node, _ hypervisor.VirtAddr) (links, error) {
			m, err := l.paths.mount(node - hypervisor.VirtAddr(l.f.mountChild.off))
			if err != nil {
				return links{}, err
			}
			if m.at == p.dentry && m.parent == parent {
				found = m
				return links{}, errPathFound
			}
			return l.g.r.readLinks(node)
		})
		switch {
		case found.addr != 0:
			p = filePath{found.addr + hypervisor.VirtAddr(vfs), found.root}
		case err != nil:
			return p, fmt.Errorf("mounts: %w", err)
		default:
			return p, nil
		}
	}
	return p, fmt.Errorf("mounts at one place: %w: %d", ErrLimit, maxOvers)
}

// up returns the directory above at, not above root.
func (l *pagesLook) up(ctx context.Context, root, at filePath) (filePath, error) {
	for range maxOvers {
		if at == root {
			return at, nil
		}
		m, err := l.paths.mount(l.mountOf(at.mnt))
		if err != nil {
			return at, err
		}
		if at.dentry == m.root {
			if m.parent == m.addr {
				return at, nil
			}
			at = filePath{m.parent + hypervisor.VirtAddr(l.g.lay.fs.mntVFS.off), m.at}
			continue
		}
		if err := l.g.r.check(at.dentry, at.dentry, 8); err != nil {
			return at, err
		}
		parent, err := l.g.r.ptr(at.dentry + hypervisor.VirtAddr(l.g.lay.fs.dParent.off))
		if err != nil {
			return at, err
		}
		return l.over(ctx, filePath{at.mnt, parent})
	}
	return at, fmt.Errorf("mounts at one place: %w: %d", ErrLimit, maxOvers)
}

// child returns the directory entry name in the directory dir, and its inode.
func (l *pagesLook) child(ctx context.Context, dir hypervisor.VirtAddr, name string) (found, inode hypervisor.VirtAddr, err error) {
	fs := &l.g.lay.fs
	sp := spanOf(fs.dParent, fs.dName, fs.dLen, fs.dHashPrev, fs.dInline, fs.dSB, l.f.dInode)
	var buf []byte
	match := func(addr hypervisor.VirtAddr) error {
		o, b, err := l.g.r.object(buf, addr, sp)
		buf = b
		if err != nil {
			return err
		}
		i := o.ptr(l.f.dInode)
		if o.uint(fs.dLen) != uint64(len(name)) || i == 0 || o.ptr(fs.dParent) != dir || fs.dHashPrev.ok && o.ptr(fs.dHashPrev) == 0 {
			return nil // another name, one that is known not to exist, or deleted
		}
		d, err := l.paths.dentry(addr, dir)
		if err == nil && d.name == name {
			found, inode, err = addr, i, errPathFound
		}
		return err
	}
	err = l.children(ctx, dir, match)
	switch {
	case found != 0:
		return found, inode, nil
	case err != nil:
		return 0, 0, fmt.Errorf("directory: %w", err)
	}
	return 0, 0, ErrNotCached
}

// children calls fn for each directory entry below dir, until fn returns an
// error.
func (l *pagesLook) children(ctx context.Context, dir hypervisor.VirtAddr, fn func(addr hypervisor.VirtAddr) error) error {
	if err := l.g.r.check(dir, dir, 8); err != nil {
		return err
	}
	if l.f.children.ok && l.f.dSib.ok {
		off := hypervisor.VirtAddr(l.f.dSib.off)
		return l.g.r.walkHList(ctx, dir+hypervisor.VirtAddr(l.f.children.off), maxChildren, func(node hypervisor.VirtAddr) error {
			return fn(node - off)
		})
	}
	off := hypervisor.VirtAddr(l.f.dChild.off)
	_, err := l.g.r.walkList(ctx, dir+hypervisor.VirtAddr(l.f.subdirs.off), forward, maxChildren, func(node, _ hypervisor.VirtAddr) (links, error) {
		if err := fn(node - off); err != nil {
			return links{}, err
		}
		return l.g.r.readLinks(node)
	})
	return err
}
