package linux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// maxMissing is how many ranges of missing pages a ContentCoverage keeps.
const maxMissing = 4096

// ContentRange is a part of a Content, in bytes from its beginning.
type ContentRange struct {
	Offset uint64 `json:"offset"`
	Size   uint64 `json:"size"`
}

// ContentCoverage says which pages of a Content there were in the guest's RAM.
type ContentCoverage struct {
	// Pages that a core has no room for, since none of those around them are
	// in RAM, are counted too.
	PagesTotal   uint64 `json:"pages_total"`
	PagesRead    uint64 `json:"pages_read"`
	PagesMissing uint64 `json:"pages_missing"`
	// PagesFromSwap are those of PagesRead that were swapped out, and were read
	// back from compressed memory (zram).
	PagesFromSwap uint64 `json:"pages_from_swap"`
	// Missing are the parts that are zero because they were not in RAM, in
	// ascending order: the first 4096 of them.
	Missing []ContentRange `json:"missing,omitempty"`
	// Problems are what could not be believed on the way.
	Problems *introspect.Coverage `json:"-"`
}

// Complete reports whether nothing was missing.
func (c *ContentCoverage) Complete() bool { return c.PagesMissing == 0 && c.Problems.Complete() }

func (c *ContentCoverage) read(pages uint64) { c.PagesTotal += pages; c.PagesRead += pages }

// miss notes that pages at offset are not there.
func (c *ContentCoverage) miss(offset, size uint64) {
	n := (size + hypervisor.PageSize - 1) / hypervisor.PageSize
	c.PagesTotal += n
	c.PagesMissing += n
	if k := len(c.Missing); k > 0 && c.Missing[k-1].Offset+c.Missing[k-1].Size == offset {
		c.Missing[k-1].Size += size
		return
	}
	if len(c.Missing) < maxMissing {
		c.Missing = append(c.Missing, ContentRange{offset, size})
	}
}

// Content is something that can be taken out of a guest's RAM: a file, a memory
// area, the core of a process.
type Content struct {
	// Path is what the guest calls it; a guest string.
	Path string
	// Size is how many bytes WriteTo writes.
	Size uint64

	copy func(ctx context.Context, w *contentWriter) error
}

// JSONPath returns Path as it goes into JSON: see the package comment.
func (c *Content) JSONPath() string { return jsonText(c.Path) }

// WriteTo writes the content to w. What is not in RAM is written as zeros and
// told in the coverage. progress, which may be nil, is called now and then with
// the number of bytes written so far. A live guest may change what is read.
//
// The error is that of w or ctx, or tells that the content could not be read at
// all (any more).
func (c *Content) WriteTo(ctx context.Context, w io.Writer, progress func(done uint64)) (*ContentCoverage, error) {
	out := &contentWriter{w: w, cov: &ContentCoverage{Problems: &introspect.Coverage{}}, progress: progress}
	if err := c.copy(ctx, out); err != nil {
		return out.cov, err
	}
	if out.at != c.Size {
		return out.cov, fmt.Errorf("wrote %d bytes of %d: %w", out.at, c.Size, ErrTorn)
	}
	return out.cov, nil
}

// contentWriter writes a Content and keeps its coverage.
type contentWriter struct {
	w        io.Writer
	at       uint64
	cov      *ContentCoverage
	progress func(done uint64)
	buf      []byte
}

// contentChunk is how many bytes are read and written at a time.
const contentChunk = 256 << 10

func (w *contentWriter) write(p []byte) error {
	n, err := w.w.Write(p)
	w.at += uint64(n)
	if err == nil && w.progress != nil {
		w.progress(w.at)
	}
	return err
}

