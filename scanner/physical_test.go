package scanner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// places returns where $n was found, in the order told.
func places(fs []Finding) []uint64 {
	var at []uint64
	for _, f := range fs {
		for _, s := range f.Strings {
			at = append(at, uint64(s.PhysAddr))
		}
	}
	return at
}

// find is the naive search that scans are compared to.
func find(b []byte, word string) []uint64 {
	var at []uint64
	for off := 0; ; {
		i := bytes.Index(b[off:], []byte(word))
		if i < 0 {
			return at
		}
		at = append(at, uint64(off+i))
		off += i + 1
	}
}

// scatter fills memory with zero pages, noise, and needles at odd places.
func scatter(m *ram, rnd *rand.Rand) {
	for f := 0; f < len(m.bytes)/pageSize; {
		n := 1 + rnd.IntN(12)
		zero := rnd.IntN(2) == 0
		for ; n > 0 && f < len(m.bytes)/pageSize; n, f = n-1, f+1 {
			if !zero {
				noise(m.page(hypervisor.Frame(f)))
			}
		}
	}
	for range 40 {
		at := rnd.IntN(len(m.bytes) - len(needle))
		if rnd.IntN(2) == 0 { // around a page's end
			at = max(at&^(pageSize-1)-rnd.IntN(len(needle)+1), 0)
		}
		copy(m.bytes[at:], needle)
	}
}

func TestPhysicalAgainstNaiveSearch(t *testing.T) {
	r := mustRules(t, needleRule)
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		m := newRAM(300 + rnd.IntN(100))
		scatter(m, rnd)
		for _, size := range []int{16 * pageSize, 37 * pageSize, ExtentSize} {
			fs, sum := runScan(t, m, r, []Target{PhysicalTarget{}}, Options{extentSize: size, Workers: 2})
			if got, want := places(fs), find(m.bytes, needle); !slices.Equal(got, want) {
				t.Fatalf("seed %d, extents of %#x: found %#x, want %#x", seed, size, got, want)
			}
			if sum.PagesTotal != uint64(len(m.bytes)/pageSize) || !sum.Complete {
				t.Errorf("summary: %+v", sum)
			}
		}
	}
}

// ranges is RAM with holes in its addresses, and ends that are on no page.
type ranges struct {
	*ram
	rs []hypervisor.Range
}

func (r ranges) Ranges() []hypervisor.Range { return r.rs }

func TestPhysicalRanges(t *testing.T) {
	m := newRAM(64)
	noise(m.bytes)
	for _, at := range []int{0, 10*pageSize - 4, 20*pageSize + 100 - len(needle), 40 * pageSize, 63 * pageSize} {
		copy(m.bytes[at:], needle)
	}
	g := ranges{m, []hypervisor.Range{{Start: 0, Size: 10 * pageSize}, {Start: 12 * pageSize, Size: 8*pageSize + 100}, {Start: 40 * pageSize, Size: 24 * pageSize}}}
	fs, sum := runScan(t, g, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{})
	want := []uint64{0, 20*pageSize + 100 - uint64(len(needle)), 40 * pageSize, 63 * pageSize} // one crosses a range's end
	if got := places(fs); !slices.Equal(got, want) {
		t.Errorf("found %#x, want %#x", got, want)
	}
	if sum.PagesTotal != 10+9+24 || sum.BytesScanned != 42*pageSize+100 {
		t.Errorf("summary: %+v", sum)
	}
	if f := fs[0]; f.VirtAddr != nil || f.Where != "[physical]" || f.PID != 0 {
		t.Errorf("finding: %+v", f)
	}
}

func TestSameResultWithAnyWorkers(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	m := newRAM(700)
	scatter(m, rnd)
	m.bad[100], m.bad[101], m.bad[500] = hypervisor.ErrUnreadable, hypervisor.ErrUnreadable, hypervisor.ErrNotRAM
	p, s := process(5, pages(heap, 400, "a"), pages(heap+400*pageSize, 100, "b"))
	for i := range 500 {
		if i%17 != 0 {
			s.mapPages(heap+hypervisor.VirtAddr(i*pageSize), hypervisor.Frame((i*37)%700))
		}
	}
	q := p
	q.PID = 6
	r := mustRules(t, needleRule+` rule many { strings: $a = "abcdefg" condition: #a > 3 } rule always { condition: filesize > 0 }`)
	var want []Finding
	var wantSum Summary
	for workers := 1; workers <= 8; workers++ {
		fs, sum := runScan(t, m, r, []Target{p, PhysicalTarget{}, q}, Options{Workers: workers, extentSize: 32 * pageSize})
		sum.DurationSeconds = 0
		if workers == 1 {
			want, wantSum = fs, sum
			continue
		}
		if !reflect.DeepEqual(fs, want) {
			t.Errorf("%d workers: other findings", workers)
		}
		if !reflect.DeepEqual(sum, wantSum) {
			t.Errorf("%d workers: %+v, want %+v", workers, sum, wantSum)
		}
	}
	if wantSum.Complete || wantSum.PagesUnreadable == 0 || wantSum.PagesNotRAM == 0 || wantSum.BytesFromCache == 0 || len(want) == 0 {
		t.Errorf("the test tests nothing: %+v", wantSum)
	}
}

