package scanner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// slowRule takes libyara milliseconds for each byte of a row of "a".
const slowRule = `rule slow { strings: $a = /aa.{0,1000}b.{0,1000}c.{0,1000}d/s condition: $a }`

func TestSlowBytesTimeOut(t *testing.T) {
	m := newRAM(256)
	noise(m.bytes)
	for i := 16; i < 80; i++ {
		copy(m.page(hypervisor.Frame(i)), bytes.Repeat([]byte("a"), pageSize))
	}
	copy(m.bytes[200*pageSize:], needle)
	fs, sum := runScan(t, m, mustRules(t, slowRule+needleRule), []Target{PhysicalTarget{}}, Options{Timeout: time.Second, Workers: 1})
	if len(fs) != 1 || fs[0].PhysAddr != 200*pageSize {
		t.Errorf("what lies next to slow bytes was not found: %+v", fs)
	}
	if sum.Complete || sum.PagesTimedOut < 16 || sum.PagesTimedOut > 192 || !strings.Contains(sum.IncompleteReason, "time-out") || sum.ProblemsTotal == 0 {
		t.Errorf("summary: %+v", sum)
	}
}

func TestInterruptSlowBytes(t *testing.T) {
	m := newRAM(1024)
	for i := range m.bytes {
		m.bytes[i] = 'a'
	}
	ctx, cancel := context.WithCancel(context.Background())
	m.onRead = func(gpa hypervisor.PhysAddr, n int) error {
		if int(gpa)+n == len(m.bytes) {
			time.AfterFunc(300*time.Millisecond, cancel) // libyara is at it by then
		}
		return nil
	}
	start := time.Now()
	sum, err := Scan(ctx, m, mustRules(t, slowRule), []Target{PhysicalTarget{}}, Options{Timeout: time.Hour, Workers: 1})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v to stop", took)
	}
	if err != nil || sum.Complete || sum.PagesLeft != 1024 {
		t.Errorf("%v, %+v", err, sum)
	}
}

// rss returns the anonymous memory of this process, in bytes.
func rss(t testing.TB) uint64 {
	t.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb uint64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// watchRSS returns a function that stops watching and returns the peak.
func watchRSS(t testing.TB) func() uint64 {
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		var top uint64
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for {
			top = max(top, rss(t))
			select {
			case <-tick.C:
			case <-stop:
				peak <- top
				return
			}
		}
	}()
	return func() uint64 { close(stop); return <-peak }
}

// TestFullOfMatches has memory in which every byte is a match of many rules, and
// looking at it is slow too.
func TestFullOfMatches(t *testing.T) {
	var text strings.Builder
	for i := range 16 {
		fmt.Fprintf(&text, "rule lit%02d { strings: $a = \"aaaa\" condition: $a }\n", i)
	}
	fast := text.String()
	for i := range 16 {
		fmt.Fprintf(&text, "rule re%02d { strings: $a = /aaaaa{1,200}/ condition: $a }\n", i)
	}
	m := newRAM(2 * ExtentSize / pageSize)
	for i := range m.bytes {
		m.bytes[i] = 'a'
	}
	for name, c := range map[string]struct {
		rules  string
		n      int // of rules
		listed int // strings in each finding
		ok     bool
	}{
		"literals": {fast, 16, MaxStrings, true},
		"slow":     {text.String(), 32, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := mustRules(t, c.rules)
			runtime.GC()
			before := rss(t)
			peak := watchRSS(t)
			fs, sum := runScan(t, m, r, []Target{PhysicalTarget{}}, Options{Workers: 2, Timeout: 4 * time.Second})
			if used := int64(peak()) - int64(before); used > 300<<20 {
				t.Errorf("used %d MiB", used>>20)
			}
			// Each rule in each extent, whatever else could not be told.
			if len(fs) != 2*c.n || sum.Complete != c.ok || sum.PagesRead != sum.PagesTotal {
				t.Fatalf("%d findings, %+v", len(fs), sum)
			}
			for _, f := range fs {
				if len(f.Strings) < c.listed || !f.StringsTruncated {
					t.Errorf("%d strings: %+v", len(f.Strings), f)
				}
			}
		})
	}
}

