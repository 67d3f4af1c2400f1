package linux

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of a path.
const (
	nameMax      = 255  // bytes of a component: NAME_MAX, include/uapi/linux/limits.h
	maxPathBytes = 8192 // twice PATH_MAX: a path may be longer than what a call can name
	maxPathSteps = maxPathBytes
	// maxLookSteps bounds the steps of all paths of one look at the guest: a
	// hostile one could make each path as long as a path may be.
	maxLookSteps = 1 << 20
	deletedMark  = " (deleted)"
	// fmodeMayBack has the bits that say that a struct file lies in a struct
	// backing_file, which has the path that the user knows
	// (include/linux/fs.h: FMODE_BACKING). It is bit 25 from 6.5 to 6.13 and bit
	// 24 since; as the other one says something else, what lies there must
	// look like a path too.
	fmodeMayBack = 1<<24 | 1<<25
)

// fsFields is where the facts of files, directory entries and mounts lie.
type fsFields struct {
	filePath, fileMode, userPath      field // userPath is in struct backing_file
	pathMnt, pathDentry               field
	fileSpan                          span
	dParent, dName, dLen, dHashPrev   field
	dInline, dSB                      field
	dentrySpan                        span
	mntVFS, mntRoot, mntParent, mntAt field
	mountSpan                         span
	sbType, typeName                  field
}

func (f *fsFields) facts() []fact {
	return []fact{
		{&f.filePath, 16, want, []string{"file.f_path", "file.__f_path"}},
		{&f.fileMode, 4, may, []string{"file.f_mode"}},
		{&f.userPath, 16, may, []string{"backing_file.user_path"}}, // since 6.5
		{&f.pathMnt, 8, want, []string{"path.mnt"}},
		{&f.pathDentry, 8, want, []string{"path.dentry"}},
		{&f.dParent, 8, want, []string{"dentry.d_parent"}},
		{&f.dName, 8, want, []string{"dentry.d_name.name", "dentry.__d_name.name"}},
		{&f.dLen, 4, want, []string{"dentry.d_name.len", "dentry.__d_name.len"}},
		{&f.dHashPrev, 8, want, []string{"dentry.d_hash.pprev"}},
		{&f.dInline, 0, want, []string{"dentry.d_shortname", "dentry.d_iname"}}, // renamed in 6.14
		{&f.dSB, 8, want, []string{"dentry.d_sb"}},
		{&f.mntVFS, 0, want, []string{"mount.mnt"}},
		{&f.mntRoot, 8, want, []string{"mount.mnt.mnt_root"}},
		{&f.mntParent, 8, want, []string{"mount.mnt_parent"}},
		{&f.mntAt, 8, want, []string{"mount.mnt_mountpoint"}},
		{&f.sbType, 8, want, []string{"super_block.s_type"}},
		{&f.typeName, 8, want, []string{"file_system_type.name"}},
	}
}

// finish makes pathMnt and pathDentry safe to add to a struct path's offset.
func (f *fsFields) finish() {
	for _, p := range []*field{&f.pathMnt, &f.pathDentry} {
		if p.off > 8 {
			p.ok = false
		}
	}
}

func (f *fsFields) spans() {
	f.fileSpan = spanOf(f.filePath, f.fileMode)
	f.dentrySpan = spanOf(f.dParent, f.dName, f.dLen, f.dHashPrev, f.dInline, f.dSB)
	f.mountSpan = spanOf(f.mntRoot, f.mntParent, f.mntAt)
}

// usable reports whether paths can be followed on this kernel.
func (f *fsFields) usable() bool {
	for _, x := range []field{f.filePath, f.pathMnt, f.pathDentry, f.dParent, f.dName, f.dLen, f.mntVFS, f.mntRoot, f.mntParent, f.mntAt} {
		if !x.ok {
			return false
		}
	}
	return true
}

// filePath is a struct path.
type filePath struct{ mnt, dentry hypervisor.VirtAddr }

// paths names files. It keeps what it found, so it is for one look at the
// guest, and for one goroutine.
type paths struct {
	r     *reader
	f     *fsFields
	buf   []byte
	left  int // steps that may still be made
	known map[filePath]pathResult
	files map[hypervisor.VirtAddr]pathResult
}

type pathResult struct {
	path string
	err  error
}

func newPaths(r *reader, f *fsFields) *paths {
	return &paths{r: r, f: f, left: maxLookSteps, known: map[filePath]pathResult{}, files: map[hypervisor.VirtAddr]pathResult{}}
}

