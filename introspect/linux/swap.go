package linux

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

const (
	// maxSwaps is the most areas there can be (include/linux/swap.h:
	// MAX_SWAPFILES, less what other things take of their numbers).
	maxSwaps = 32
	// swapUsed is SWP_USED, include/linux/swap.h.
	swapUsed = 1
	// swapOffsetBits is where the number of the area begins in a swp_entry_t
	// (include/linux/swapops.h: SWP_TYPE_SHIFT).
	swapOffsetBits = 58
)

// Swap is an area that the guest swaps to: a line of /proc/swaps.
type Swap struct {
	// Name is the path of the file or device.
	Name string `json:"name"`
	// Disk is the name of the block device that it is on.
	Disk     string `json:"disk"`
	Size     uint64 `json:"size"` // bytes
	Used     uint64 `json:"used"` // bytes
	Priority int    `json:"priority"`
	// Compressed: it is compressed memory (zram), which is read back.
	Compressed bool `json:"compressed"`
}

// MarshalJSON writes s with its strings made valid: see the package comment.
func (s Swap) MarshalJSON() ([]byte, error) {
	type plain Swap
	q := plain(s)
	q.Name, q.Disk = jsonText(s.Name), jsonText(s.Disk)
	return json.Marshal(q)
}

// swapArea is a swap_info_struct.
type swapArea struct {
	Swap
	max           uint64 // pages, the header among them
	private       hypervisor.VirtAddr
	zeromap       hypervisor.VirtAddr
	zram          *zramDevice
	zramErr       error
	looked, valid bool
}

var (
	errSwapNone   = errors.New("the entry is of no swap area")
	errSwapDevice = errors.New("the page is on a swap device, which is not read")
)