func TestLongMatchIsCutShort(t *testing.T) {
	m := newRAM(4)
	copy(m.bytes[pageSize:], bytes.Repeat([]byte("a\x01"), 100))
	fs, _ := runScan(t, m, mustRules(t, `rule r { strings: $a = /(a\x01){100}/ condition: $a }`), []Target{PhysicalTarget{}}, Options{})
	if len(fs) != 1 || len(fs[0].Strings) != 1 {
		t.Fatalf("%+v", fs)
	}
	if s := fs[0].Strings[0]; s.Length != 200 || !s.Truncated || s.Data != strings.Repeat(`a\x01`, MaxData/2) {
		t.Errorf("%+v", s)
	}
}

// mapped is a memory file that is mapped, read as a driver would that does not
// guard itself.
type mapped struct {
	view   []byte
	onRead func()
}

func (m mapped) Ranges() []hypervisor.Range { return []hypervisor.Range{{Size: uint64(len(m.view))}} }
func (m mapped) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	m.onRead()
	return copy(p, m.view[gpa:]), nil
}

func TestFileIsTruncatedDuringScan(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mem")
	data := make([]byte, 1024*pageSize)
	noise(data)
	copy(data[100:], needle)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	view, err := unix.Mmap(int(f.Fd()), 0, len(data), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(view)
	n := 0
	m := mapped{view, func() {
		if n++; n == 3 {
			if err := f.Truncate(600*pageSize + 1234); err != nil {
				t.Error(err)
			}
		}
	}}
	fs, sum := runScan(t, m, mustRules(t, needleRule), []Target{PhysicalTarget{}}, Options{Workers: 1, extentSize: 64 * pageSize})
	if len(fs) != 1 || sum.Complete || sum.PagesUnreadable != 1024-601 || sum.PagesRead != 601 {
		t.Errorf("%+v, %+v", fs, sum)
	}
}

// everywhere is an address space whose page tables go round: every page is
// mapped, to the same frames again and again.
type everywhere struct{}

func (everywhere) Mappings(ctx context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[paging.Mapping, error] {
	return func(yield func(paging.Mapping, error) bool) {
		for va := lo; va < hi; va += pageSize {
			if !yield(paging.Mapping{Virt: va, Phys: hypervisor.Frame(va >> 12 & 7).Addr(), Size: pageSize}, ctx.Err()) || ctx.Err() != nil {
				return
			}
		}
	}
}

func TestPageTablesThatGoRound(t *testing.T) {
	m := newRAM(16)
	noise(m.bytes)
	p, _ := process(1, Area{Start: 0x1000, End: 1 << 47})
	p.Space = everywhere{}
	sum, err := Scan(context.Background(), m, mustRules(t, needleRule), []Target{p}, Options{OnProgress: func(Progress) {}})
	if err != nil || sum.Complete || sum.PagesTotal > 1<<17 || sum.ProblemsTotal == 0 {
		t.Errorf("%v %+v", err, sum)
	}
	checkSum(t, sum)
}

func TestHolesAreTold(t *testing.T) {
	m := newRAM(8)
	noise(m.bytes)
	p, s := process(3, pages(heap, 8, "[heap]"), pages(heap+100*pageSize, 1, "\x1b[2J"))
	s.mapPages(heap, 1, 2, 3)
	s.holes[heap+4*pageSize] = &paging.NotMappedError{Kind: paging.KindSwapped, Level: 1, Entry: 0x80}
	s.holes[heap+5*pageSize] = &paging.NotMappedError{Kind: paging.KindReserved, Level: 1}
	s.holes[heap+100*pageSize] = &paging.NotMappedError{Kind: paging.KindUnreadable, Err: errors.New("torn")}
	_, sum := runScan(t, m, mustRules(t, needleRule), []Target{p}, Options{})
	if sum.Complete || sum.PagesSwapped != 1 || sum.PagesTotal != 4 || sum.ProblemsTotal != 2 || !strings.Contains(sum.IncompleteReason, "1 pages swapped out") {
		t.Errorf("%+v", sum)
	}
	if p := sum.Problems; len(p) == 2 && (p[0].What != "pid 3 [heap]" || p[0].Addr != heap+5*pageSize || p[1].What != `pid 3 \x1b[2J`) {
		t.Errorf("%+v", p)
	}
}
