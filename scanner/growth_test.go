package scanner

import (
	"context"
	"iter"
	"runtime"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// big is a guest of any size, made up as it is read: in each MiB one page in
// use, with one needle.
type big uint64

func (m big) Ranges() []hypervisor.Range { return []hypervisor.Range{{Size: uint64(m)}} }

func (m big) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	clear(p)
	const mib = 1 << 20
	for at := (gpa + mib - 1) &^ (mib - 1); at < gpa+hypervisor.PhysAddr(len(p)); at += mib {
		copy(p[at-gpa:], needle)
	}
	return len(p), nil
}

// Mappings maps all of it, one to one.
func (m big) Mappings(ctx context.Context, lo, hi hypervisor.VirtAddr) iter.Seq2[paging.Mapping, error] {
	return func(yield func(paging.Mapping, error) bool) {
		for va := lo; va < min(hi, hypervisor.VirtAddr(m)); va += pageSize {
			if !yield(paging.Mapping{Virt: va, Phys: hypervisor.PhysAddr(va), Size: pageSize}, nil) {
				return
			}
		}
	}
}

// TestMemoryDoesNotGrow scans guests of 1, 10 and 100 times the size.
func TestMemoryDoesNotGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("scans 14 GiB: not with -short")
	}
	r := mustRules(t, needleRule)
	for _, kind := range []string{"physical", "process"} {
		var first uint64
		for _, times := range []int{1, 10, 100} {
			m := big(times * 64 << 20)
			target := Target(PhysicalTarget{})
			if kind == "process" {
				target = ProcessTarget{PID: 1, Space: m, Areas: []Area{{End: hypervisor.VirtAddr(m)}}}
			}
			runtime.GC()
			before := rss(t)
			peak := watchRSS(t)
			n, last := 0, uint64(0)
			start := time.Now()
			sum, err := Scan(context.Background(), m, r, []Target{target}, Options{Workers: 2, OnFinding: func(f Finding) error {
				n += len(f.Strings)
				if uint64(f.PhysAddr) < last {
					t.Errorf("finding at %v behind one at %#x", f.PhysAddr, last)
				}
				last = uint64(f.PhysAddr)
				return nil
			}})
			took := time.Since(start)
			used := max(peak(), before) - before
			if err != nil || !sum.Complete || n != 64*times || sum.PagesRead != uint64(m)/pageSize {
				t.Errorf("%s x%d: %v, %d strings, %+v", kind, times, err, n, sum)
			}
			t.Logf("%s, %d MiB: %v, %d MiB used", kind, m>>20, took, used>>20)
			if times == 1 {
				first = used
			} else if used > first+48<<20 {
				t.Errorf("%s x%d: %d MiB used, %d MiB for the smallest", kind, times, used>>20, first>>20)
			}
		}
	}
}
