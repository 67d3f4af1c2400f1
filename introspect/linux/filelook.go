package linux

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// fileLook reads open files. It keeps what it found of each structure, which
// many of them share, so it is for one look at the guest, and for one goroutine.
type fileLook struct {
	g      *Guest
	f      *fileFields
	fs     *fsFields
	span   span // of struct file
	buf    []byte
	paths  *paths
	files  map[hypervisor.VirtAddr]*fileResult
	inodes map[hypervisor.VirtAddr]*inodeResult
	supers map[hypervisor.VirtAddr]superResult
	mounts map[hypervisor.VirtAddr]uint32
	types  map[hypervisor.VirtAddr]string // of file_system_type
}

// fileResult is a File but for who has it open, and what of it could not be read.
type fileResult struct {
	file File
	err  error
}

// inodeInfo is what an inode says.
type inodeInfo struct {
	sb                        hypervisor.VirtAddr
	mode                      uint32
	uid, gid, links           int
	ino                       uint64
	rdev                      DeviceNumber
	size                      int64
	atime, mtime, ctime       uint64
	atimeNS, mtimeNS, ctimeNS uint64
}

type inodeResult struct {
	inodeInfo
	err error
}

// superInfo is what a super_block says.
type superInfo struct {
	dev    DeviceNumber
	fsType string
}

type superResult struct {
	superInfo
	err error
}

func (g *Guest) newFileLook(f *fileFields) *fileLook {
	l := &fileLook{g: g, f: f, fs: &g.lay.fs}
	l.span = spanOf(l.fs.filePath, l.fs.fileMode, f.inode, f.flags, f.pos)
	l.forget()
	return l
}

// forget drops what was kept: on a live guest it may be what was torn.
func (l *fileLook) forget() {
	l.paths = newPaths(&l.g.r, l.fs)
	l.files = map[hypervisor.VirtAddr]*fileResult{}
	l.inodes = map[hypervisor.VirtAddr]*inodeResult{}
	l.supers = map[hypervisor.VirtAddr]superResult{}
	l.mounts = map[hypervisor.VirtAddr]uint32{}
	l.types = map[hypervisor.VirtAddr]string{}
}

// file returns what the struct file at addr says.
func (l *fileLook) file(addr hypervisor.VirtAddr) (File, error) {
	if res, ok := l.files[addr]; ok {
		return res.file, res.err
	}
	f, err := l.readFile(addr)
	l.files[addr] = &fileResult{f, err}
	return f, err
}

func (l *fileLook) readFile(addr hypervisor.VirtAddr) (File, error) {
	f := File{KernelAddress: addr, Type: TypeUnknown, UID: NoID, GID: NoID}
	if !l.fs.usable() {
		return f, errNoPaths
	}
	if err := l.g.r.check(addr, addr, 8); err != nil {
		return f, fmt.Errorf("file: %w", err)
	}
	o, buf, err := l.g.r.object(l.buf, addr, l.span)
	l.buf = buf
	if err != nil {
		return f, fmt.Errorf("file: %w", err)
	}
	f.Flags, f.Pos = Octal(o.uint(l.f.flags))&^oCloexec, int64(o.uint(l.f.pos))
	at, inode := l.paths.pathAt(o, l.fs.filePath), o.ptr(l.f.inode)
	if inode == 0 && o.uint(l.fs.fileMode)&fmodeMayBack == 0 {
		return f, fmt.Errorf("file at %#x has no inode: %w", uint64(addr), ErrTorn)
	}
	err = l.fill(&f, addr, at, inode)
	return f, err
}

