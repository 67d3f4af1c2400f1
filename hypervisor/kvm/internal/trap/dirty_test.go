package trap

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// dirtyGuest writes to every third of 96 pages from dataAt on, round after round,
// until something is at moreAt+0xff8.
const dirtyGuest = `
	b9 20 00 00 00                ; 1: mov ecx, 32
	89 da                         ; mov edx, ebx
	48 ff 02                      ; 2: inc qword ptr [rdx]
	81 c2 00 30 00 00             ; add edx, 0x3000
	ff c9                         ; dec ecx
	75 f3                         ; jnz 2b
	8b 8d f8 0f 00 00             ; mov ecx, [rbp+0xff8]
	85 c9                         ; test ecx, ecx
	74 e2                         ; jz 1b
	e6 98                         ; out 0x98, al
	eb fe                         ; jmp $
`

// The pages that the guest writes are found while it runs, each time, and none
// else; a trap on some of them hides nothing.
func testDirty(t *testing.T) {
	ctx := context.Background()
	g := newGuest(t, 1, dirtyGuest)
	want := map[hypervisor.Frame]bool{}
	for i := range hypervisor.Frame(32) {
		want[dataAt>>12+3*i] = true
	}
	dirty := func() map[hypervisor.Frame]bool {
		t.Helper()
		ranges, err := g.e.Dirty(ctx)
		if err != nil {
			t.Fatal(err)
		}
		got := map[hypervisor.Frame]bool{}
		for _, r := range ranges {
			for f := r.Start.Frame(); f < r.End().Frame(); f++ {
				got[f] = true
			}
		}
		return got
	}
	if _, err := g.e.Dirty(ctx); err == nil {
		t.Error("dirty pages, and no one tracks them")
	}
	if err := g.e.StartDirty(ctx); err != nil {
		t.Fatal(err)
	}
	g.start()
	round := func() { // the guest has been everywhere once more
		t.Helper()
		last := uint64(dataAt + 3*31*4096)
		from := g.word(last)
		for end := time.Now().Add(patienceOfTests); g.word(last) < from+2; {
			if time.Now().After(end) {
				g.stuck()
			}
		}
	}
	// KVM counts a page that it has to map as written, whatever the guest does with
	// it; and with NPT, or with EPT's accessed bits, page tables that the processor
	// walks.
	check := func(more ...hypervisor.Frame) {
		t.Helper()
		got := dirty()
		for f := range want {
			if !got[f] {
				t.Errorf("frame %#x is written, and not dirty", f)
			}
			delete(got, f)
		}
		for _, f := range more {
			delete(got, f)
		}
		if len(got) > 0 {
			t.Errorf("dirty are %#x too", slices.Sorted(maps.Keys(got)))
		}
	}
	tables := []hypervisor.Frame{tablesAt >> 12, tablesAt>>12 + 1, tablesAt>>12 + 2, tablesAt>>12 + 3}
	read := append(slices.Clone(tables), codeAt>>12, moreAt>>12)
	round()
	check(read...)
	for range 3 {
		round()
		if ept() || npt() {
			check(tables...)
		} else {
			check()
		}
	}
	told := &events{}
	id := g.set(hypervisor.Trap{Kind: hypervisor.TrapPage, Access: hypervisor.AccessWrite, Addr: dataAt, Size: 2 * 4096, MaxRate: 100}, told.handle)
	dirty()
	round()
	check(read...)
	if err := g.e.RemoveTrap(ctx, id); err != nil {
		t.Fatal(err)
	}
	if len(told.all()) == 0 {
		t.Error("the trap was not told")
	}
	g.write(moreAt+0xff8, []byte{1})
	g.wait(1)
	want[(moreAt+0xff8)>>12] = true // by the host
	g.vm.Stop()
	got := dirty()
	for f := range got {
		if !want[f] && !slices.Contains(read, f) {
			t.Errorf("frame %#x is dirty", f)
		}
	}
	if !got[(moreAt+0xff8)>>12] {
		t.Error("the host's own write is missing")
	}
	if got := dirty(); len(got) != 0 {
		t.Errorf("a stopped guest has written %v", got)
	}
	if err := g.e.StopDirty(ctx); err != nil {
		t.Fatal(err)
	}
	g.vm.Go()
}
