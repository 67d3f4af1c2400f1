package paging

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// tables builds 4-level page tables in RAM.
type tables struct {
	ram  []byte
	next uint64 // page for the next table
	top  uint64
}

func newTables(size uint64) *tables {
	return &tables{ram: make([]byte, size), top: 0x1000, next: 0x2000}
}

func (b *tables) put(addr, e uint64) { binary.LittleEndian.PutUint64(b.ram[addr:], e) }

// leaf puts e into the entry of va at level (1 to 4), making the tables above it.
func (b *tables) leaf(va uint64, level int, e uint64) {
	table := b.top
	for l := 4; l > level; l-- {
		at := table + va>>(12+9*(l-1))&511*8
		below := binary.LittleEndian.Uint64(b.ram[at:])
		if below == 0 {
			below = b.next | 7
			b.next += 0x1000
			b.put(at, below)
		}
		table = below &^ 0xfff
	}
	b.put(table+va>>(12+9*(level-1))&511*8, e)
}

func (b *tables) root() Root {
	return Root{Mode: Mode4Level, CR3: hypervisor.PhysAddr(b.top), NX: true}
}

func TestRootFromRegisters(t *testing.T) {
	const valid = hypervisor.GroupControl
	for _, c := range []struct {
		name string
		regs hypervisor.Registers
		want Root
		err  error
	}{
		{"none", hypervisor.Registers{}, Root{}, hypervisor.ErrNotSupported},
		{"real mode", hypervisor.Registers{Valid: valid, CR0: 0x10}, Root{}, ErrPagingOff},
		{"32-bit", hypervisor.Registers{Valid: valid, CR0: 1 << 31, CR3: 0x1018, CR4: 0x10, EFER: 0x800}, Root{Mode: Mode32, CR3: 0x1000, PSE: true}, nil},
		{"PAE", hypervisor.Registers{Valid: valid, CR0: 1 << 31, CR3: 0x1038, CR4: 0x20}, Root{Mode: ModePAE, CR3: 0x1020}, nil},
		{"PAE, NX", hypervisor.Registers{Valid: valid, CR0: 1 << 31, CR3: 0x1020, CR4: 0x30, EFER: 0x800}, Root{Mode: ModePAE, CR3: 0x1020, NX: true}, nil},
		{"4-level, PCID", hypervisor.Registers{Valid: valid, CR0: 0x80050033, CR3: 0x8000_0001_0000_1003, CR4: 0x6f0, EFER: 0xd01}, Root{Mode: Mode4Level, CR3: 0x1_0000_1000, NX: true}, nil},
		{"5-level", hypervisor.Registers{Valid: valid, CR0: 0x80050033, CR3: 0x1000, CR4: 0x16f0, EFER: 0x501}, Root{Mode: Mode5Level, CR3: 0x1000}, nil},
	} {
		got, err := RootFromRegisters(c.regs)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.name, got, err, c.want, c.err)
		}
	}
}

