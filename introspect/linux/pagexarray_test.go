package linux

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// xaFake builds XArrays in a fake guest.
type xaFake struct{ *fake }

func (f xaFake) node(shift, offset int) hypervisor.VirtAddr {
	at := f.alloc(f.types.sizes["xa_node"], 64)
	f.set(at, "xa_node.shift", uint64(shift))
	f.set(at, "xa_node.offset", uint64(offset))
	return at
}

func (f xaFake) slot(node hypervisor.VirtAddr, i int, entry uint64) {
	f.put64(f.member(node, "xa_node.slots")+hypervisor.VirtAddr(8*i), entry)
}

// A tree as the page cache has it: single pages, large ones in sibling entries and
// at a higher level, values.
func TestPagesXArray(t *testing.T) {
	f := xaFake{newFake(t, 1)}
	root, low := f.node(6, 0), f.node(0, 1)
	page := uint64(f.alloc(64, 64))
	f.slot(root, 0, page) // 64 pages
	f.slot(root, 1, uint64(low)|2)
	f.slot(root, 2, page+64) // 128 pages
	f.slot(root, 3, 2<<2|2)  // sibling of slot 2
	f.slot(low, 0, page+128) // one page
	f.slot(low, 4, page+192) // 4 pages
	f.slot(low, 5, 4<<2|2)
	f.slot(low, 6, 4<<2|2)
	f.slot(low, 7, 4<<2|2)
	f.slot(low, 9, 77<<1|1) // a value
	want := []pagesEntry{{index: 0, count: 64, entry: page}, {index: 64, count: 1, entry: page + 128}, {index: 68, count: 4, entry: page + 192},
		{index: 73, count: 1, entry: 77<<1 | 1}, {index: 128, count: 128, entry: page + 64}}
	walk := func(head, first, last uint64) (out []pagesEntry, bad int) {
		w := pagesXArray{r: &f.guest.r, f: &f.guest.lay.xa, ctx: t.Context(), first: first, last: last, left: 100,
			bad: func(hypervisor.VirtAddr, error) { bad++ }, fn: func(e pagesEntry) bool { out = append(out, e); return true }}
		if err := w.walk(head); err != nil {
			bad++
		}
		return out, bad
	}
	head := uint64(root) | 2
	for _, c := range []struct {
		first, last uint64
		want        []pagesEntry
	}{{0, ^uint64(0), want}, {70, 73, want[2:4]}, {200, 300, want[4:]}, {65, 67, nil}, {0, 63, want[:1]}, {256, 300, nil}} {
		got, bad := walk(head, c.first, c.last)
		if bad != 0 || len(got) != len(c.want) {
			t.Errorf("%d to %d: %+v, %d bad, want %+v", c.first, c.last, got, bad, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%d to %d: %+v, want %+v", c.first, c.last, got[i], c.want[i])
			}
		}
	}
	for index, want := range map[uint64]uint64{0: page, 63: page, 64: page + 128, 65: 0, 68: page + 192, 71: page + 192, 72: 0, 73: 77<<1 | 1, 128: page + 64, 255: page + 64, 256: 0, 1 << 20: 0} {
		if got, err := f.guest.r.lookupXAEntry(&f.guest.lay.xa, hypervisor.VirtAddr(head), index); got != want || err != nil {
			t.Errorf("index %d: %#x, %v, want %#x", index, got, err, want)
		}
	}
	if got, bad := walk(page, 0, 9); len(got) != 1 || bad != 0 {
		t.Errorf("a lone entry: %v", got)
	}
	f.slot(root, 5, head) // a node in itself
	f.slot(root, 6, 0x1002)
	if got, bad := walk(head, 0, ^uint64(0)); len(got) != len(want) || bad != 2 {
		t.Errorf("a cycle and a wild node: %d entries, %d bad", len(got), bad)
	}
}

// FuzzPagesXArray walks a tree of random slots: it ends, and never goes back.
func FuzzPagesXArray(f *testing.F) {
	f.Add(uint64(1), []byte{0, 1, 2, 3})
	f.Add(uint64(2), []byte{9, 2, 0xff, 3, 1, 1, 1})
	f.Fuzz(func(t *testing.T, seed uint64, data []byte) {
		x := xaFake{newFake(t, 0)}
		r := rand.New(rand.NewPCG(seed, 1))
		nodes := make([]hypervisor.VirtAddr, 6)
		for i := range nodes {
			nodes[i] = x.node(6*(len(nodes)-1-i), r.IntN(4))
		}
		for i, b := range data {
			n := nodes[i%len(nodes)]
			entry := r.Uint64()
			switch b % 5 {
			case 0:
				entry = uint64(nodes[r.IntN(len(nodes))]) | 2
			case 1:
				entry = uint64(r.IntN(64))<<2 | 2
			case 2:
				entry |= 1
			case 3:
				binary.LittleEndian.PutUint64(x.ram.b[n-fakeBase:], entry)
			}
			x.slot(n, int(b)%64, entry)
		}
		next, n := uint64(0), 0
		w := pagesXArray{r: &x.guest.r, f: &x.guest.lay.xa, ctx: t.Context(), last: ^uint64(0), left: 50, bad: func(hypervisor.VirtAddr, error) {}}
		w.fn = func(e pagesEntry) bool {
			if e.index < next || e.count == 0 {
				t.Errorf("index %d comes before %d", e.index, next)
			}
			next = e.index + e.count
			n++
			return next > e.index
		}
		_ = w.walk(uint64(nodes[0]) | 2)
		if n > 50*64 {
			t.Errorf("%d entries in 50 nodes", n)
		}
	})
}
