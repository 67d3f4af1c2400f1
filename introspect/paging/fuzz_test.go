package paging

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// compare translates va both ways.
func compare(t *testing.T, as *AddressSpace, ref reference, va uint64) {
	t.Helper()
	want := ref.translate(va)
	m, err := as.Translate(hypervisor.VirtAddr(va))
	if w, werr := as.Walk(hypervisor.VirtAddr(va)); w != m || (werr == nil) != (err == nil) || err != nil && werr.Error() != err.Error() {
		t.Fatalf("%+v: Walk(%#x) = %+v, %v; Translate says %+v, %v", as.root, va, w, werr, m, err)
	}
	var hole *NotMappedError
	if want.kind != 0 {
		if !errors.As(err, &hole) || !errors.Is(err, ErrNotMapped) {
			t.Fatalf("%+v: Translate(%#x) = %+v, %v; want kind %v", as.root, va, m, err, want.kind)
		}
		if hole.Kind != want.kind || hole.Level != want.level || uint64(hole.Addr) != va {
			t.Fatalf("%+v: Translate(%#x): %v; want %v at level %d", as.root, va, hole, want.kind, want.level)
		}
		return
	}
	if err != nil {
		t.Fatalf("%+v: Translate(%#x): %v; want %+v", as.root, va, err, want)
	}
	if !m.Contains(hypervisor.VirtAddr(va)) || uint64(m.At(hypervisor.VirtAddr(va))) != want.phys || m.Size != want.size {
		t.Fatalf("%+v: Translate(%#x) = %+v; want %+v", as.root, va, m, want)
	}
	if m.Flags.Has(Write) != want.write || m.Flags.Has(User) != want.user || m.Flags.Has(NX) != want.nx {
		t.Fatalf("%+v: Translate(%#x) = %+v; want %+v", as.root, va, m, want)
	}
	pat := uint(7)
	if m.Size > hypervisor.PageSize {
		pat = 12
	}
	for flag, bit := range map[Flags]uint{PAT: pat, WriteThrough: 3, CacheDisable: 4, Accessed: 5, Dirty: 6, Global: 8} {
		if m.Flags.Has(flag) != (bits(want.leaf, bit, bit) == 1) {
			t.Fatalf("%+v: Translate(%#x) = %+v; flag %#x is not bit %d of %#x", as.root, va, m, flag, bit, want.leaf)
		}
	}
}

// compareRead reads some pages from va on both ways.
func compareRead(t *testing.T, as *AddressSpace, ref reference, va uint64) {
	t.Helper()
	p := make([]byte, 5*hypervisor.PageSize)
	n, err := as.ReadVirt(p, hypervisor.VirtAddr(va))
	for i := range p {
		at := va + uint64(i)
		want := ref.translate(at)
		if at < va || want.kind != 0 || want.phys >= uint64(len(ref.ram)) {
			if i != n || err == nil {
				t.Fatalf("%+v: ReadVirt(%#x) = %d, %v; byte %d is not there", as.root, va, n, err, i)
			}
			break
		}
		if i >= n || p[i] != ref.ram[want.phys] {
			t.Fatalf("%+v: ReadVirt(%#x) = %d, %v; byte %d is wrong", as.root, va, n, err, i)
		}
	}
	v, err := as.View(hypervisor.VirtAddr(va), uint64(len(p)))
	if err == nil && (len(v) == 0 || len(v) > n || string(v) != string(p[:len(v)])) {
		t.Fatalf("%+v: View(%#x) = %d bytes, not what ReadVirt reads", as.root, va, len(v))
	}
}

// randomTables fills RAM of pages with entries of which most lead somewhere.
func randomTables(rng *rand.Rand, pages int, wide bool) []byte {
	ram := make([]byte, pages*hypervisor.PageSize)
	step := 4
	if wide {
		step = 8
	}
	flags := []uint64{0x067, 0x063, 0x025, 0x0e7, 0x1e3, 0x001, 0x087, 0x07f}
	for i := 0; i < len(ram); i += step {
		e := uint64(rng.IntN(pages+1))<<12 | flags[rng.IntN(len(flags))]
		switch rng.IntN(24) {
		case 0, 1:
			e = 0
		case 2:
			e &^= 1
		case 3:
			e |= 1 << (12 + rng.IntN(52))
		case 4:
			e |= 1 << 63
		case 5:
			e = rng.Uint64()
		case 6:
			e = rng.Uint64()<<21 | 0x83
		case 7:
			e |= 1 << 7
		}
		if wide {
			binary.LittleEndian.PutUint64(ram[i:], e)
		} else {
			binary.LittleEndian.PutUint32(ram[i:], uint32(e))
		}
	}
	return ram
}

