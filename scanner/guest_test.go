package scanner

import (
	"context"
	"iter"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// ram is guest memory for tests.
type ram struct {
	bytes []byte
	// onRead is called before each read and may fail it.
	onRead func(gpa hypervisor.PhysAddr, n int) error
	bad    map[hypervisor.Frame]error // pages that cannot be read

	mu    sync.Mutex
	reads map[hypervisor.Frame]int // how often a page was read
}

func newRAM(pages int) *ram {
	return &ram{bytes: make([]byte, pages*pageSize), bad: map[hypervisor.Frame]error{}, reads: map[hypervisor.Frame]int{}}
}

func (m *ram) Ranges() []hypervisor.Range { return []hypervisor.Range{{Size: uint64(len(m.bytes))}} }

func (m *ram) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	if m.onRead != nil {
		if err := m.onRead(gpa, len(p)); err != nil {
			return 0, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for n < len(p) {
		at := gpa + hypervisor.PhysAddr(n)
		err := m.bad[at.Frame()]
		if uint64(at) >= uint64(len(m.bytes)) {
			err = hypervisor.ErrNotRAM
		}
		if err != nil {
			return n, &hypervisor.AddressError{Op: "read", Addr: at, Err: err}
		}
		m.reads[at.Frame()]++
		n += copy(p[n:min(len(p), n+int(pageSize-at.Offset()))], m.bytes[at:])
	}
	return n, nil
}

// page returns a frame's bytes.
func (m *ram) page(f hypervisor.Frame) []byte { return m.bytes[f.Addr():][:pageSize] }

// space is an address space for tests: which frame each page has.
type space struct {
	frames map[hypervisor.VirtAddr]hypervisor.Frame
	holes  map[hypervisor.VirtAddr]error
}

func newSpace() *space {
	return &space{frames: map[hypervisor.VirtAddr]hypervisor.Frame{}, holes: map[hypervisor.VirtAddr]error{}}
}

// mapPages maps frames one after the other from va on.
func (s *space) mapPages(va hypervisor.VirtAddr, frames ...hypervisor.Frame) {
	for i, f := range frames {
		s.frames[va+hypervisor.VirtAddr(i*pageSize)] = f
	}
}

func (s *space) Mappings(_ context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[paging.Mapping, error] {
	pages := slices.Sorted(maps.Keys(s.frames))
	for va := range s.holes {
		pages = append(pages, va)
	}
	slices.Sort(pages)
	return func(yield func(paging.Mapping, error) bool) {
		for _, va := range pages {
			if va < lo || (hi != 0 && va >= hi) {
				continue
			}
			m := paging.Mapping{Virt: va, Size: pageSize}
			err := s.holes[va]
			if err == nil {
				m.Phys = s.frames[va].Addr()
			}
			if !yield(m, err) {
				return
			}
		}
	}
}

// write writes b at va, page by page, wherever the pages lie.
func (s *space) write(m *ram, va hypervisor.VirtAddr, b string) {
	for i := range len(b) {
		at := va + hypervisor.VirtAddr(i)
		m.page(s.frames[at.Page()])[at.Offset()] = b[i]
	}
}

// mustRules compiles one file of rules.
func mustRules(t testing.TB, text string) *Rules {
	t.Helper()
	r, err := LoadRules(RuleOptions{}, FromFS(fstest.MapFS{"r.yar": {Data: []byte(text)}}, "t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// runScan scans and returns the findings.
func runScan(t testing.TB, m hypervisor.Memory, r *Rules, targets []Target, opts Options) ([]Finding, Summary) {
	t.Helper()
	var fs []Finding
	opts.OnFinding = func(f Finding) error {
		fs = append(fs, f)
		return nil
	}
	sum, err := Scan(context.Background(), m, r, targets, opts)
	if err != nil {
		t.Fatal(err)
	}
	checkSum(t, sum)
	if sum.Findings != len(fs) {
		t.Errorf("%d findings, the summary says %d", len(fs), sum.Findings)
	}
	return fs, sum
}

func checkSum(t testing.TB, s Summary) {
	t.Helper()
	if n := s.PagesRead + s.PagesUnreadable + s.PagesSwapped + s.PagesNotRAM + s.PagesTimedOut + s.PagesLeft; n != s.PagesTotal {
		t.Errorf("pages do not add up to %d: %+v", s.PagesTotal, s)
	}
	if s.PagesSkipped > s.PagesRead+s.PagesTimedOut {
		t.Errorf("more pages skipped than read: %+v", s)
	}
}

// noise fills b with bytes that are not zero and match no rule of these tests.
func noise(b []byte) {
	for i := range b {
		b[i] = byte('a' + i%7)
	}
}

const needleRule = `rule needle { strings: $n = "NEEDLE-0123456789" condition: $n }`

const needle = "NEEDLE-0123456789"
