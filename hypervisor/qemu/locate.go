package qemu

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/board"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
)

// locate finds each block's mappings in the process: at its host address where
// QEMU told it, else by what the command line says of it, its size first.
func locate(l *layout, vs []proc.VMA, mem *os.File) ([][]proc.VMA, error) {
	found := make([][]proc.VMA, len(l.blocks))
	taken := map[uint64]bool{}
	for i := range l.blocks {
		b := &l.blocks[i]
		if b.hva == 0 {
			continue
		}
		if found[i] = proc.Covering(vs, b.hva, b.size); found[i] == nil {
			return nil, fmt.Errorf("%w: %#x bytes at host address %#x are not mapped", errContradiction, b.size, b.hva)
		}
		taken[b.hva] = true
	}
	// Blocks with one candidate go first: they narrow the choice of the others.
	for again := true; again; {
		again = false
		for i := range l.blocks {
			if found[i] != nil {
				continue
			}
			runs := candidates(l, i, vs, taken)
			if len(runs) == 0 {
				return nil, fmt.Errorf("no memory of %#x bytes found in the process (block %.64q)", l.blocks[i].size, l.blocks[i].id)
			}
			if len(runs) == 1 {
				found[i] = runs[0]
				taken[runs[0][0].Start] = true
				l.blocks[i].hva = runs[0][0].Start
				again = true
			}
		}
		if !again {
			again = locateFirst(l, found, taken, vs, mem)
		}
	}
	if i := slices.IndexFunc(found, func(r []proc.VMA) bool { return r == nil }); i >= 0 {
		return nil, &hypervisor.NotSupportedError{
			What:   fmt.Sprintf("telling apart several mappings of %#x bytes in the process", l.blocks[i].size),
			Driver: DriverName,
			Remedy: qmpRemedy,
		}
	}
	return found, nil
}

// candidates returns the mappings that may be block i's. A hint that none of
// them bears out is passed over.
func candidates(l *layout, i int, vs []proc.VMA, taken map[uint64]bool) [][]proc.VMA {
	b := l.blocks[i]
	var runs [][]proc.VMA
	for _, page := range []uint64{hypervisor.PageSize, 2 << 20, 1 << 30} { // huge pages round up
		size := (b.size + page - 1) &^ (page - 1)
		runs = slices.DeleteFunc(proc.Runs(vs, size), func(r []proc.VMA) bool {
			return taken[r[0].Start] || strings.HasPrefix(r[0].Path, "[")
		})
		if len(runs) > 0 {
			break
		}
	}
	keep := func(want func(v proc.VMA) bool) {
		some := slices.DeleteFunc(slices.Clone(runs), func(r []proc.VMA) bool { return !want(r[0]) })
		if len(some) > 0 {
			runs = some
		}
	}
	keep(func(v proc.VMA) bool { return v.Shared() == b.shared })
	keep(func(v proc.VMA) bool { return (v.Inode == 0 || strings.HasPrefix(v.Path, "/dev/zero")) == b.anon })
	if b.path != "" {
		keep(func(v proc.VMA) bool { return strings.Contains(v.Path, b.path) })
		keep(func(v proc.VMA) bool { return strings.TrimSuffix(v.Path, " (deleted)") == b.path })
	}
	return runs
}

// locateFirst chooses among the candidates of the block at address 0 the one
// that looks like a PC's first MiB. It reports whether there is just one.
func locateFirst(l *layout, found [][]proc.VMA, taken map[uint64]bool, vs []proc.VMA, mem *os.File) bool {
	if len(l.places) == 0 || l.places[0].gpa != 0 || found[l.places[0].block] != nil {
		return false
	}
	i := l.places[0].block
	best, score, tie := []proc.VMA(nil), 0, false
	for _, r := range candidates(l, i, vs, taken) {
		switch s := looksLikePC(mem, r[0].Start); {
		case s > score:
			best, score, tie = r, s, false
		case s == score:
			tie = true
		}
	}
	if best == nil || tie {
		return false
	}
	found[i] = best
	taken[best[0].Start] = true
	l.blocks[i].hva = best[0].Start
	return true
}

// looksLikePC counts marks of the first MiB of a PC whose firmware has run.
func looksLikePC(mem *os.File, hva uint64) int {
	var page [hypervisor.PageSize]byte
	score := 0
	// The reset vector, a far jump, and the date behind it, in the shadowed BIOS.
	if _, err := mem.ReadAt(page[:16], int64(hva+board.LegacyEnd-16)); err == nil {
		if page[0] == 0xea && page[7] == '/' && page[10] == '/' {
			score += 2
		}
	}
	if _, err := mem.ReadAt(page[:], int64(hva)); err != nil {
		return score
	}
	// Real-mode interrupt vectors into the BIOS segment.
	vectors := 0
	for i := range 256 {
		if binary.LittleEndian.Uint16(page[4*i+2:]) == 0xf000 {
			vectors++
		}
	}
	if vectors >= 32 {
		score++
	}
	// The BIOS data area's count of KiB of conventional memory.
	if kib := binary.LittleEndian.Uint16(page[0x413:]); kib >= 512 && kib <= 640 {
		score++
	}
	return score
}
