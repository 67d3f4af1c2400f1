package linux

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// patch is one lie: value is written at an address of the fake guest.
func patch(lies []byte, at hypervisor.VirtAddr, value uint64) []byte {
	lies = binary.LittleEndian.AppendUint32(lies, uint32(at-fakeBase))
	return binary.LittleEndian.AppendUint64(lies, value)
}

// FuzzTaskWalk writes lies into a guest and does all that this package can do
// with it: every answer is bounded and none is a panic.
func FuzzTaskWalk(f *testing.F) {
	const processes = 6
	g, rq := viewFake(f, processes)
	task := func(i int) hypervisor.VirtAddr { return g.member(g.processes[i].task, "task_struct.tasks") }
	f.Add([]byte{})
	f.Add(patch(nil, task(3), uint64(task(1))))                            // a cycle
	f.Add(patch(nil, task(3), 0x4141414141414141))                         // a wild pointer
	f.Add(patch(patch(nil, task(3), 0), task(4)+8, 0))                     // both ways
	f.Add(patch(nil, g.member(g.root, "xa_node.slots"), uint64(g.root)|2)) // an index that points to itself
	f.Add(patch(nil, g.root, 0xffff))                                      // shift and offset
	f.Add(patch(nil, g.member(g.processes[2].mm, "mm_struct.arg_end"), 1<<47))
	f.Add(patch(nil, g.member(g.processes[2].mm, "mm_struct.pgd"), uint64(fakeBase)))
	f.Add(patch(nil, g.member(g.processes[2].mm, "mm_struct.mm_mt.ma_root"), uint64(g.root)|3<<3|6))
	f.Add(patch(nil, g.member(g.rootDentry, "dentry.d_parent"), uint64(fakeBase)))
	f.Add(patch(nil, g.member(g.mnt, "mount.mnt_parent"), uint64(g.mnt)+8))
	f.Add(patch(nil, g.modList, uint64(g.kset)))
	f.Add(patch(nil, fakeBase+fakeTables+0x5000, 1<<63))
	f.Add(patch(nil, g.member(g.css, "css_set.tasks"), uint64(g.member(g.css, "css_set.mg_tasks"))))
	f.Add(patch(nil, g.member(rq, "rq.cfs_tasks"), uint64(g.member(g.processes[2].task, "task_struct.cg_list"))))
	f.Add(patch(nil, g.member(rq, "rq.dl.root.rb_root.rb_node"), uint64(rq)))
	f.Add(patch(nil, g.member(rq, "rq.rt.active.bitmap"), ^uint64(0)))
	f.Add(patch(nil, g.member(rq, "rq.curr"), uint64(g.processes[1].signal)))
	f.Fuzz(func(t *testing.T, lies []byte) {
		g, _ := viewFake(t, processes)
		for len(lies) >= 12 {
			at := uint64(binary.LittleEndian.Uint32(lies)) % (fakeSize - 8)
			binary.LittleEndian.PutUint64(g.ram.b[at:], binary.LittleEndian.Uint64(lies[4:]))
			lies = lies[12:]
		}
		g.guest.Flush()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		l, _ := g.guest.Processes(ctx, ProcessOptions{Threads: true})
		// The list, the index, and what is met in other records.
		if limit := 5 * maxThreads(g.ram); len(l.Processes) > limit {
			t.Errorf("%d processes, at most %d", len(l.Processes), limit)
		}
		for _, p := range l.Processes[:min(len(l.Processes), 2*processes)] {
			if _, err := json.Marshal(p); err != nil {
				t.Error(err)
			}
			vmas, _, _ := g.guest.VMAs(ctx, p)
			for _, v := range vmas {
				if v.Start >= v.End {
					t.Errorf("mapping from %#x to %#x", v.Start, v.End)
				}
			}
			if as, err := g.guest.ProcessSpace(p); (as == nil) == (err == nil) {
				t.Errorf("address space %v, %v", as, err)
			}
		}
		if ms, err := g.guest.Modules(ctx); err == nil && len(ms.Modules) > 3*maxModules*maxModuleTypes {
			t.Errorf("%d modules", len(ms.Modules))
		}
		if _, err := g.guest.Info(ctx); err != nil {
			t.Errorf("info: %v", err)
		}
		if ctx.Err() != nil {
			t.Error("it took longer than 20 s")
		}
	})
}

// rawMemory is a reader over bytes that lie at fakeBase.
type rawMemory []byte

func (m rawMemory) ReadVirt(p []byte, va hypervisor.VirtAddr) (int, error) {
	if va < fakeBase || uint64(va-fakeBase) >= uint64(len(m)) {
		return 0, hypervisor.ErrUnreadable
	}
	n := copy(p, m[va-fakeBase:])
	if n < len(p) {
		return n, hypervisor.ErrUnreadable
	}
	return n, nil
}

