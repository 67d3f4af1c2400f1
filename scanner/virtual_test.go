package scanner

import (
	"fmt"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

const heap hypervisor.VirtAddr = 0x5555_0000_0000

// process returns a process with areas, and its space.
func process(pid int, areas ...Area) (ProcessTarget, *space) {
	s := newSpace()
	return ProcessTarget{PID: pid, Comm: fmt.Sprintf("proc%d", pid), Space: s, Areas: areas}, s
}

// pages is the area of n pages at va.
func pages(va hypervisor.VirtAddr, n int, name string) Area {
	return Area{Start: va, End: va + hypervisor.VirtAddr(n*pageSize), Name: name}
}

func TestStringCrossesFrames(t *testing.T) {
	m := newRAM(16)
	noise(m.bytes)
	p, s := process(7, pages(heap, 3, "[heap]"))
	s.mapPages(heap, 9, 4, 12) // neither next to each other nor in order
	at := heap + pageSize - 5
	s.write(m, at, needle)
	fs, sum := runScan(t, m, mustRules(t, needleRule), []Target{p}, Options{VM: "vm1"})
	if len(fs) != 1 {
		t.Fatalf("findings: %+v", fs)
	}
	f := fs[0]
	wantPhys := hypervisor.Frame(9).Addr() + pageSize - 5
	if f.VM != "vm1" || f.Rule != "needle" || f.Namespace != "t/r.yar" || f.PID != 7 || f.Comm != "proc7" || f.Where != "[heap]" ||
		f.Offset != pageSize-5 || *f.VirtAddr != at || f.PhysAddr != wantPhys {
		t.Errorf("finding: %+v", f)
	}
	if len(f.Strings) != 1 || f.StringsTruncated {
		t.Fatalf("strings: %+v", f.Strings)
	}
	if g := f.Strings[0]; g.Name != "$n" || g.Offset != f.Offset || *g.VirtAddr != at || g.PhysAddr != wantPhys ||
		g.Data != needle || g.Length != len(needle) || g.Truncated {
		t.Errorf("string: %+v", g)
	}
	if sum.PagesTotal != 3 || sum.PagesRead != 3 || sum.BytesScanned != 3*pageSize || !sum.Complete {
		t.Errorf("summary: %+v", sum)
	}
}

// TestStringCrossesCut moves a string over the cuts between extents.
func TestStringCrossesCut(t *testing.T) {
	const n = 64
	size := 16 * pageSize
	r := mustRules(t, needleRule)
	for d := -len(needle) - 2; d <= 2; d++ {
		for cut := size; cut < n*pageSize; cut += size {
			m := newRAM(2 * n)
			noise(m.bytes)
			p, s := process(1, pages(heap, n, ""))
			for i := range n {
				s.mapPages(heap+hypervisor.VirtAddr(i*pageSize), hypervisor.Frame(2*n-1-2*i)) // backwards, with holes
			}
			at := heap + hypervisor.VirtAddr(cut+d)
			s.write(m, at, needle)
			fs, sum := runScan(t, m, r, []Target{p}, Options{extentSize: size})
			if len(fs) != 1 || len(fs[0].Strings) != 1 || *fs[0].Strings[0].VirtAddr != at {
				t.Fatalf("cut %#x, distance %d: %+v", cut, d, fs)
			}
			if sum.PagesTotal != n || sum.BytesScanned != n*pageSize {
				t.Fatalf("summary: %+v", sum)
			}
		}
	}
}

func TestStringCrossesAreas(t *testing.T) {
	m := newRAM(8)
	noise(m.bytes)
	p, s := process(1, pages(heap+pageSize, 1, "b"), pages(heap, 1, "a")) // in no order
	s.mapPages(heap, 5, 2)
	s.write(m, heap+pageSize-4, needle)
	fs, sum := runScan(t, m, mustRules(t, needleRule), []Target{p}, Options{})
	if len(fs) != 1 || fs[0].Where != "a" || fs[0].Offset != pageSize-4 || *fs[0].VirtAddr != heap+pageSize-4 {
		t.Fatalf("findings: %+v", fs)
	}
	if sum.PagesTotal != 2 || sum.BytesScanned != 2*pageSize {
		t.Errorf("the pages around the border count twice: %+v", sum)
	}
}

// TestGrowingMatchAtBorder has a regular expression that matches up to the end
// of an area, and more with the next area: one place, told once.
func TestGrowingMatchAtBorder(t *testing.T) {
	m := newRAM(8)
	noise(m.bytes)
	p, s := process(1, pages(heap, 1, "a"), pages(heap+pageSize, 1, "b"))
	s.mapPages(heap, 1, 3)
	s.write(m, heap+pageSize-6, "START-1234567890")
	fs, _ := runScan(t, m, mustRules(t, `rule r { strings: $a = /START-?[0-9]*/ condition: $a }`), []Target{p}, Options{})
	if len(fs) != 1 || len(fs[0].Strings) != 1 {
		t.Errorf("findings: %+v", fs)
	}
}

// TestNothingIsJoined puts the halves of a string on both sides of missing
// pages: not neighbours, so no match.
func TestNothingIsJoined(t *testing.T) {
	for name, miss := range map[string]func(*ram, *space){
		"not mapped": func(_ *ram, s *space) { delete(s.frames, heap+pageSize) },
		"swapped": func(_ *ram, s *space) {
			delete(s.frames, heap+pageSize)
			s.holes[heap+pageSize] = &paging.NotMappedError{Kind: paging.KindSwapped, Level: 1, Entry: 2}
		},
		"unreadable": func(m *ram, s *space) { m.bad[s.frames[heap+pageSize]] = hypervisor.ErrUnreadable },
		"not RAM":    func(m *ram, s *space) { s.frames[heap+pageSize] = 1 << 30 },
		"zero": func(m *ram, s *space) {
			// Of five zero pages the middle is left out.
			s.mapPages(heap+5*pageSize, s.frames[heap+2*pageSize])
			s.mapPages(heap+pageSize, 0, 0, 0, 0)
			clear(m.page(0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newRAM(16)
			noise(m.bytes)
			p, s := process(1, pages(heap, 6, ""))
			s.mapPages(heap, 3, 4, 5)
			s.write(m, heap+pageSize-8, needle[:8])
			s.write(m, heap+2*pageSize, needle[8:])
			miss(m, s)
			// The second rule could reach over a gap in the buffer.
			fs, _ := runScan(t, m, mustRules(t, needleRule+`
				rule far { strings: $a = { 4E 45 45 44 4C 45 2D 30 [0-12000] 31 32 33 34 35 36 } condition: $a }
				rule reach { strings: $a = /NEEDLE-0[\x00]{0,4000}123456789/ condition: $a }`), []Target{p}, Options{})
			if len(fs) != 0 {
				t.Errorf("findings: %+v", fs)
			}
		})
	}
}

// TestZeroPagesAtStrings checks that the zeros next to other bytes are seen.
func TestZeroPagesAtStrings(t *testing.T) {
	m := newRAM(64)
	p, s := process(1, pages(heap, 64, ""))
	for i := range 64 {
		s.mapPages(heap+hypervisor.VirtAddr(i*pageSize), hypervisor.Frame(63-i))
	}
	s.write(m, heap+20*pageSize-3, "END")
	s.write(m, heap+40*pageSize, "BEGIN")
	fs, sum := runScan(t, m, mustRules(t, `
		rule end { strings: $a = { 45 4E 44 00 00 00 00 } condition: $a }
		rule begin { strings: $a = { 00 00 00 00 42 45 47 49 4E } condition: $a }`), []Target{p}, Options{})
	if len(fs) != 2 || *fs[0].VirtAddr != heap+20*pageSize-3 || *fs[1].VirtAddr != heap+40*pageSize-4 {
		t.Errorf("findings: %+v", fs)
	}
	if sum.PagesRead != 64 || sum.PagesSkipped != 64-2-2*3 || sum.BytesScanned != 8*pageSize {
		t.Errorf("summary: %+v", sum)
	}
}

func TestSharedPagesAreScannedOnce(t *testing.T) {
	const lib hypervisor.VirtAddr = 0x7f00_0000_0000
	m := newRAM(128)
	noise(m.bytes)
	var targets []Target
	for pid := range 10 {
		at := lib + hypervisor.VirtAddr(pid)<<24 // where the loader put it
		p, s := process(pid+1, pages(at, 8, "/lib/libc.so"), pages(heap, 1, "[heap]"))
		s.mapPages(at, 10, 11, 12, 20, 21, 22, 23, 24)
		s.mapPages(heap, hypervisor.Frame(100+pid))
		s.write(m, at+3*pageSize-2, needle)
		targets = append(targets, p)
	}
	fs, sum := runScan(t, m, mustRules(t, needleRule), targets, Options{Workers: 4})
	if len(fs) != 10 {
		t.Fatalf("%d findings", len(fs))
	}
	for i, f := range fs {
		if f.PID != i+1 || *f.VirtAddr != lib+hypervisor.VirtAddr(i)<<24+3*pageSize-2 || f.PhysAddr != 13*pageSize-2 || f.Offset != 3*pageSize-2 {
			t.Errorf("finding %d: %+v", i, f)
		}
	}
	if sum.BytesScanned != (8+10)*pageSize || sum.BytesFromCache != 9*8*pageSize || sum.PagesRead != 90 {
		t.Errorf("summary: %+v", sum)
	}
	if m.reads[22] != 1 {
		t.Errorf("a shared page was read %d times", m.reads[22])
	}

	// A rule that asks for the process is asked for each.
	fs, sum = runScan(t, m, mustRules(t, `rule mine { strings: $n = "NEEDLE-" condition: $n and pid == 3 and comm == "proc3" and kind == "process" and where == "/lib/libc.so" }`), targets, Options{})
	if len(fs) != 1 || fs[0].PID != 3 || sum.BytesFromCache != 0 {
		t.Errorf("findings: %+v, %+v", fs, sum)
	}
}

// TestLikeIsNotSame has extents that differ in one thing only.
func TestLikeIsNotSame(t *testing.T) {
	key := func(change func(*extent)) cacheKey {
		e := &extent{subject: &subject{kind: "process"}, lo: 0x1000, hi: 0x5000, runs: []run{{0x1000, 0x10000, 0x2000}, {0x4000, 0x20000, 0x1000}}}
		change(e)
		return e.key(nil, "")
	}
	seen := map[cacheKey]string{}
	for name, change := range map[string]func(*extent){
		"itself": func(*extent) {},
		"frame":  func(e *extent) { e.runs[1].phys += pageSize },
		"hole":   func(e *extent) { e.runs[1].addr += pageSize },
		"size":   func(e *extent) { e.runs[1].size += pageSize },
		"own":    func(e *extent) { e.hi -= pageSize },
		"start":  func(e *extent) { e.lo += pageSize },
		"border": func(e *extent) { e.border = 0x3000 },
		"less":   func(e *extent) { e.runs = e.runs[:1] },
	} {
		k := key(change)
		if other, ok := seen[k]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[k] = name
	}
	moved := key(func(e *extent) {
		e.lo, e.hi = e.lo+0x7000, e.hi+0x7000
		for i := range e.runs {
			e.runs[i].addr += 0x7000
		}
	})
	if seen[moved] != "itself" {
		t.Error("the same frames at another address have another key")
	}
}

func TestKernel(t *testing.T) {
	m := newRAM(16)
	noise(m.bytes)
	s := newSpace()
	const text = kernelImage + 0x100_0000
	s.mapPages(text, 3, 4)
	s.mapPages(0xffff_8880_0000_0000, 3, 4) // the direct map: not scanned
	s.mapPages(0xffff_ffff_ffff_f000, 5)    // the last page there is: in no area
	s.write(m, text+pageSize-3, needle)
	areas := KernelAreas(0xffff_8880_0000_0000, 16*pageSize)
	k := KernelTarget{Space: s, Areas: areas, Symbol: func(va hypervisor.VirtAddr) string { return fmt.Sprintf("sym+%#x", uint64(va-text)) }}
	fs, sum := runScan(t, m, mustRules(t, needleRule), []Target{k}, Options{})
	if len(fs) != 1 || fs[0].Where != "[kernel] sym+0xffd" || fs[0].PID != 0 || *fs[0].VirtAddr != text+pageSize-3 {
		t.Errorf("findings: %+v", fs)
	}
	if sum.PagesTotal != 2 {
		t.Errorf("summary: %+v", sum)
	}
	// An area up to the end of the address space.
	k.Areas = []Area{{Start: kernelImage, Name: "all"}}
	s.write(m, 0xffff_ffff_ffff_f800, needle)
	fs, sum = runScan(t, m, mustRules(t, needleRule), []Target{k}, Options{})
	if len(fs) != 1 || len(fs[0].Strings) != 2 || sum.PagesTotal != 3 {
		t.Errorf("to the end: %+v, %+v", fs, sum)
	}
}

func TestKernelAreas(t *testing.T) {
	for _, c := range []struct {
		direct hypervisor.VirtAddr
		end    hypervisor.PhysAddr
	}{
		{0xffff_8880_0000_0000, 1 << 30}, {0xffff_9a00_4000_0000, 5 << 30}, {0xff11_0000_0000_0000, 1 << 40},
		{0, 1 << 30}, {0xffff_ffff_0000_0000, 1 << 62}, {0x1000, 1},
	} {
		var last hypervisor.VirtAddr
		for _, a := range KernelAreas(c.direct, c.end) {
			if a.Start < last || a.End <= a.Start || a.Name == "" {
				t.Errorf("direct map at %v: %+v", c.direct, a)
			}
			if c.direct > kernelHalf && c.direct < kernelImage-1<<32 && a.Start < c.direct+hypervisor.VirtAddr(c.end) && a.End > c.direct {
				t.Errorf("direct map at %v is in %+v", c.direct, a)
			}
			last = a.End
		}
	}
}

// TestAreasThatLie: areas that overlap, repeat and turn round.
func TestAreasThatLie(t *testing.T) {
	m := newRAM(8)
	noise(m.bytes)
	p, s := process(1)
	s.mapPages(heap, 1, 2, 3, 4)
	s.write(m, heap+2*pageSize-3, needle)
	for range 1000 {
		p.Areas = append(p.Areas, pages(heap, 4, "x"), pages(heap+pageSize, 2, "y"), Area{Start: heap + 5, End: heap + 7},
			Area{Start: heap + 2*pageSize, End: heap}, Area{Start: 10, End: 10})
	}
	fs, sum := runScan(t, m, mustRules(t, needleRule), []Target{p}, Options{})
	if len(fs) != 1 || sum.PagesTotal != 4 {
		t.Errorf("%+v %+v", fs, sum)
	}
}