// fill sets what the inode and the path of f say.
func (l *fileLook) fill(f *File, where hypervisor.VirtAddr, at filePath, inode hypervisor.VirtAddr) error {
	i, err := l.inode(where, inode)
	if err != nil {
		return fmt.Errorf("inode: %w", err)
	}
	sb, err := l.super(inode, i.sb)
	f.Inode, f.Dev, f.RDev, f.Links = i.ino, sb.dev, i.rdev, i.links
	f.UID, f.GID, f.Mode, f.Size = i.uid, i.gid, Octal(i.mode), i.size
	f.ModTime, f.ChangeTime, f.AccessTime = fileTime(i.mtime, i.mtimeNS), fileTime(i.ctime, i.ctimeNS), fileTime(i.atime, i.atimeNS)
	f.Type = fileTypeOf(i.mode)
	var errs []error
	if err != nil {
		errs = append(errs, fmt.Errorf("super block: %w", err))
	}
	if f.MountNamespace, err = l.mountNS(at.mnt); err != nil {
		errs = append(errs, fmt.Errorf("mount namespace: %w", err))
	}
	if err := l.name(f, sb.fsType, at, inode); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// name sets f's path, and its type where the path tells it.
func (l *fileLook) name(f *File, fsType string, at filePath, inode hypervisor.VirtAddr) error {
	switch fsType {
	case "pipefs": // pipefs_dname, fs/pipe.c
		f.Path = fmt.Sprintf("pipe:[%d]", f.Inode)
		return nil
	case "sockfs": // sockfs_dname, net/socket.c
		f.Path = fmt.Sprintf("socket:[%d]", f.Inode)
		return nil
	case "pidfs": // pidfs_dname, fs/pidfs.c; since 6.9
		f.Path, f.Type, f.Mode = "anon_inode:[pidfd]", "pidfd", f.Mode&^sIFMT
		return nil
	case "nsfs": // ns_dname, fs/nsfs.c
		kind, err := l.nsKind(inode)
		if err != nil {
			return fmt.Errorf("kind of namespace: %w", err)
		}
		f.Path = fmt.Sprintf("%s:[%d]", kind, f.Inode)
		return nil
	}
	path, err := l.paths.of(at)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	f.Path = path
	if fsType == "anon_inodefs" {
		name := strings.TrimPrefix(path, "anon_inode:")
		if n := len(name); n > 2 && name[0] == '[' && name[n-1] == ']' {
			name = name[1 : n-1]
		}
		// The kernel gives it a type for itself only, and not always
		// (anon_inode_getattr, fs/anon_inodes.c).
		f.Type, f.Mode = FileType(name), f.Mode&^sIFMT
		return nil
	}
	if strings.HasSuffix(path, deletedMark) {
		// A file may be named so.
		f.Deleted, err = l.unhashed(at.dentry)
	}
	return err
}

func (l *fileLook) unhashed(dentry hypervisor.VirtAddr) (bool, error) {
	if !l.fs.dHashPrev.ok {
		return true, nil
	}
	p, err := l.g.r.ptr(dentry + hypervisor.VirtAddr(l.fs.dHashPrev.off))
	return p == 0, err
}

// nsKind returns the word for the namespace that an inode of nsfs stands for.
func (l *fileLook) nsKind(inode hypervisor.VirtAddr) (string, error) {
	f, r := l.f, &l.g.r
	if !f.private.ok || !f.nsOps.ok || !f.opsName.ok {
		return "", errors.New("this kernel's type information lacks members of namespaces")
	}
	at := inode
	for _, x := range []field{f.private, f.nsOps, f.opsName} {
		next, err := r.ptr(at + hypervisor.VirtAddr(x.off))
		if err != nil {
			return "", err
		}
		align := uint64(8)
		if x == f.opsName {
			align = 1
		}
		if err := r.check(at, next, align); err != nil {
			return "", err
		}
		at = next
	}
	return r.cstring(at, nameMax)
}

// inode returns what the inode at addr, found in the structure at where, says.
func (l *fileLook) inode(where, addr hypervisor.VirtAddr) (inodeInfo, error) {
	if res, ok := l.inodes[addr]; ok {
		return res.inodeInfo, res.err
	}
	i, err := l.readInode(where, addr)
	l.inodes[addr] = &inodeResult{i, err}
	return i, err
}

func (l *fileLook) readInode(where, addr hypervisor.VirtAddr) (inodeInfo, error) {
	f := l.f
	if err := l.g.r.check(where, addr, 8); err != nil {
		return inodeInfo{}, err
	}
	o, buf, err := l.g.r.object(l.buf, addr, f.inodeSpan)
	l.buf = buf
	if err != nil {
		return inodeInfo{}, err
	}
	owner := func(x field) int {
		if !x.ok {
			return NoID
		}
		return int(o.uint(x))
	}
	return inodeInfo{
		sb: o.ptr(f.sb), mode: uint32(o.uint(f.mode)), uid: owner(f.uid), gid: owner(f.gid), links: int(o.uint(f.nlink)),
		ino: o.uint(f.ino), rdev: DeviceNumber(o.uint(f.rdev)), size: int64(o.uint(f.size)),
		atime: o.uint(f.atime), mtime: o.uint(f.mtime), ctime: o.uint(f.ctime),
		atimeNS: o.uint(f.atimeNS), mtimeNS: o.uint(f.mtimeNS), ctimeNS: o.uint(f.ctimeNS) &^ ctimeQueried,
	}, nil
}

// super returns what the super_block at addr, found in the inode at where, says.
func (l *fileLook) super(where, addr hypervisor.VirtAddr) (superInfo, error) {
	if res, ok := l.supers[addr]; ok {
		return res.superInfo, res.err
	}
	s, err := l.readSuper(where, addr)
	l.supers[addr] = superResult{s, err}
	return s, err
}

func (l *fileLook) readSuper(where, addr hypervisor.VirtAddr) (superInfo, error) {
	var s superInfo
	if !l.f.sb.ok || !l.f.sbType.ok || !l.fs.typeName.ok {
		return s, nil // told as missing members
	}
	if err := l.g.r.check(where, addr, 8); err != nil {
		return s, err
	}
	o, buf, err := l.g.r.object(l.buf, addr, l.f.sbSpan)
	l.buf = buf
	if err != nil {
		return s, err
	}
	s.dev = DeviceNumber(o.uint(l.f.sbDev))
	t := o.ptr(l.f.sbType)
	if name, ok := l.types[t]; ok {
		s.fsType = name
		return s, nil
	}
	if err := l.g.r.check(addr, t, 8); err != nil {
		return s, err
	}
	at, err := l.g.r.ptr(t + hypervisor.VirtAddr(l.fs.typeName.off))
	if err != nil {
		return s, err
	}
	s.fsType, err = l.g.r.cstring(at, nameMax)
	if err == nil {
		l.types[t] = s.fsType
	}
	return s, err
}

// mountNS returns the mount namespace of the vfsmount at addr.
func (l *fileLook) mountNS(addr hypervisor.VirtAddr) (uint32, error) {
	inum := l.g.lay.ns.mntInum
	if !l.f.mountNS.ok || !inum.ok {
		return 0, nil
	}
	if n, ok := l.mounts[addr]; ok {
		return n, nil
	}
	if err := l.g.r.check(addr, addr, 8); err != nil {
		return 0, err
	}
	ns, err := l.g.r.ptr(addr - hypervisor.VirtAddr(l.fs.mntVFS.off) + hypervisor.VirtAddr(l.f.mountNS.off))
	if err != nil {
		return 0, err
	}
	n := uint32(0)
	// 0 for a mount that was detached, an error number (MNT_NS_INTERNAL) for
	// one of the kernel's own.
	if ns != 0 && ns <= ^hypervisor.VirtAddr(0)-maxErrno {
		if err := l.g.r.check(addr, ns, 8); err != nil {
			return 0, err
		}
		if n, err = l.g.r.u32(ns + hypervisor.VirtAddr(inum.off)); err != nil {
			return 0, err
		}
	}
	l.mounts[addr] = n
	return n, nil
}