func FuzzXArray(f *testing.F) {
	lay, err := newLayout(newFakeTypes())
	if err != nil {
		f.Fatal(err)
	}
	size := int(lay.xa.span.hi)
	node := func(shift byte, slot byte, entries map[int]uint64) []byte {
		b := make([]byte, (size+63)&^63)
		b[0], b[1] = shift, slot
		for i, e := range entries {
			binary.LittleEndian.PutUint64(b[int(lay.xa.slots.off)+8*i:], e)
		}
		return b
	}
	base := uint64(fakeBase)
	stride := uint64((size + 63) &^ 63)
	f.Add(uint64(0), []byte{})
	f.Add(base, []byte{}) // a lone entry
	f.Add(base|2, node(0, 0, map[int]uint64{1: base + 64, 2: 5, 63: base + 128, 5: 2}))
	f.Add(base|2, append(node(6, 0, map[int]uint64{1: (base + stride) | 2, 2: base + 8}), node(0, 1, map[int]uint64{0: base})...))
	f.Add(base|2, node(6, 0, map[int]uint64{0: base | 2, 1: base | 2}))
	f.Add(base|2, node(66, 0, nil))
	f.Fuzz(func(t *testing.T, head uint64, memory []byte) {
		r := &reader{virtReader: rawMemory(memory), lowest: kernelHalf4Level}
		const maxIndex, maxNodes = 1 << 20, 1000
		var last int64 = -1
		entries := 0
		bad := func(hypervisor.VirtAddr, error) {}
		err := r.walkXArray(t.Context(), &lay.xa, hypervisor.VirtAddr(head), maxIndex, maxNodes, bad, func(index uint64, entry hypervisor.VirtAddr) bool {
			if int64(index) <= last || index > maxIndex || entry == 0 || entry&3 != 0 {
				t.Errorf("entry %#x at %d after %d", entry, index, last)
			}
			last = int64(index)
			if entries++; entries > maxNodes*64 {
				t.Fatal("too many entries")
			}
			if entries < 64 {
				if got, err := r.lookupXArray(&lay.xa, hypervisor.VirtAddr(head), index); err == nil && got != entry {
					t.Errorf("index %d: walk says %#x, lookup %#x", index, entry, got)
				}
			}
			return true
		})
		if err != nil && !errors.Is(err, ErrLimit) {
			t.Errorf("the walk failed: %v", err)
		}
	})
}

func FuzzMapleTree(f *testing.F) {
	lay, err := newLayout(newFakeTypes())
	if err != nil {
		f.Fatal(err)
	}
	node := func(pivots []uint64, slotsAt int, slots []uint64) []byte {
		b := make([]byte, 256)
		for i, p := range pivots {
			binary.LittleEndian.PutUint64(b[8+8*i:], p)
		}
		for i, s := range slots {
			binary.LittleEndian.PutUint64(b[slotsAt+8*i:], s)
		}
		return b
	}
	base := uint64(fakeBase)
	leaf := node([]uint64{0xfff, 0x1fff, 0x2fff}, 128, []uint64{0, base + 512, 0, base + 520})
	f.Add(uint64(0), []byte{})
	f.Add(base, []byte{})
	f.Add(base|1<<3|6, leaf)
	f.Add(base|2<<3|6, append(node([]uint64{0x2fff}, 128, []uint64{(base + 256) | 1<<3 | 4, base | 2<<3 | 4}), leaf...))
	f.Add(base|3<<3|6, append(node([]uint64{0x2fff, 0x5fff}, 80, []uint64{(base + 256) | 1<<3 | 4, (base + 256) | 1<<3 | 4}), leaf...))
	f.Add(base|6, leaf)
	f.Add(base|3<<3|6, node([]uint64{^uint64(0)}, 80, []uint64{base | 3<<3 | 4}))
	f.Fuzz(func(t *testing.T, root uint64, memory []byte) {
		r := &reader{virtReader: rawMemory(memory), lowest: kernelHalf4Level}
		const maxNodes = 1000
		next, entries := uint64(0), 0
		bad := func(hypervisor.VirtAddr, error) {}
		err := r.walkMaple(t.Context(), &lay.maple, root, maxNodes, bad, func(first, last uint64, entry hypervisor.VirtAddr) bool {
			if first > last || first < next || entry == 0 {
				t.Errorf("entry %#x at %#x-%#x, after %#x", entry, first, last, next)
			}
			if entries++; entries > maxNodes*32 {
				t.Fatal("too many entries")
			}
			next = last + 1
			return next != 0
		})
		if err != nil && !errors.Is(err, ErrLimit) {
			t.Errorf("the walk failed: %v", err)
		}
	})
}
