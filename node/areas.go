package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/introspect/paging"
	"github.com/vantage-vmi/vantage/scanner"
)

// unmappedArea is the name of memory that a process has by its page table but
// by none of the mappings that the guest's kernel tells of.
const unmappedArea = "[no mapping]"

// maxAreaBytes bounds what the areas of all processes of one scan take: a guest
// can have its processes share a million mappings.
const maxAreaBytes = 128 << 20

var errAreas = errors.New("more mappings than are kept: the rest is scanned without their names")

// areaKeeper makes areas of mappings. Names that many mappings have are kept once.
type areaKeeper struct {
	left  int // bytes
	names map[string]string
}

func newAreaKeeper() *areaKeeper {
	return &areaKeeper{left: maxAreaBytes, names: map[string]string{}}
}

// areas returns the areas of vmas, sorted. The error is errAreas when not all
// could be kept.
func (k *areaKeeper) areas(vmas []linux.VMA) ([]scanner.Area, error) {
	const each = 64 // bytes of a scanner.Area, rounded up
	fit := min(len(vmas), max(k.left, 0)/each)
	k.left -= fit * each
	out := make([]scanner.Area, 0, fit)
	for _, v := range vmas[:fit] {
		if k.left < 0 {
			break // names take their part
		}
		out = append(out, scanner.Area{Start: v.Start, End: v.End, Name: k.keep(v.Path), Perms: k.keep(v.Perms)})
	}
	slices.SortStableFunc(out, func(a, b scanner.Area) int { return cmp.Compare(a.Start, b.Start) })
	if len(out) < len(vmas) {
		return out, errAreas
	}
	return out, nil
}

func (k *areaKeeper) keep(s string) string {
	if kept, ok := k.names[s]; ok {
		return kept
	}
	s = strings.Clone(s) // of its own, not a part of something larger
	k.left -= len(s)
	k.names[s] = s
	return s
}

// userEnd returns where the user's half of an address space ends.
func userEnd(m paging.Mode) hypervisor.VirtAddr {
	if m == paging.Mode5Level {
		return 1 << 56
	}
	return 1 << 47
}

// withUnmapped returns areas, which are sorted, with what lies between them and
// holds pages: the page table says what a process has in RAM, and a guest's
// root can take a mapping out of the kernel's lists. It looks at maxPages at
// most, and says so by an error.
func withUnmapped(ctx context.Context, space scanner.Space, end hypervisor.VirtAddr, areas []scanner.Area, maxPages uint64) ([]scanner.Area, error) {
	var gaps []scanner.Area
	var failed error
	var pages uint64
	next := 0                         // the first area that ends behind the page looked at
	covered := hypervisor.VirtAddr(0) // up to where areas and gaps say what is there
	for m, err := range space.Mappings(ctx, 0, end) {
		var limit *paging.LimitError
		if err != nil || m.Size == 0 {
			if ctx.Err() != nil || errors.As(err, &limit) {
				failed = err
				break
			}
			continue // told when it is scanned
		}
		if pages += m.Size / hypervisor.PageSize; pages > maxPages {
			failed = fmt.Errorf("more than %d pages in the page table", maxPages)
			break
		}
		for last := m.Virt + hypervisor.VirtAddr(m.Size); covered < last; {
			for next < len(areas) && areas[next].End <= max(covered, m.Virt) {
				covered = max(covered, areas[next].End)
				next++
			}
			if next < len(areas) && areas[next].Start <= max(covered, m.Virt) {
				covered = areas[next].End
				continue
			}
			if covered >= last {
				break
			}
			gap := scanner.Area{Start: covered, End: end, Name: unmappedArea}
			if next < len(areas) {
				gap.End = areas[next].Start
			}
			if gap.End <= gap.Start {
				break
			}
			gaps = append(gaps, gap)
			covered = gap.End
		}
	}
	return append(areas, gaps...), failed
}