// zeros writes n zero bytes that are the content.
func (w *contentWriter) zeros(ctx context.Context, n uint64) error {
	zero := w.chunk()
	clear(zero)
	for n > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		k := min(n, uint64(len(zero)))
		if err := w.write(zero[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// missing writes zeros for n bytes that are not in RAM.
func (w *contentWriter) missing(ctx context.Context, n uint64) error {
	if n > 0 {
		w.cov.miss(w.at, n)
	}
	return w.zeros(ctx, n)
}

func (w *contentWriter) chunk() []byte {
	if w.buf == nil {
		w.buf = make([]byte, contentChunk)
	}
	return w.buf
}

// phys writes the n bytes of physical memory at gpa; a page that cannot be read
// is missing.
func (w *contentWriter) phys(ctx context.Context, mem hypervisor.Memory, gpa hypervisor.PhysAddr, n uint64) error {
	for n > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		p := w.chunk()[:min(n, contentChunk)]
		got, _ := mem.ReadPhys(p, gpa)
		if got < 0 || got > len(p) {
			return errors.New("read of physical memory returned a wrong count")
		}
		if got < len(p) {
			got &^= hypervisor.PageSize - 1
		}
		w.cov.read((uint64(got) + hypervisor.PageSize - 1) / hypervisor.PageSize)
		if err := w.write(p[:got]); err != nil {
			return err
		}
		if got < len(p) {
			lost := min(uint64(len(p)-got), hypervisor.PageSize)
			if err := w.missing(ctx, lost); err != nil {
				return err
			}
			got += int(lost)
		}
		n -= uint64(got)
		gpa += hypervisor.PhysAddr(got)
	}
	return nil
}

// fileContent returns the regular file with inode i.
func (l *pagesLook) fileContent(path string, i pagesInode) (*Content, error) {
	switch {
	case i.mode&sIFMT != sIFREG:
		return nil, ErrNotRegular
	case i.size > maxFileSize:
		return nil, fmt.Errorf("file of %d bytes: %w", i.size, ErrLimit)
	}
	return &Content{Path: path, Size: i.size, copy: func(ctx context.Context, w *contentWriter) error {
		return l.copyFile(ctx, w, &i)
	}}, nil
}

func (l *pagesLook) copyFile(ctx context.Context, w *contentWriter, i *pagesInode) error {
	start := w.at
	end := start + i.size
	torn := false
	gap := func(to uint64) error {
		to = min(to, end)
		if w.at >= to {
			return nil
		}
		if torn || !i.inMemory() {
			return w.missing(ctx, to-w.at)
		}
		w.cov.read((to - w.at + hypervisor.PageSize - 1) / hypervisor.PageSize)
		return w.zeros(ctx, to-w.at)
	}
	if i.size == 0 {
		return nil
	}
	bad := func(at hypervisor.VirtAddr, err error) {
		torn = true
		w.cov.Problems.Add("page cache", at, err)
	}
	err := l.runs(ctx, i, 0, (i.size-1)/hypervisor.PageSize, bad, func(r pageRun) error {
		if r.index > math.MaxUint64/hypervisor.PageSize || start+r.index*hypervisor.PageSize >= end {
			return nil
		}
		at := start + r.index*hypervisor.PageSize
		if err := gap(at); err != nil {
			return err
		}
		if w.at > at {
			return nil // overlaps with what was written: an entry that lies
		}
		n := min(end-at, r.count*hypervisor.PageSize)
		if r.swap != 0 {
			return l.copySwapped(ctx, w, r.swap, n)
		}
		return w.phys(ctx, l.g.mem, r.phys, n)
	})
	if err != nil {
		if ctx.Err() != nil || w.at > start {
			return err
		}
		bad(i.mapping, err)
	}
	return gap(end)
}

// CachedFile returns the regular file that path names, from the root directory
// of the guest's first process; symbolic links are followed. It is found when
// the guest has its name in its cache of directory entries (ErrNotCached
// otherwise); which of its pages are in the page cache, Content.WriteTo tells.
func (g *Guest) CachedFile(ctx context.Context, path string) (*Content, error) {
	return g.cachedFile(ctx, path, func(l *pagesLook) (filePath, pagesInode, error) { return l.lookup(ctx, path) })
}

// CachedFileOf is CachedFile from the root directory of process p: a file as a
// container names it.
func (g *Guest) CachedFileOf(ctx context.Context, p Process, path string) (*Content, error) {
	return g.cachedFile(ctx, path, func(l *pagesLook) (filePath, pagesInode, error) {
		root, err := l.taskRoot(p.KernelAddress)
		if err != nil {
			return root, pagesInode{}, fmt.Errorf("root directory: %w", err)
		}
		return l.lookupAt(ctx, root, path)
	})
}

func (g *Guest) cachedFile(ctx context.Context, path string, find func(*pagesLook) (filePath, pagesInode, error)) (*Content, error) {
	var last error
	for range g.rounds() {
		l, err := g.newPagesLook(nil)
		if err != nil {
			return nil, err
		}
		at, i, err := find(l)
		if err == nil {
			if i.fsType == "overlay" && i.mode&sIFMT == sIFREG {
				return nil, fmt.Errorf("file %q: %w", path, errOverlay)
			}
			name, err := l.paths.of(at)
			if err != nil {
				name = path
			}
			c, err := l.fileContent(name, i)
			if err != nil {
				return nil, fmt.Errorf("file %q: %w", path, err)
			}
			return c, nil
		}
		last = err
		if ctx.Err() != nil || errors.Is(err, ErrNotCached) {
			break
		}
	}
	return nil, fmt.Errorf("file %q: %w", path, last)
}

// ReadCached returns the first limit bytes of the file that path names: see
// CachedFile. What of it is not in the page cache is zero and told in the
// coverage.
func (g *Guest) ReadCached(ctx context.Context, path string, limit int) ([]byte, *introspect.Coverage, error) {
	var best []byte
	var cov *introspect.Coverage
	for range g.rounds() {
		c, err := g.CachedFile(ctx, path)
		if err != nil {
			return nil, nil, err
		}
		w := &limitedBuffer{left: limit}
		cc, err := c.WriteTo(ctx, w, nil)
		if err != nil && !errors.Is(err, errBufferFull) {
			return nil, nil, fmt.Errorf("file %q: %w", path, err)
		}
		now := &introspect.Coverage{}
		now.Merge(cc.Problems)
		for _, m := range cc.Missing {
			if m.Offset < uint64(limit) {
				now.Add("page cache", 0, fmt.Errorf("%d bytes at %d: %w", m.Size, m.Offset, hypervisor.ErrUnreadable))
			}
		}
		if cov == nil || now.Total() < cov.Total() {
			best, cov = w.b, now
		}
		if cov.Complete() {
			break
		}
	}
	return best, cov, nil
}

var errBufferFull = errors.New("buffer is full")

// limitedBuffer keeps the first bytes that are written to it.
type limitedBuffer struct {
	b    []byte
	left int
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.b = append(l.b, p[:n]...)
	l.left -= n
	if n < len(p) {
		return n, errBufferFull
	}
	return n, nil
}
