package profile

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Where the kernel's image is mapped: the last 2 GiB of the address space,
// which the last two entries of level3_kernel_pgt (arch/x86/kernel/head_64.S)
// cover. The image is in the first of them; modules and the fixmap are in the
// second, and with a kernel that has no KASLR modules begin in the first.
const (
	kernelMap     = 0xffff_ffff_8000_0000 // __START_KERNEL_map, asm/page_64_types.h
	kernelMapSize = 1 << 30               // KERNEL_IMAGE_SIZE at most
	imageEntry    = 510                   // of level3_kernel_pgt
	tableEntries  = 512
	largePage     = 2 << 20
)

// Bits of an entry of a page table (Intel SDM 3A, 4.5).
const (
	entryPresent = 1 << 0
	entryWrite   = 1 << 1
	entryLarge   = 1 << 7
	entryNX      = 1 << 63
	entryAddr    = 0x000f_ffff_ffff_f000
	// entryOdd are bits that the kernel sets in no entry that points to one
	// of its own tables.
	entryOdd = 0xfff0_0000_0000_0f80
)

// pointsToTable reports whether e may point to a page table.
func pointsToTable(e uint64) bool {
	return e&(entryPresent|entryOdd) == entryPresent && e&entryAddr != 0
}

// page is one page of 8-byte words as read from the guest.
type page [hypervisor.PageSize]byte

func (p *page) entry(i int) uint64 { return binary.LittleEndian.Uint64(p[i*8:]) }

// maxTableCandidates bounds what a scan of RAM hands on: a guest may fill its
// RAM with pages that look like the kernel's.
const maxTableCandidates = 4096

// scanChunk is how much one step of a scan reads, in bytes.
const scanChunk = 4 << 20

// scanStats say what a scan of RAM could not read, in bytes.
type scanStats struct{ unreadable atomic.Uint64 }

// findKernelTables scans all RAM for pages that look like level3_kernel_pgt:
// nothing at the start, and its last two entries point to tables. It looks at
// one cache line or two of each page. The result is sorted.
func findKernelTables(ctx context.Context, mem hypervisor.Memory, st *scanStats) ([]hypervisor.PhysAddr, error) {
	var mu sync.Mutex
	var found []hypervisor.PhysAddr
	err := scanPages(ctx, mem, st, func(gpa hypervisor.PhysAddr, p []byte) {
		last := binary.LittleEndian.Uint64(p[(tableEntries-1)*8:])
		if !pointsToTable(last) {
			return
		}
		if !pointsToTable(binary.LittleEndian.Uint64(p[imageEntry*8:])) {
			return
		}
		if binary.LittleEndian.Uint64(p)|binary.LittleEndian.Uint64(p[8:]) != 0 {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if len(found) < maxTableCandidates {
			found = append(found, gpa)
		}
	})
	slices.Sort(found)
	return found, err
}

// countReferences counts, for each of tables (sorted), the pages in RAM whose
// last entry points to it: the top tables of as many address spaces.
func countReferences(ctx context.Context, mem hypervisor.Memory, tables []hypervisor.PhysAddr) ([]int64, error) {
	counts := make([]atomic.Int64, len(tables))
	var st scanStats
	err := scanPages(ctx, mem, &st, func(_ hypervisor.PhysAddr, p []byte) {
		last := binary.LittleEndian.Uint64(p[(tableEntries-1)*8:])
		if !pointsToTable(last) {
			return
		}
		if i, ok := slices.BinarySearch(tables, hypervisor.PhysAddr(last&entryAddr)); ok {
			counts[i].Add(1)
		}
	})
	out := make([]int64, len(tables))
	for i := range counts {
		out[i] = counts[i].Load()
	}
	return out, err
}

// scanPages calls visit for every whole page of RAM that can be read, from
// several goroutines at once. The page is a view of the guest's memory and may
// change while visit looks at it.
func scanPages(ctx context.Context, mem hypervisor.Memory, st *scanStats, visit func(hypervisor.PhysAddr, []byte)) error {
	workers := min(runtime.GOMAXPROCS(0), 8)
	g, ctx := errgroup.WithContext(ctx)
	chunks := make(chan hypervisor.Range)
	g.Go(func() error {
		defer close(chunks)
		for _, r := range mem.Ranges() {
			// Whole pages only.
			start := (uint64(r.Start) + hypervisor.PageSize - 1) &^ (hypervisor.PageSize - 1)
			end := uint64(r.End()) &^ (hypervisor.PageSize - 1)
			for at := start; at < end; {
				n := min(scanChunk, end-at)
				select {
				case chunks <- hypervisor.Range{Start: hypervisor.PhysAddr(at), Size: n}:
				case <-ctx.Done():
					return ctx.Err()
				}
				at += n
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			s := chunkScanner{mem: mem, st: st, visit: visit}
			for c := range chunks {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := s.scan(c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// chunkScanner is one worker of scanPages.
type chunkScanner struct {
	mem   hypervisor.Memory
	st    *scanStats
	visit func(hypervisor.PhysAddr, []byte)
	buf   []byte
}

func (s *chunkScanner) scan(c hypervisor.Range) error {
	for c.Size >= hypervisor.PageSize {
		b, err := s.read(c)
		if isGone(err) {
			return err
		}
		n := len(b) &^ (hypervisor.PageSize - 1)
		off := 0
		if fault := hypervisor.Guard(func() {
			for ; off < n; off += hypervisor.PageSize {
				s.visit(c.Start+hypervisor.PhysAddr(off), b[off:off+hypervisor.PageSize])
			}
		}); fault != nil {
			n = off // what is left begins with the page that is lost
		}
		if n == 0 { // this page cannot be read: go on behind it
			s.st.unreadable.Add(hypervisor.PageSize)
			n = hypervisor.PageSize
		}
		c.Start += hypervisor.PhysAddr(n)
		c.Size -= uint64(n)
	}
	return nil
}

// read returns as much of c as can be had in one go.
func (s *chunkScanner) read(c hypervisor.Range) ([]byte, error) {
	if m, ok := s.mem.(hypervisor.Mapper); ok {
		b, err := m.MapPhys(c.Start, c.Size)
		if err == nil || !errors.Is(err, hypervisor.ErrNotSupported) {
			return b, err
		}
	}
	if s.buf == nil {
		s.buf = make([]byte, scanChunk)
	}
	n, err := s.mem.ReadPhys(s.buf[:c.Size], c.Start)
	return s.buf[:n], err
}

// isGone reports whether err means that no further read will succeed.
func isGone(err error) bool {
	return errors.Is(err, hypervisor.ErrGone) || errors.Is(err, hypervisor.ErrClosed)
}
