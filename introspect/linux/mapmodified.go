package linux

import (
	"bytes"
	"errors"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// modified counts n pages of a private mapping that are not the file's.
func (w *mapWalk) modified(a *Area, n uint64) {
	a.Modified += n
	if a.Perms[2] == 'x' {
		a.ModifiedExec += n
	}
}

// compare counts those of the n pages at phys, the process's own copies of what
// a has from at on, that differ from what the page cache has.
func (w *mapWalk) compare(a *Area, f mapFile, at hypervisor.VirtAddr, phys hypervisor.PhysAddr, n uint64) {
	i, err := w.pages.inodeOfFile(f.file)
	if err != nil {
		w.cov.Add("file of a mapping", f.file, err)
		w.modified(a, n)
		return
	}
	if i.mode&sIFMT != sIFREG {
		return // /dev/zero: there is no file's content
	}
	index := (a.Offset + uint64(at-a.Start)) >> hypervisor.PageShift
	for k := range n {
		if w.left--; w.left < 0 || w.ctx.Err() != nil {
			return
		}
		if !w.same(&i, index+k, phys+hypervisor.PhysAddr(k<<hypervisor.PageShift)) {
			w.modified(a, 1)
		}
	}
}

// same reports whether the page cache has page index of i, and it is equal to
// the one at phys.
func (w *mapWalk) same(i *pagesInode, index uint64, phys hypervisor.PhysAddr) bool {
	cached, ok, err := w.pages.cachedPage(i, index)
	if err != nil || !ok {
		return false
	}
	if cached == phys {
		return true
	}
	for _, r := range []struct {
		b  []byte
		at hypervisor.PhysAddr
	}{{w.a[:], phys}, {w.b[:], cached}} {
		if n, err := w.g.mem.ReadPhys(r.b, r.at); n < len(r.b) || err != nil {
			return false
		}
	}
	return bytes.Equal(w.a[:], w.b[:])
}

// swappedFile adds the pages of a file of tmpfs (shared anonymous memory too)
// that are out: only the file's tree of pages tells of them.
func (w *mapWalk) swappedFile(as *paging.AddressSpace, a *Area, f mapFile) error {
	if f.file == 0 || f.flags&vmHugeTLB != 0 || !w.f.shmemInode.ok || !w.f.shmemSwapped.ok {
		return nil
	}
	i, err := w.pages.inodeOfFile(f.file)
	if err != nil {
		return err
	}
	if i.fsType != "tmpfs" {
		return nil
	}
	swapped, err := w.g.r.u64(i.addr - hypervisor.VirtAddr(w.f.shmemInode.off) + hypervisor.VirtAddr(w.f.shmemSwapped.off))
	if err != nil || swapped == 0 {
		return err
	}
	head, _, err := w.pages.mappingHead(i.mapping, i.addr)
	if err != nil {
		return err
	}
	first := a.Offset >> hypervisor.PageShift
	last := first + a.Size()>>hypervisor.PageShift - 1
	if last < first {
		return ErrTorn
	}
	// A private mapping may have a copy of its own.
	private := f.flags&vmMayShare == 0
	x := pagesXArray{r: &w.g.r, f: &w.g.lay.xa, ctx: w.ctx, first: first, last: last, left: maxFileNodes}
	x.bad = func(at hypervisor.VirtAddr, err error) { w.cov.Add("swapped pages of a file", at, err) }
	x.fn = func(e pagesEntry) bool {
		if e.entry&xaValueBit == 0 {
			return true
		}
		lo, hi := max(e.index, first), min(e.index+e.count, last+1)
		if !private {
			a.Swapped += hi - lo
			return true
		}
		for k := lo; k < hi; k++ {
			if w.left--; w.left < 0 {
				return false
			}
			_, err := as.Translate(a.Start + hypervisor.VirtAddr((k-first)<<hypervisor.PageShift))
			var hole *paging.NotMappedError
			if errors.As(err, &hole) && hole.Kind == paging.KindNotPresent {
				a.Swapped++
			}
		}
		return true
	}
	return x.walk(head)
}