var errNoPaths = errors.New("this kernel's type information lacks members of file, dentry or mount")

// ofFile returns the path of the struct file at addr, as the kernel prints it
// for a process that sees the whole of the file's mount namespace.
func (p *paths) ofFile(addr hypervisor.VirtAddr) (string, error) {
	if res, ok := p.files[addr]; ok {
		return res.path, res.err
	}
	path, err := p.readFile(addr)
	p.files[addr] = pathResult{path, err}
	return path, err
}

func (p *paths) readFile(addr hypervisor.VirtAddr) (string, error) {
	if !p.f.usable() {
		return "", errNoPaths
	}
	if err := p.r.check(addr, addr, 8); err != nil {
		return "", fmt.Errorf("file: %w", err)
	}
	o, buf, err := p.r.object(p.buf, addr, p.f.fileSpan)
	p.buf = buf
	if err != nil {
		return "", fmt.Errorf("file: %w", err)
	}
	fp := p.pathAt(o, p.f.filePath)
	if user, ok := p.userPathOf(addr, o); ok {
		fp = user
	}
	return p.of(fp)
}

// userPathOf returns the path that the user knows of the file at addr, whose
// f_mode o has, when it stands for another file.
func (p *paths) userPathOf(addr hypervisor.VirtAddr, o object) (filePath, bool) {
	if !p.f.userPath.ok || !p.f.fileMode.ok || o.uint(p.f.fileMode)&fmodeMayBack == 0 {
		return filePath{}, false
	}
	o, buf, err := p.r.object(p.buf, addr, spanOf(p.f.userPath))
	p.buf = buf
	if err != nil {
		return filePath{}, false
	}
	user := p.pathAt(o, p.f.userPath)
	return user, p.r.check(addr, user.mnt, 8) == nil && p.r.check(addr, user.dentry, 8) == nil
}

// pathAt returns the struct path at in o.
func (p *paths) pathAt(o object, at field) filePath {
	return filePath{
		mnt:    o.ptr(field{off: at.off + p.f.pathMnt.off, size: 8, ok: true}),
		dentry: o.ptr(field{off: at.off + p.f.pathDentry.off, size: 8, ok: true}),
	}
}

// of returns the path of fp up to the root of its mount namespace.
func (p *paths) of(fp filePath) (string, error) {
	if res, ok := p.known[fp]; ok {
		return res.path, res.err
	}
	path, err := p.walk(fp)
	p.known[fp] = pathResult{path, err}
	return path, err
}

// dentry is one directory entry.
type dentry struct {
	addr, parent, sb hypervisor.VirtAddr
	name             string
	unhashed         bool
}

// walk goes up from fp as the kernel's prepend_path (fs/d_path.c) does.
func (p *paths) walk(fp filePath) (string, error) {
	var parts []string
	size := 0
	suffix := ""
	if err := p.r.check(fp.mnt, fp.mnt, 8); err != nil {
		return "", fmt.Errorf("mount: %w", err)
	}
	mnt, err := p.mount(fp.mnt - hypervisor.VirtAddr(p.f.mntVFS.off))
	if err != nil {
		return "", err
	}
	at := fp.dentry
	for step := range maxPathSteps {
		if p.left--; p.left < 0 {
			return "", fmt.Errorf("paths: %w: %d steps", ErrLimit, maxLookSteps)
		}
		if at == mnt.root {
			if mnt.parent == mnt.addr {
				return join(parts, size) + suffix, nil // the namespace's root
			}
			if step == 0 && p.unhashed(at) {
				suffix = deletedMark // a file that is mounted elsewhere, and deleted here
			}
			at = mnt.at
			if mnt, err = p.mount(mnt.parent); err != nil {
				return "", err
			}
			continue
		}
		d, err := p.dentry(at, mnt.addr)
		if err != nil {
			return "", err
		}
		if d.parent == d.addr {
			if len(parts) == 0 {
				return p.pseudo(d)
			}
			// Above the mount's root: a directory moved out of a bind mount.
			return join(parts, size) + suffix, nil
		}
		if step == 0 && d.unhashed {
			suffix = deletedMark
		}
		parts = append(parts, d.name)
		if size += len(d.name) + 1; size > maxPathBytes {
			return "", fmt.Errorf("path: %w: %d bytes", ErrLimit, maxPathBytes)
		}
		at = d.parent
	}
	return "", fmt.Errorf("path: %w: %d steps", ErrLimit, maxPathSteps)
}