// Each bit that must be zero, one by one (Intel SDM 3A, tables 4-4 to 4-20).
func TestReservedBits(t *testing.T) {
	const large = 1 << 7
	for _, c := range []struct {
		name     string
		root     Root
		level    int
		entry    uint64
		reserved []int // bits; all others of 63:1 must pass, PS aside
	}{
		{"PTE", Root{Mode: Mode4Level, NX: true}, 1, 1, nil},
		{"PTE, no NX", Root{Mode: Mode4Level}, 1, 1, []int{63}},
		{"PTE, 46 bits", Root{Mode: Mode4Level, NX: true, PhysBits: 46}, 1, 1, span(46, 51)},
		{"PTE, 46 bits, C-bit 47", Root{Mode: Mode4Level, NX: true, PhysBits: 46, EncryptionMask: 1 << 47}, 1, 1, []int{46, 48, 49, 50, 51}},
		{"PDE of 2 MiB", Root{Mode: Mode4Level, NX: true}, 2, 1 | large, span(13, 20)},
		{"PDPTE of 1 GiB", Root{Mode: Mode4Level, NX: true}, 3, 1 | large, span(13, 29)},
		{"PDPTE of 1 GiB, 40 bits", Root{Mode: Mode5Level, NX: true, PhysBits: 40}, 3, 1 | large, append(span(13, 29), span(40, 51)...)},
		{"PDE of 4 MiB", Root{Mode: Mode32, PSE: true}, 2, 1 | large, []int{21}},
		{"PDE of 4 MiB, 36 bits", Root{Mode: Mode32, PSE: true, PhysBits: 36}, 2, 1 | large, span(17, 21)},
		{"PAE PTE", Root{Mode: ModePAE, NX: true}, 1, 1, span(52, 62)},
		{"PAE PDE of 2 MiB", Root{Mode: ModePAE, NX: true}, 2, 1 | large, append(span(13, 20), span(52, 62)...)},
		{"PAE PDE", Root{Mode: ModePAE, NX: true}, 2, 1, span(52, 62)},
		{"PAE PDPTE", Root{Mode: ModePAE, NX: true}, 3, 1, append([]int{1, 2, 6, 7, 8}, span(52, 63)...)},
		{"PDE", Root{Mode: Mode4Level}, 2, 1, []int{63}},
		{"PML4E", Root{Mode: Mode4Level, NX: true}, 4, 1, []int{7}},
		{"PML5E", Root{Mode: Mode5Level, NX: true, PhysBits: 50}, 5, 1, []int{7, 50, 51}},
	} {
		l, err := newLayout(c.root)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(l.levels, func(lv level) bool { return lv.number == c.level })
		for bit := 1; bit < 64; bit++ {
			if bit == 7 && c.level < 4 && !slices.Contains(c.reserved, 7) || c.root.Mode == Mode32 && bit > 31 {
				continue
			}
			got := l.decode(&l.levels[i], c.entry|1<<bit).kind == KindReserved
			if want := slices.Contains(c.reserved, bit); got != want {
				t.Errorf("%s: bit %d reserved: %v, want %v", c.name, bit, got, want)
			}
		}
	}
}

func span(from, to int) (out []int) {
	for i := from; i <= to; i++ {
		out = append(out, i)
	}
	return out
}

func TestUnknownMode(t *testing.T) {
	as := New(flat(make([]byte, 4096)), Root{})
	if _, err := as.Translate(0); !errors.Is(err, ErrBadRoot) {
		t.Errorf("Translate: %v", err)
	}
	for _, err := range as.Mappings(t.Context(), 0, 0) {
		if !errors.Is(err, ErrBadRoot) {
			t.Errorf("Mappings: %v", err)
		}
	}
}

