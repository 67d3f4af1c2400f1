package linux

import (
	"context"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// ErrNoFile is wrapped when a process has no program, no open file of that
// number, or no memory area where one was asked for.
var ErrNoFile = errors.New("the process has none")

// Exe returns the program that p runs, as the page cache has it: also one that
// was deleted, or that never was on disk. On an overlay it is the file beneath,
// which is what is mapped.
//
// It returns ErrNoMemory for a kernel thread or zombie, and ErrGone when p is no
// longer where it was listed.
func (g *Guest) Exe(ctx context.Context, p Process) (*Content, error) {
	c, err := g.exe(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("program of process %d: %w", p.PID, err)
	}
	return c, nil
}

func (g *Guest) exe(ctx context.Context, p Process) (*Content, error) {
	mm, err := g.mmOf(ctx, p)
	if err != nil {
		return nil, err
	}
	l, err := g.newPagesLook(nil)
	if err != nil {
		return nil, err
	}
	f := &g.lay.mm
	if !f.exeFile.ok {
		return nil, errNoPaths
	}
	file, err := g.r.ptr(mm + hypervisor.VirtAddr(f.exeFile.off))
	if err != nil {
		return nil, err
	}
	if file == 0 {
		return nil, ErrNoFile
	}
	name, _ := l.paths.ofFile(file) // a file without a name that can be told is one still
	code, err := g.r.ptr(mm + hypervisor.VirtAddr(l.f.startCode.off))
	if err != nil || !l.f.startCode.ok {
		code = 0
	}
	return l.openFile(ctx, p, file, name, code)
}

// openFile returns the contents of the struct file at file of process p. code,
// if it is not 0, is an address at which p has mapped it.
func (l *pagesLook) openFile(ctx context.Context, p Process, file hypervisor.VirtAddr, name string, code hypervisor.VirtAddr) (*Content, error) {
	i, err := l.inodeOfFile(file)
	if err != nil {
		return nil, err
	}
	if i.fsType == "overlay" {
		// Its own inode has no pages: the file beneath has, and is what a
		// process maps.
		under, err := l.mappedUnder(ctx, p, name, code)
		if err != nil {
			return nil, err
		}
		i = under
	}
	return l.fileContent(name, i)
}

// errOverlay: which file lies beneath one of an overlay is known to a module only.
var errOverlay = errors.New("the file lies on an overlay and no process area shows the file beneath")

// mappedUnder returns the inode of the file that p has mapped under name, or at
// code. The name of what lies beneath an overlay is one in the overlay only since
// Linux 6.5.
func (l *pagesLook) mappedUnder(ctx context.Context, p Process, name string, code hypervisor.VirtAddr) (pagesInode, error) {
	vmas, _, err := l.g.VMAs(ctx, p)
	if err != nil {
		return pagesInode{}, err
	}
	for _, v := range vmas {
		if v.file == 0 || v.Path != name && !v.Contains(code) {
			continue
		}
		if i, err := l.inodeOfFile(v.file); err == nil && i.fsType != "overlay" {
			return i, nil
		}
	}
	return pagesInode{}, errOverlay
}

// OpenFile returns the file that p has open as descriptor fd: also a deleted one
// and a memfd. It must be a regular file (ErrNotRegular).
func (g *Guest) OpenFile(ctx context.Context, p Process, fd int) (*Content, error) {
	c, err := g.openFile(ctx, p, fd)
	if err != nil {
		return nil, fmt.Errorf("file %d of process %d: %w", fd, p.PID, err)
	}
	return c, nil
}

func (g *Guest) openFile(ctx context.Context, p Process, fd int) (*Content, error) {
	l, err := g.newPagesLook(nil)
	if err != nil {
		return nil, err
	}
	var file hypervisor.VirtAddr
	var walk error
	for range g.rounds() {
		walk = g.walkFDs(ctx, p.KernelAddress, func(n int, at hypervisor.VirtAddr, _ bool) bool {
			if n == fd {
				file = at
			}
			return n < fd
		})
		if file != 0 || ctx.Err() != nil {
			break
		}
	}
	if file == 0 {
		return nil, errors.Join(ErrNoFile, walk)
	}
	name, _ := l.paths.ofFile(file)
	return l.openFile(ctx, p, file, name, 0)
}

// Area returns the memory area of p that begins at start, or that start lies in,
// as p sees it: what it has in its page tables, else what the page cache has of
// the file behind it, else, where there is no file, zeros.
func (g *Guest) Area(ctx context.Context, p Process, start hypervisor.VirtAddr) (*Content, VMA, error) {
	a, err := g.newAreas(ctx, p)
	if err != nil {
		return nil, VMA{}, fmt.Errorf("areas of process %d: %w", p.PID, err)
	}
	for _, v := range a.vmas {
		if !v.Contains(start) {
			continue
		}
		if v.Size() > maxContent {
			return nil, v, fmt.Errorf("area of %d bytes: %w", v.Size(), ErrLimit)
		}
		return &Content{Path: v.Path, Size: v.Size(), copy: func(ctx context.Context, w *contentWriter) error {
			w.cov.Problems.Merge(a.cov)
			a.restart()
			return a.copy(ctx, w, &v, v.Start, v.End)
		}}, v, nil
	}
	if !a.cov.Complete() {
		return nil, VMA{}, fmt.Errorf("area at %#x of process %d: %w (its list of areas is not complete)", uint64(start), p.PID, ErrNoFile)
	}
	return nil, VMA{}, fmt.Errorf("area at %#x of process %d: %w", uint64(start), p.PID, ErrNoFile)
}

// maxContent bounds what is written of areas and cores: 1 TiB. An area may be
// larger, but not what is in it.
const maxContent = 1 << 40

// areasLook reads the memory areas of one process.
type areasLook struct {
	*pagesLook
	p      Process
	mm     hypervisor.VirtAddr
	vmas   []VMA
	cov    *introspect.Coverage
	space  areaSpace
	inodes map[hypervisor.VirtAddr]pagesInode // by struct file
	left   uint64                             // pieces that may still be met
}

// restart begins a pass over the areas: each page of memory may be met once,
// and once in swap. Page tables may say far more.
func (a *areasLook) restart() {
	const some = 1 << 16
	a.left = 2*hypervisor.TotalSize(a.g.mem.Ranges())/hypervisor.PageSize + some
}

func (g *Guest) newAreas(ctx context.Context, p Process) (*areasLook, error) {
	mm, err := g.mmOf(ctx, p)
	if err != nil {
		return nil, err
	}
	l, err := g.newPagesLook(nil)
	if err != nil {
		return nil, err
	}
	a := &areasLook{pagesLook: l, p: p, mm: mm, inodes: map[hypervisor.VirtAddr]pagesInode{}}
	if a.space, err = g.ProcessSpace(p); err != nil {
		return nil, err
	}
	if a.vmas, a.cov, err = g.VMAs(ctx, p); err != nil {
		return nil, err
	}
	return a, nil
}

// inodeOf returns the inode of the file behind v.
func (a *areasLook) inodeOf(v *VMA) (pagesInode, error) {
	if i, ok := a.inodes[v.file]; ok {
		return i, nil
	}
	i, err := a.inodeOfFile(v.file)
	if err == nil {
		a.inodes[v.file] = i
	}
	return i, err
}