// randomAddress returns an address that is mostly canonical and often near a
// border.
func randomAddress(rng *rand.Rand, m Mode) uint64 {
	va := rng.Uint64()
	if rng.IntN(8) == 0 {
		return va
	}
	switch m {
	case Mode32, ModePAE:
		return va & 0xffffffff
	case Mode5Level:
		return uint64(int64(va) << 7 >> 7)
	}
	return uint64(int64(va) << 16 >> 16)
}

func FuzzTranslate(f *testing.F) {
	for mode := range uint8(4) {
		f.Add(mode, uint8(3), uint8(0), uint64(1), uint64(0x1234_5678))
		f.Add(mode, uint8(0), uint8(36), uint64(2), uint64(0xffff_8000_0000_0000))
	}
	f.Fuzz(checkRandomTables)
}

// TestRandomTables is FuzzTranslate with more seeds than a fuzzer is given.
func TestRandomTables(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 11))
	for i := range 400 {
		checkRandomTables(t, uint8(i), uint8(rng.Uint32()), uint8(rng.Uint32()), rng.Uint64(), rng.Uint64())
	}
}

func checkRandomTables(t *testing.T, mode, opts, width uint8, seed, va uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	root := Root{Mode: Mode32 + Mode(mode%4), NX: opts&1 != 0, PSE: opts&2 != 0}
	root.PhysBits = []uint8{0, 36, 40}[width%3]
	root.EncryptionMask = []uint64{0, 1 << 47, 1<<39 | 1<<51, 1<<34 | 0xfff}[width>>2%4]
	ram := randomTables(rng, 24, root.Mode != Mode32)
	root.CR3 = hypervisor.PhysAddr(rng.IntN(25)<<12 | rng.IntN(4096))
	ref := reference{ram: ram, root: root}
	var mem hypervisor.Memory = flat(ram)
	switch opts >> 2 % 3 {
	case 1:
		mem = mappedFlat{ram}
	case 2:
		mem = splitFlat{ram}
	}
	as := New(mem, root, WithMaxTables(64), WithMaxMappings(4096))
	compare(t, as, ref, va)
	for i := range 40 {
		a := randomAddress(rng, root.Mode)
		compare(t, as, ref, a)
		compare(t, as, ref, a^1) // from the TLB
		if i%8 == 0 {
			compareRead(t, as, ref, a)
		}
	}
	last, first := hypervisor.VirtAddr(0), true
	lo := hypervisor.VirtAddr(randomAddress(rng, root.Mode))
	for m, err := range as.Mappings(t.Context(), lo, 0) {
		var limit *LimitError
		if errors.As(err, &limit) {
			break
		}
		if !first && m.Virt <= last {
			t.Fatalf("Mappings: %v after %v", m.Virt, last)
		}
		first, last = false, m.Virt
		at := max(m.Virt, lo)
		want := ref.translate(uint64(at))
		var hole *NotMappedError
		switch {
		case errors.As(err, &hole):
			if hole.Kind != want.kind || hole.Level != want.level {
				t.Fatalf("%+v: Mappings: %v; want %+v", root, hole, want)
			}
		case err != nil:
			t.Fatal(err)
		case uint64(m.At(at)) != want.phys || m.Size != want.size || m.Flags.Has(Write) != want.write ||
			m.Flags.Has(User) != want.user || m.Flags.Has(NX) != want.nx:
			t.Fatalf("%+v: Mappings: %+v; want %+v", root, m, want)
		}
	}
}

// FuzzRawTables has no generator between the fuzzer and the tables.
func FuzzRawTables(f *testing.F) {
	f.Add(uint8(2), []byte{0x67, 0, 0, 0, 0, 0, 0, 0}, uint64(0))
	f.Add(uint8(3), []byte{0xe7, 0x10, 0, 0, 0, 0, 0, 0x80}, uint64(1<<57))
	f.Add(uint8(0), []byte{0xe7, 0x10, 0, 0}, uint64(1<<22))
	f.Add(uint8(1), []byte{0x01, 0, 0, 0, 0, 0, 0, 0, 1}, uint64(0xffffffff))
	f.Fuzz(func(t *testing.T, mode uint8, ram []byte, va uint64) {
		root := Root{Mode: Mode32 + Mode(mode%4), NX: mode&4 != 0, PSE: mode&8 != 0}
		as := New(mappedFlat{ram}, root, WithMaxTables(100), WithMaxMappings(2000))
		compare(t, as, reference{ram: ram, root: root}, va)
		n := 0
		for _, err := range as.Runs(t.Context(), 0, 0, 0) {
			_ = err
			n++
		}
		if n > 2001 {
			t.Fatalf("%d runs", n)
		}
		_, _ = as.ReadVirt(make([]byte, 10000), hypervisor.VirtAddr(va))
		_, _ = as.View(hypervisor.VirtAddr(va), 10000)
	})
}