// A top table whose every entry is the table itself has 512^4 leaves.
func TestSelfReferentialTables(t *testing.T) {
	b := newTables(1 << 20)
	for i := range uint64(512) {
		b.put(b.top+i*8, b.top|7)
	}
	count := func(ctx context.Context, opts ...Option) (n uint64, last error) {
		for _, err := range New(mappedFlat{b.ram}, b.root(), opts...).Mappings(ctx, 0, 0) {
			if err != nil {
				last = err
				continue
			}
			n++
		}
		return n, last
	}
	var limit *LimitError
	n, err := count(t.Context(), WithMaxTables(1000))
	if !errors.As(err, &limit) || !errors.Is(err, ErrLimit) || limit.Max != 1000 || limit.At == 0 || n > 512*1000 {
		t.Errorf("%d pages, then %v", n, err)
	}
	n, err = count(t.Context(), WithMaxMappings(5000))
	if !errors.As(err, &limit) || n != 5000 {
		t.Errorf("%d pages, then %v", n, err)
	}
	// By default: 2 * 256 pages of RAM and 4096.
	n, err = count(t.Context())
	if !errors.As(err, &limit) || limit.Max != 4608 {
		t.Errorf("%d pages, then %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err = count(ctx); !errors.Is(err, context.Canceled) || n != 0 {
		t.Errorf("%d pages, then %v", n, err)
	}
	for _, err := range New(flat(b.ram), b.root()).Mappings(t.Context(), 0, 0) {
		_ = err
		break // a consumer may stop
	}
}

func TestReadVirtOverPages(t *testing.T) {
	for _, zeroCopy := range []bool{true, false} {
		b := newTables(1 << 20)
		rng := rand.New(rand.NewPCG(1, 1))
		for i := 0x80000; i < len(b.ram); i++ {
			b.ram[i] = byte(rng.Uint32())
		}
		const va = uint64(0xffff_8000_0000_0000)
		b.leaf(va, 1, 0x80000|3)
		b.leaf(va+0x1000, 1, 0xf0000|3)
		b.leaf(va+0x2000, 1, 0x81000|3)
		b.leaf(va+0x3000, 1, 0x82000|3)
		b.leaf(va+0x4000, 1, 0x7_0000_0080) // swapped
		b.leaf(va+0x5000, 1, 0x4000_0000|3) // no RAM
		var mem hypervisor.Memory = flat(b.ram)
		if zeroCopy {
			mem = mappedFlat{b.ram}
		}
		as := New(mem, b.root())
		want := bytes.Join([][]byte{b.ram[0x80000:0x81000], b.ram[0xf0000:0xf1000], b.ram[0x81000:0x83000]}, nil)
		p := make([]byte, len(want)+16)
		for range 200 {
			off := rng.IntN(len(want))
			size := 1 + rng.IntN(len(want)-off)
			if n, err := as.ReadVirt(p[:size], hypervisor.VirtAddr(va)+hypervisor.VirtAddr(off)); n != size || err != nil || !bytes.Equal(p[:size], want[off:off+size]) {
				t.Fatalf("ReadVirt(%d bytes, +%#x) = %d, %v", size, off, n, err)
			}
			view, err := as.View(hypervisor.VirtAddr(va)+hypervisor.VirtAddr(off), uint64(size))
			switch {
			case !zeroCopy:
				if !errors.Is(err, hypervisor.ErrNotSupported) {
					t.Fatalf("View without a Mapper: %v", err)
				}
			case err != nil || len(view) == 0 || !bytes.Equal(view, want[off:off+len(view)]):
				t.Fatalf("View(+%#x, %d) = %d bytes, %v", off, size, len(view), err)
			}
		}
		if zeroCopy {
			if v, err := as.View(hypervisor.VirtAddr(va+0x2010), 1<<40); err != nil || len(v) != 0x1ff0 {
				t.Errorf("View of contiguous pages = %#x bytes, %v; want two pages less 16", len(v), err)
			}
		}
		n, err := as.ReadVirt(p, hypervisor.VirtAddr(va))
		var hole *NotMappedError
		if n != len(want) || !errors.As(err, &hole) || hole.Kind != KindSwapped || uint64(hole.Addr) != va+0x4000 || hole.Entry != 0x7_0000_0080 {
			t.Errorf("ReadVirt into a swapped page = %d, %v", n, err)
		}
		if !bytes.Equal(p[:n], want) {
			t.Error("the bytes before the hole are wrong")
		}
		if n, err := as.ReadVirt(p, hypervisor.VirtAddr(va+0x5000)); n != 0 || !errors.Is(err, hypervisor.ErrNotRAM) || errors.Is(err, ErrNotMapped) {
			t.Errorf("ReadVirt of no RAM = %d, %v", n, err)
		}
		if _, err := as.ReadVirt(p, 0x8000_0000_0000); !errors.As(err, &hole) || hole.Kind != KindNonCanonical {
			t.Errorf("ReadVirt of a non-canonical address: %v", err)
		}
		if _, err := as.ReadVirt(p, ^hypervisor.VirtAddr(0)); !errors.Is(err, ErrNotMapped) {
			t.Errorf("ReadVirt at the top: %v", err)
		}
	}
}

// What is read at the very top of the address space must not go on at 0.
func TestReadVirtDoesNotWrap(t *testing.T) {
	b := newTables(1 << 20)
	b.leaf(0xffff_ffff_ffff_f000, 1, 0x80000|3)
	b.leaf(0, 1, 0x81000|3)
	as := New(mappedFlat{b.ram}, b.root())
	n, err := as.ReadVirt(make([]byte, 8192), 0xffff_ffff_ffff_f000)
	if n != 4096 || !errors.Is(err, ErrNotMapped) {
		t.Errorf("ReadVirt = %d, %v", n, err)
	}
	if v, err := as.View(0xffff_ffff_ffff_f800, 1<<30); len(v) != 0x800 || err != nil {
		t.Errorf("View = %d bytes, %v", len(v), err)
	}
}

func TestRuns(t *testing.T) {
	b := newTables(1 << 20)
	b.leaf(0x1000, 1, 0x80000|7)
	b.leaf(0x2000, 1, 0x90000|7|1<<5|1<<6)      // accessed and dirty do not matter
	b.leaf(0x3000, 1, 0x81000|5)                // read-only
	b.leaf(0x4000, 1, 0x1230)                   // swapped
	b.leaf(0x5000, 1, 0x82000|5|1<<63)          // no execute
	b.leaf(0x20_0000, 2, 0x20_0000|0x87)        // 2 MiB
	b.leaf(0x40_0000, 1, 0x83000|7)             // right behind it, equal
	b.leaf(0xffff_ffff_ffff_f000, 1, 0x84000|3) // the last page
	as := New(flat(b.ram), b.root())
	var got []Run
	holes := 0
	for r, err := range as.Runs(t.Context(), 0, 0, 0) {
		if err != nil {
			var hole *NotMappedError
			if holes++; !errors.As(err, &hole) || hole.Kind != KindSwapped || r != (Run{Virt: 0x4000, Size: 0x1000}) {
				t.Errorf("hole %+v: %v", r, err)
			}
			continue
		}
		got = append(got, r)
	}
	want := []Run{
		{0x1000, 0x2000, Write | User},
		{0x3000, 0x1000, User},
		{0x5000, 0x1000, User | NX},
		{0x20_0000, 0x20_1000, Write | User},
		{0xffff_ffff_ffff_f000, 0x1000, Write},
	}
	if holes != 1 || len(got) != len(want) {
		t.Fatalf("%d holes, runs %+v", holes, got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("run %d = %+v, want %+v", i, got[i], want[i])
		}
	}
	n := 0
	for r, err := range as.Runs(t.Context(), 0x1000, 0x3000, 0x1000) {
		if n++; err != nil || r.Size != 0x1000 {
			t.Errorf("run of at most a page: %+v, %v", r, err)
		}
	}
	if n != 2 {
		t.Errorf("%d runs of at most a page in [0x1000, 0x3000)", n)
	}
	// The bounds need not be those of pages: what they touch is yielded whole.
	for m, err := range as.Mappings(t.Context(), 0x2fff, 0x3001) {
		if n++; err != nil || m.Virt != 0x2000 && m.Virt != 0x3000 || m.Size != 0x1000 {
			t.Errorf("in [0x2fff, 0x3001): %+v, %v", m, err)
		}
	}
	if n != 4 {
		t.Errorf("%d pages in [0x2fff, 0x3001), want 2", n-2)
	}
	for m, err := range as.Mappings(t.Context(), 0x3000, 0x3000) {
		t.Errorf("in an empty range: %+v, %v", m, err)
	}
}

func TestStaleness(t *testing.T) {
	b := newTables(1 << 20)
	b.leaf(0x1000, 1, 0x80000|7)
	b.leaf(0x3000, 1, 0)
	as := New(mappedFlat{b.ram}, b.root())
	phys := func(va hypervisor.VirtAddr) hypervisor.PhysAddr {
		p, err := as.PhysOf(va)
		if err != nil {
			return 0
		}
		return p
	}
	if phys(0x1008) != 0x80008 || phys(0x3000) != 0 {
		t.Fatal("not translated")
	}
	// A failure is not kept, a translation is.
	b.leaf(0x3000, 1, 0x81000|7)
	b.leaf(0x1000, 1, 0x82000|7)
	if got := phys(0x3000); got != 0x81000 {
		t.Errorf("a failure was kept: %v", got)
	}
	if got := phys(0x1008); got != 0x80008 {
		t.Errorf("before Flush: %v", got)
	}
	as.Flush()
	if got := phys(0x1008); got != 0x82008 {
		t.Errorf("after Flush: %v", got)
	}
	// Upper levels too.
	b.put(b.top, 0)
	if got := phys(0x3000); got != 0x81000 {
		t.Errorf("before Flush: %v", got)
	}
	as.Flush()
	if got := phys(0x3000); got != 0 {
		t.Errorf("after Flush: %v", got)
	}
}

// Large reads and views go by the kept last-level table: a Flush ends that too.
func TestStalenessOfTables(t *testing.T) {
	b := newTables(1 << 20)
	for i := range uint64(4) {
		b.leaf(i<<12, 1, (0x80000+i<<12)|7)
		b.ram[0x80000+i<<12] = 'o'
	}
	as := New(mappedFlat{b.ram}, b.root())
	p := make([]byte, 0x4000)
	read := func() byte {
		t.Helper()
		if n, err := as.ReadVirt(p, 0); n != len(p) || err != nil {
			t.Fatalf("ReadVirt = %#x, %v", n, err)
		}
		v, err := as.View(0, 1<<20)
		if err != nil || len(v) != 0x4000 || v[0] != p[0] || p[0] != p[0x3000] {
			t.Fatalf("View = %#x bytes, %v", len(v), err)
		}
		return p[0]
	}
	if got := read(); got != 'o' {
		t.Fatalf("read %q", got)
	}
	// All new tables, from the top.
	b.put(b.top, 0)
	for i := range uint64(4) {
		b.leaf(i<<12, 1, (0x90000+i<<12)|7)
		b.ram[0x90000+i<<12] = 'n'
	}
	as.Flush()
	if got := read(); got != 'n' {
		t.Errorf("after Flush: read %q", got)
	}
}

// A view may fault: the file behind it was truncated.
func TestTornFile(t *testing.T) {
	b := newTables(1 << 20)
	b.leaf(0x1000, 1, 0x80000|7)
	b.leaf(0x2000, 1, 0x81000|7)
	b.leaf(0x3000, 1, 0x82000|7)
	path := filepath.Join(t.TempDir(), "ram")
	if err := os.WriteFile(path, b.ram, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	ram, err := unix.Mmap(int(f.Fd()), 0, len(b.ram), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(ram) }()
	as := New(mappedFlat{ram}, b.root())
	p := make([]byte, 0x3000)
	if n, err := as.ReadVirt(p, 0x1000); n != len(p) || err != nil {
		t.Fatalf("ReadVirt = %d, %v", n, err)
	}
	if err := f.Truncate(0x81000); err != nil {
		t.Fatal(err)
	}
	if n, err := as.ReadVirt(p, 0x1100); n != 0xf00 || !errors.Is(err, hypervisor.ErrUnreadable) {
		t.Errorf("ReadVirt of a torn page = %#x, %v", n, err)
	}
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	as.Flush()
	var hole *NotMappedError
	if _, err := as.Translate(0x1000); !errors.As(err, &hole) || hole.Kind != KindUnreadable || !errors.Is(err, hypervisor.ErrUnreadable) {
		t.Errorf("Translate by torn tables: %v", err)
	}
	for m, err := range as.Mappings(t.Context(), 0, 0) {
		if !errors.Is(err, hypervisor.ErrUnreadable) {
			t.Errorf("Mappings by torn tables: %+v, %v", m, err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	b := newTables(4 << 20)
	for i := range uint64(256) {
		b.leaf(0x10_0000+i<<12, 1, (0x10_0000+i<<12)|7)
		b.put(0x10_0000+i<<12, i)
	}
	as := New(mappedFlat{b.ram}, b.root())
	var wg sync.WaitGroup
	for g := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(g, 1))
			p := make([]byte, 8)
			for i := range 20000 {
				n := rng.Uint64N(256)
				if _, err := as.ReadVirt(p, hypervisor.VirtAddr(0x10_0000+n<<12)); err != nil || binary.LittleEndian.Uint64(p) != n {
					t.Errorf("page %d: %v, %v", n, p, err)
					return
				}
				if i%1000 == 0 {
					as.Flush()
				}
			}
		})
	}
	wg.Wait()
}