func TestUnreadablePagesAreTold(t *testing.T) {
	m := newRAM(100)
	noise(m.bytes)
	copy(m.bytes[50*pageSize:], needle)
	for f := hypervisor.Frame(10); f < 20; f++ {
		m.bad[f] = hypervisor.ErrUnreadable
	}
	m.bad[60] = errors.New("disk on fire")
	fs, sum := runScan(t, m, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{})
	if len(fs) != 1 || fs[0].PhysAddr != 50*pageSize {
		t.Errorf("findings: %+v", fs)
	}
	if sum.Complete || sum.PagesUnreadable != 11 || sum.PagesRead != 89 || !strings.Contains(sum.IncompleteReason, "11 pages unreadable") {
		t.Errorf("summary: %+v", sum)
	}
	if len(sum.Problems) != 2 || sum.Problems[0].Addr != 10*pageSize || sum.Problems[1].Addr != 60*pageSize ||
		!strings.Contains(sum.Problems[1].Err, "disk on fire") {
		t.Errorf("problems: %+v", sum.Problems)
	}
}

func TestVMEndsDuringScan(t *testing.T) {
	m := newRAM(1000)
	noise(m.bytes)
	m.onRead = func(gpa hypervisor.PhysAddr, _ int) error {
		if gpa >= 500*pageSize {
			return fmt.Errorf("read: %w", hypervisor.ErrGone)
		}
		return nil
	}
	sum, err := Scan(context.Background(), m, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{Workers: 3, extentSize: 32 * pageSize})
	if !errors.Is(err, hypervisor.ErrGone) || sum.Complete || sum.PagesRead == 0 || sum.IncompleteReason == "" {
		t.Errorf("%v, %+v", err, sum)
	}
	checkSum(t, sum)
}

func TestInterrupt(t *testing.T) {
	m := newRAM(5000)
	noise(m.bytes)
	for i := range 5000 {
		copy(m.bytes[i*pageSize+50:], needle)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := 0
	sum, err := Scan(ctx, m, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{
		Workers: 4, extentSize: 32 * pageSize,
		OnFinding: func(Finding) error {
			if n++; n == 3 {
				cancel()
			}
			return nil
		},
	})
	if err != nil || sum.Complete || sum.IncompleteReason != "interrupted" {
		t.Errorf("%v, %+v", err, sum)
	}
	if sum.PagesRead == 0 || sum.PagesRead >= 5000 || sum.PagesLeft == 0 {
		t.Errorf("summary: %+v", sum)
	}
	checkSum(t, sum)

	// Already over.
	sum, err = Scan(ctx, m, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{})
	if err != nil || sum.Complete || sum.PagesRead != 0 {
		t.Errorf("%v, %+v", err, sum)
	}
	tctx, cancel := context.WithTimeout(context.Background(), time.Nanosecond)
	defer cancel()
	<-tctx.Done()
	if sum, _ = Scan(tctx, m, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{}); sum.IncompleteReason != "out of time" {
		t.Errorf("%+v", sum)
	}
}

func TestOnFindingFails(t *testing.T) {
	m := newRAM(2000)
	noise(m.bytes)
	for i := range 2000 {
		copy(m.bytes[i*pageSize+50:], needle)
	}
	full := errors.New("disk full")
	n := 0
	sum, err := Scan(context.Background(), m, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{extentSize: 32 * pageSize, OnFinding: func(Finding) error {
		n++
		return full
	}})
	if !errors.Is(err, full) || n != 1 || sum.Complete {
		t.Errorf("%v, %d calls, %+v", err, n, sum)
	}
}

func TestProgress(t *testing.T) {
	m := newRAM(200)
	noise(m.bytes)
	p, s := process(1, pages(heap, 100, ""))
	s.mapPages(heap, 4, 5, 6)
	var last Progress
	_, sum := runScan(t, m, mustRules(t, needleRule), []Target{p, PhysicalTarget{}}, Options{extentSize: 32 * pageSize, OnProgress: func(p Progress) {
		if p.Done <= last.Done || p.Total != 203*pageSize {
			t.Errorf("progress %+v after %+v", p, last)
		}
		last = p
	}})
	if last.Done != last.Total || sum.PagesTotal != 203 {
		t.Errorf("ended at %+v", last)
	}
}

// TestEachPageIsReadOnce: bytes that a running guest changes after they were
// copied cannot be seen in two states.
func TestEachPageIsReadOnce(t *testing.T) {
	m := newRAM(32)
	noise(m.bytes)
	copy(m.bytes[7*pageSize-3:], needle)
	runScan(t, m, mustRules(t, "import \"elf\" import \"hash\""+needleRule+` rule e { condition: elf.type == elf.ET_DYN or uint32(0x1000) == 0 or hash.md5(0, filesize) == "x" }`),
		[]Target{PhysicalTarget{}}, Options{})
	for f, n := range m.reads {
		if n != 1 {
			t.Errorf("frame %d was read %d times", f, n)
		}
	}
}
