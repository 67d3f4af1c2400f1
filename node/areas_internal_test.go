package node

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/introspect/paging"
	"github.com/vantage-vmi/vantage/scanner"
)

// pages is an address space with these pages.
type pages []paging.Mapping

func (p pages) Mappings(_ context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[paging.Mapping, error] {
	return func(yield func(paging.Mapping, error) bool) {
		for _, m := range p {
			if m.Virt >= lo && m.Virt < hi && !yield(m, nil) {
				return
			}
		}
	}
}

func small(at ...hypervisor.VirtAddr) (out pages) {
	for _, a := range at {
		out = append(out, paging.Mapping{Virt: a, Size: hypervisor.PageSize})
	}
	return out
}

func TestPagesOutsideOfMappings(t *testing.T) {
	const end = 1 << 47
	area := func(start, end hypervisor.VirtAddr) scanner.Area { return scanner.Area{Start: start, End: end} }
	gap := func(start, end hypervisor.VirtAddr) scanner.Area {
		return scanner.Area{Start: start, End: end, Name: unmappedArea}
	}
	two := []scanner.Area{area(0x1000, 0x3000), area(0x8000, 0xa000)}
	for name, c := range map[string]struct {
		space pages
		areas []scanner.Area
		gaps  []scanner.Area
	}{
		"all mapped":         {small(0x1000, 0x2000, 0x8000, 0x9000), two, nil},
		"nothing there":      {nil, two, nil},
		"no mappings":        {small(0x5000, 0x6000), nil, []scanner.Area{gap(0, end)}},
		"in front":           {small(0, 0x1000), two, []scanner.Area{gap(0, 0x1000)}},
		"between, two pages": {small(0x2000, 0x4000, 0x6000, 0x8000), two, []scanner.Area{gap(0x3000, 0x8000)}},
		"behind":             {small(0x2000, 0x9000, 0xa000, 0x7fff_ffff_e000), two, []scanner.Area{gap(0xa000, end)}},
		"everywhere": {
			small(0, 0x1000, 0x3000, 0x8000, 0xb000), two,
			[]scanner.Area{gap(0, 0x1000), gap(0x3000, 0x8000), gap(0xa000, end)},
		},
		"a large page over all": {
			pages{{Virt: 0, Size: 2 << 20}}, two,
			[]scanner.Area{gap(0, 0x1000), gap(0x3000, 0x8000), gap(0xa000, end)},
		},
		"mappings that touch": {small(0x1000, 0x2000, 0x3000), []scanner.Area{area(0x1000, 0x2000), area(0x2000, 0x4000)}, nil},
		"mappings that overlap": {
			small(0x1000, 0x2000, 0x3000, 0x6000), []scanner.Area{area(0x1000, 0x5000), area(0x2000, 0x3000)},
			[]scanner.Area{gap(0x5000, end)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := withUnmapped(t.Context(), c.space, end, slices.Clone(c.areas), 1<<20)
			if want := append(slices.Clone(c.areas), c.gaps...); err != nil || !slices.Equal(got, want) {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
		})
	}
	if _, err := withUnmapped(t.Context(), small(0, 0x1000, 0x2000), end, nil, 2); err == nil {
		t.Error("no error for more pages than there may be")
	}
}

func TestAreasAreBounded(t *testing.T) {
	k := newAreaKeeper()
	long := strings.Repeat("x", 4096)
	vmas := make([]linux.VMA, 1<<16)
	for i := range vmas {
		at := hypervisor.VirtAddr(i) << 13
		vmas[i] = linux.VMA{Start: at, End: at + 0x1000, Path: long, Perms: "r--p"}
	}
	kept, lost := 0, 0
	for range 1000 {
		as, err := k.areas(vmas)
		kept += len(as)
		if errors.Is(err, errAreas) {
			lost++
		} else if len(as) != len(vmas) {
			t.Fatalf("%d areas of %d, no error", len(as), len(vmas))
		}
	}
	if kept*56 > maxAreaBytes || lost == 0 {
		t.Errorf("%d areas kept, %d times too many", kept, lost)
	}
}
