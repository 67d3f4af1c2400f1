package scanner

import (
	"context"
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// layout builds a process and its memory from fuzz bytes: each byte is a page
// that is missing, zero, unreadable, one of a few frames, or the start of a new
// area; needles are written over page borders.
func layout(b []byte) (*ram, ProcessTarget, *space) {
	m := newRAM(64)
	noise(m.bytes)
	for f := range 16 {
		clear(m.page(hypervisor.Frame(f)))
	}
	m.bad[16] = hypervisor.ErrUnreadable
	p, s := process(1)
	at, start := heap, heap
	for i, c := range b[:min(len(b), 400)] {
		switch {
		case c < 16: // not present
		case c < 80:
			s.mapPages(at, hypervisor.Frame(c%16)) // zero
		case c < 90:
			s.mapPages(at, 16)
		case c < 250:
			s.mapPages(at, hypervisor.Frame(17+(i*7+int(c))%47))
		default:
			p.Areas = append(p.Areas, Area{Start: start, End: at, Name: "a"})
			if start = at; c > 252 {
				start += hypervisor.VirtAddr(c) * pageSize
				at = start
			}
		}
		at += pageSize
	}
	p.Areas = append(p.Areas, Area{Start: start, End: at})
	return m, p, s
}

// expected finds the needle in what the process sees.
func expected(m *ram, p ProcessTarget, s *space) []uint64 {
	var found []uint64
	in := func(va hypervisor.VirtAddr) bool {
		return slices.ContainsFunc(p.Areas, func(a Area) bool { return va >= a.Start && va < a.End })
	}
	at := func(va hypervisor.VirtAddr) (byte, bool) {
		f, ok := s.frames[va.Page()]
		if !ok || m.bad[f] != nil || !in(va) {
			return 0, false
		}
		return m.page(f)[va.Offset()], true
	}
	var pages []hypervisor.VirtAddr
	for va := range s.frames {
		pages = append(pages, va)
	}
	slices.Sort(pages)
	for _, page := range pages {
	next:
		for off := range hypervisor.VirtAddr(pageSize) {
			for i := range len(needle) {
				if c, ok := at(page + off + hypervisor.VirtAddr(i)); !ok || c != needle[i] {
					continue next
				}
			}
			found = append(found, uint64(page+off))
		}
	}
	return found
}

func FuzzExtents(f *testing.F) {
	f.Add([]byte{100, 101, 102, 103}, uint16(4090))
	f.Add([]byte{100, 20, 20, 20, 20, 20, 101, 0, 102, 85, 110, 120}, uint16(4094))
	f.Add([]byte{100, 251, 101, 255, 102, 250, 251, 252, 103, 20, 20, 20, 251, 20, 20, 104}, uint16(4080))
	f.Add([]byte("\xff000c"), uint16(4080)) // an empty area first
	f.Add(slices.Repeat([]byte{100, 130, 160, 20, 0, 190, 220, 251}, 40), uint16(4085))
	r := mustRules(f, needleRule)
	f.Fuzz(func(t *testing.T, b []byte, off uint16) {
		m, p, s := layout(b)
		// Each frame ends with the start of a needle and begins with its end, so
		// that needles show wherever frames are neighbours.
		cut := 1 + int(off)%(len(needle)-1)
		for f := 17; f < 64; f++ {
			page := m.page(hypervisor.Frame(f))
			copy(page, needle[cut:])
			copy(page[pageSize-cut:], needle[:cut])
			if f%5 == 0 {
				copy(page[int(off)%(pageSize-100)+40:], needle)
			}
		}
		var fs []Finding
		sum, err := Scan(context.Background(), m, r, []Target{p}, Options{Workers: 2, extentSize: 16 * pageSize,
			OnFinding: func(f Finding) error { fs = append(fs, f); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		checkSum(t, sum)
		got := map[uint64]bool{}
		for _, f := range fs {
			if f.StringsTruncated {
				return // cannot be compared
			}
			for _, s := range f.Strings {
				if got[uint64(*s.VirtAddr)] {
					t.Errorf("%v was found twice", *s.VirtAddr)
				}
				got[uint64(*s.VirtAddr)] = true
				if pa := s2phys(m, p, *s.VirtAddr); pa != s.PhysAddr {
					t.Errorf("%v is at %v, not %v", *s.VirtAddr, pa, s.PhysAddr)
				}
			}
		}
		for _, at := range expected(m, p, s) {
			if !got[at] {
				t.Errorf("%#x was not found", at)
			}
			delete(got, at)
		}
		if len(got) > 0 {
			t.Errorf("found what is not there: %v", got)
		}
	})
}

func s2phys(_ *ram, p ProcessTarget, va hypervisor.VirtAddr) hypervisor.PhysAddr {
	return p.Space.(*space).frames[va.Page()].Addr() + hypervisor.PhysAddr(va.Offset())
}