// swapIsOut reports whether err says that a page is just not in RAM; any other
// error says that something could not be believed.
func swapIsOut(err error) bool {
	for _, e := range []error{errSwapNone, errSwapDevice, errZramSlot, errZramAway, profile.ErrNoBTF, profile.ErrNoType, profile.ErrNoSymbol} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// Swaps lists the guest's swap areas, in the kernel's order.
func (g *Guest) Swaps(ctx context.Context) ([]Swap, *introspect.Coverage, error) {
	cov := &introspect.Coverage{}
	l, err := g.newPagesLook(nil)
	if err != nil {
		return nil, cov, fmt.Errorf("swap areas: %w", err)
	}
	s, err := l.newSwapLook(cov)
	if err != nil {
		return nil, cov, fmt.Errorf("swap areas: %w", err)
	}
	out := []Swap{}
	for i := range maxSwaps {
		if ctx.Err() != nil {
			return out, cov, ctx.Err()
		}
		a, err := s.area(uint64(i))
		if err != nil {
			cov.Add("swap area", s.f.infos, err)
			continue
		}
		if a != nil {
			out = append(out, a.Swap)
		}
	}
	return out, cov, nil
}

// swapLook reads swap areas. It is for one goroutine.
type swapLook struct {
	g       *Guest
	f       *swapTable
	pages   *pagesLook
	count   int
	areas   [maxSwaps]swapArea
	decoder swapDecoder
}

func (l *pagesLook) newSwapLook(cov *introspect.Coverage) (*swapLook, error) {
	g := l.g
	f, err := tableOf[swapTable](g, cov)
	if err != nil {
		return nil, err
	}
	s := &swapLook{g: g, f: f, pages: l, count: maxSwaps}
	if f.count != 0 {
		n, err := g.r.u32(f.count)
		if err != nil {
			return nil, err
		}
		s.count = int(min(n, maxSwaps))
	}
	return s, nil
}

// area returns swap area n, nil when there is none.
func (s *swapLook) area(n uint64) (*swapArea, error) {
	if n >= uint64(s.count) {
		return nil, nil
	}
	a := &s.areas[n]
	if !a.looked {
		a.looked = true
		valid, err := s.read(a, n)
		if err != nil {
			return nil, err
		}
		a.valid = valid
	}
	if !a.valid {
		return nil, nil
	}
	return a, nil
}

func (s *swapLook) read(a *swapArea, n uint64) (ok bool, err error) {
	r, f := &s.g.r, s.f
	at, err := r.ptr(f.infos + hypervisor.VirtAddr(8*n))
	if err != nil || at == 0 {
		return false, err
	}
	if err := r.check(f.infos, at, 8); err != nil {
		return false, err
	}
	o, _, err := r.object(nil, at, f.span)
	if err != nil {
		return false, err
	}
	if o.uint(f.flags)&swapUsed == 0 {
		return false, nil
	}
	used := o.uint(f.inuse)
	if used > o.uint(f.pages) {
		used &^= 1 << 30 // SWAP_USAGE_OFFLIST_BIT, since 6.14
	}
	a.Size, a.Used = o.uint(f.pages)*hypervisor.PageSize, used*hypervisor.PageSize
	a.Priority, a.max, a.zeromap = int(int16(o.uint(f.prio))), o.uint(f.max), o.ptr(f.zeromap)
	if file := o.ptr(f.file); file != 0 {
		a.Name, _ = s.pages.paths.ofFile(file)
	}
	bdev := o.ptr(f.bdev)
	if bdev == 0 || !f.disk.ok || !f.diskName.ok || !f.diskPrivate.ok {
		return true, nil
	}
	if err := r.check(at, bdev, 8); err != nil {
		return true, nil //nolint:nilerr // the area is there, whatever it is on
	}
	disk, err := r.ptr(bdev + hypervisor.VirtAddr(f.disk.off))
	if err != nil || r.check(bdev, disk, 8) != nil {
		return true, nil //nolint:nilerr // as above
	}
	d, _, err := r.object(nil, disk, spanOf(f.diskName, f.diskPrivate))
	if err != nil {
		return true, nil //nolint:nilerr // as above
	}
	a.Disk, a.private = cString(d.bytes(f.diskName)), d.ptr(f.diskPrivate)
	a.Compressed = strings.HasPrefix(a.Disk, "zram")
	return true, nil
}

// swapEntryOfPTE returns the kernel's swp_entry_t of a page table's entry
// (arch/x86/include/asm/pgtable_64.h: the type in bits 59 to 63, the offset
// inverted in bits 9 to 58).
func swapEntryOfPTE(entry uint64) uint64 {
	return entry>>59<<swapOffsetBits | ^entry<<5>>14
}

// page reads the page that the swp_entry_t entry stands for.
func (s *swapLook) page(page []byte, entry uint64) error {
	kind, offset := entry>>swapOffsetBits, entry&(1<<swapOffsetBits-1)
	a, err := s.area(kind)
	if err != nil {
		return err
	}
	if a == nil {
		return errSwapNone // an entry of another kind: a page on its way elsewhere
	}
	if offset == 0 || offset >= a.max {
		return fmt.Errorf("page %d of swap area %d: %w", offset, kind, ErrTorn)
	}
	if a.zeromap != 0 && s.f.zeromap.ok && s.g.r.check(s.f.infos, a.zeromap, 8) == nil {
		word, err := s.g.r.u64(a.zeromap + hypervisor.VirtAddr(offset/64*8))
		if err == nil && word>>(offset%64)&1 != 0 {
			clear(page)
			return nil
		}
	}
	if !a.Compressed {
		return errSwapDevice
	}
	if a.zram == nil && a.zramErr == nil {
		a.zram, a.zramErr = s.openZram(a.private)
	}
	if a.zramErr != nil {
		return a.zramErr
	}
	return a.zram.page(s, page, offset)
}

// copySwapped writes the n bytes of pages that were swapped out, the first of
// which the swp_entry_t entry stands for.
func (l *pagesLook) copySwapped(ctx context.Context, w *contentWriter, entry, n uint64) error {
	if l.swap == nil && l.swapErr == nil {
		l.swap, l.swapErr = l.newSwapLook(nil)
	}
	page := make([]byte, hypervisor.PageSize)
	for n > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		size := min(n, hypervisor.PageSize)
		err := l.swapErr
		if err == nil {
			err = l.swap.page(page, entry)
		}
		if err == nil {
			w.cov.read(1)
			w.cov.PagesFromSwap++
			err = w.write(page[:size])
		} else {
			if !swapIsOut(err) {
				w.cov.Problems.Add("swap", 0, err)
			}
			err = w.missing(ctx, size)
		}
		if err != nil {
			return err
		}
		n -= size
		entry++
	}
	return nil
}