// unhashed reports whether the dentry at addr, which a mount has as its root,
// was taken out of its directory (d_unlinked, include/linux/dcache.h).
func (p *paths) unhashed(addr hypervisor.VirtAddr) bool {
	if !p.f.dHashPrev.ok || p.r.check(addr, addr, 8) != nil {
		return false
	}
	o, buf, err := p.r.object(p.buf, addr, spanOf(p.f.dHashPrev, p.f.dParent))
	p.buf = buf
	return err == nil && o.ptr(p.f.dHashPrev) == 0 && o.ptr(p.f.dParent) != addr
}

// join puts parts, the last component first, together.
func join(parts []string, size int) string {
	if len(parts) == 0 {
		return "/"
	}
	b := make([]byte, 0, size)
	for i := len(parts) - 1; i >= 0; i-- {
		b = append(append(b, '/'), parts[i]...)
	}
	return string(b)
}

// pseudo names a file that lies in no directory: a memfd, shared anonymous
// memory, an anonymous inode (simple_dname in fs/d_path.c, and
// anon_inodefs_dname in fs/anon_inodes.c).
func (p *paths) pseudo(d dentry) (string, error) {
	if p.f.dSB.ok && p.f.sbType.ok && p.f.typeName.ok {
		if t, err := p.fsType(d.sb); err == nil && t == "anon_inodefs" {
			return "anon_inode:" + d.name, nil
		}
	}
	return "/" + d.name + deletedMark, nil
}

func (p *paths) fsType(sb hypervisor.VirtAddr) (string, error) {
	if err := p.r.check(sb, sb, 8); err != nil {
		return "", err
	}
	t, err := p.r.ptr(sb + hypervisor.VirtAddr(p.f.sbType.off))
	if err != nil {
		return "", err
	}
	if err := p.r.check(sb, t, 8); err != nil {
		return "", err
	}
	name, err := p.r.ptr(t + hypervisor.VirtAddr(p.f.typeName.off))
	if err != nil {
		return "", err
	}
	return p.r.cstring(name, nameMax)
}

// mount is what a path needs of a struct mount.
type mount struct{ addr, root, parent, at hypervisor.VirtAddr }

func (p *paths) mount(addr hypervisor.VirtAddr) (mount, error) {
	if err := p.r.check(addr, addr, 8); err != nil {
		return mount{}, fmt.Errorf("mount: %w", err)
	}
	o, buf, err := p.r.object(p.buf, addr, p.f.mountSpan)
	p.buf = buf
	if err != nil {
		return mount{}, fmt.Errorf("mount: %w", err)
	}
	return mount{addr: addr, root: o.ptr(p.f.mntRoot), parent: o.ptr(p.f.mntParent), at: o.ptr(p.f.mntAt)}, nil
}

func (p *paths) dentry(addr, from hypervisor.VirtAddr) (dentry, error) {
	if err := p.r.check(from, addr, 8); err != nil {
		return dentry{}, fmt.Errorf("dentry: %w", err)
	}
	o, buf, err := p.r.object(p.buf, addr, p.f.dentrySpan)
	p.buf = buf
	if err != nil {
		return dentry{}, fmt.Errorf("dentry: %w", err)
	}
	d := dentry{addr: addr, parent: o.ptr(p.f.dParent), sb: o.ptr(p.f.dSB)}
	d.unhashed = p.f.dHashPrev.ok && o.ptr(p.f.dHashPrev) == 0
	n, at := int(o.uint(p.f.dLen)), o.ptr(p.f.dName)
	if n == 0 || n > nameMax {
		return d, fmt.Errorf("dentry at %#x: name of %d bytes: %w", uint64(addr), n, ErrTorn)
	}
	name := make([]byte, n)
	inline := o.bytes(p.f.dInline)
	if at == o.at(p.f.dInline) && p.f.dInline.ok && n <= len(inline) {
		copy(name, inline)
	} else {
		if err := p.r.check(addr, at, 1); err != nil {
			return d, fmt.Errorf("dentry name: %w", err)
		}
		if err := p.r.full(name, at); err != nil {
			return d, fmt.Errorf("dentry name: %w", err)
		}
	}
	if bytes.IndexByte(name, 0) >= 0 || (bytes.IndexByte(name, '/') >= 0 && d.parent != d.addr) {
		return d, fmt.Errorf("dentry at %#x: name %q: %w", uint64(addr), name, ErrTorn)
	}
	d.name = string(name)
	return d, nil
}
