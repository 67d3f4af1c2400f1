package linux

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Maps lists the mappings of p and what their pages are, in ascending order of
// address. What of them could not be read is told in the coverage. It returns
// ErrNoMemory for a process without user memory, and ErrGone when p is no longer
// where it was listed; the list is partial when ctx ends, which is then the error.
func (g *Guest) Maps(ctx context.Context, p Process, opt MapOptions) (AreaList, error) {
	best := AreaList{Areas: []Area{}, Coverage: &introspect.Coverage{}}
	mm, err := g.mmOf(ctx, p)
	if err != nil {
		return best, err
	}
	for i := range g.rounds() {
		l := AreaList{Areas: []Area{}, Coverage: &introspect.Coverage{}}
		w, err := g.newMapWalk(ctx, mm, l.Coverage)
		if err != nil {
			return best, fmt.Errorf("mappings of process %d: %w", p.PID, err)
		}
		l.Areas = w.areas(p.PID)
		if !opt.NoPages && ctx.Err() == nil {
			w.count(l.Areas)
		}
		if i == 0 || l.Coverage.Total() < best.Coverage.Total() {
			best = l
		}
		if ctx.Err() != nil {
			return best, fmt.Errorf("mappings of process %d: %w", p.PID, ctx.Err())
		}
		if best.Coverage.Complete() {
			break
		}
	}
	return best, nil
}

// mapWalk lists the areas of one process.
type mapWalk struct {
	g     *Guest
	ctx   context.Context
	cov   *introspect.Coverage
	f     *mapFields
	vmas  vmaWalk
	files *fileLook
	pages *pagesLook
	last  mapPage
	// Frames that are all zero, and not counted.
	zero, hugeZero hypervisor.PhysAddr
	left           int // pages that may still be looked at
	a, b           [hypervisor.PageSize]byte
}

// mapFile is what an area needs of the file behind it.
type mapFile struct {
	file  hypervisor.VirtAddr
	flags uint64
}

func (g *Guest) newMapWalk(ctx context.Context, mm hypervisor.VirtAddr, cov *introspect.Coverage) (*mapWalk, error) {
	w := &mapWalk{g: g, ctx: ctx, cov: cov}
	var err error
	if w.f, err = tableOf[mapFields](g, cov); err != nil {
		return nil, err
	}
	files, err := tableOf[fileFields](g, cov)
	if err != nil {
		return nil, err
	}
	if w.pages, err = g.newPagesLook(cov); err != nil {
		return nil, err
	}
	w.files = g.newFileLook(files)
	w.vmas = vmaWalk{g: g, mm: mm, paths: w.files.paths, cov: cov, keep: true}
	return w, nil
}

// areas walks the mappings.
func (w *mapWalk) areas(pid int) []Area {
	if err := w.vmas.walk(w.ctx); err != nil && w.ctx.Err() == nil {
		w.cov.Add("mappings", w.vmas.mm, err)
	}
	out := make([]Area, len(w.vmas.out))
	for i, v := range w.vmas.out {
		f := w.vmas.behind[i]
		out[i] = Area{
			PID: pid, Start: v.Start, End: v.End, Perms: v.Perms, Offset: v.Offset, Path: v.Path, Anon: v.Anon,
			Flags: w.f.mapFlags(f.flags),
		}
		if f.file == 0 {
			continue
		}
		if err := w.file(&out[i], f.file); err != nil {
			w.cov.Add("file of a mapping", f.file, err)
		}
	}
	return out
}

// file sets what /proc/PID/maps tells of the file behind a: for one that stands
// for another (overlayfs), that is the one that the user knows.
func (w *mapWalk) file(a *Area, addr hypervisor.VirtAddr) error {
	l := w.files
	if err := w.g.r.check(addr, addr, 8); err != nil {
		return err
	}
	o, buf, err := w.g.r.object(l.buf, addr, l.span)
	l.buf = buf
	if err != nil {
		return err
	}
	inode := o.ptr(l.f.inode)
	at := l.paths.pathAt(o, l.fs.filePath)
	if user, ok := l.paths.userPathOf(addr, o); ok && l.f.dInode.ok {
		at = user
		if inode, err = w.g.r.ptr(at.dentry + hypervisor.VirtAddr(l.f.dInode.off)); err != nil {
			return err
		}
	}
	i, err := l.inode(addr, inode)
	if err != nil {
		return fmt.Errorf("inode: %w", err)
	}
	sb, err := l.super(inode, i.sb)
	if err != nil {
		return fmt.Errorf("super block: %w", err)
	}
	a.Inode, a.Dev = i.ino, sb.dev
	a.Deleted, err = l.unhashed(at.dentry)
	return err
}

var errNoPageTables = errors.New("this kernel's type information has no page table of a process")
