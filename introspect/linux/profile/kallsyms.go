package profile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The tables of kallsyms, as scripts/kallsyms.c writes them into the kernel's
// rodata. None has a symbol of its own, so they are found by their structure:
//
//	up to 6.3   offsets, relative_base, num_syms, names, markers,
//	            [seqs_of_names,] token_table, token_index
//	from 6.4    num_syms, names, markers, token_table, token_index,
//	            offsets, relative_base, seqs_of_names
//	from 7.0    the same without relative_base: an offset is relative to itself
//
// Tables are aligned to 8 bytes, since 7.0 to 4. Distributions move single
// changes into older kernels, so nothing here asks for the version.
//
//	token_table  256 strings, NUL-terminated: what each byte of a name stands for
//	token_index  256 u16: where each begins
//	names        for each symbol its length in bytes (ULEB128 of one or two
//	             bytes; a plain byte up to 6.0), then the compressed bytes;
//	             expanded, the first character is the symbol's type
//	markers      u32, the offset in names of every 256th symbol
//	offsets      i32, in order of address
const (
	tokenCount    = 256
	tokenIndexLen = tokenCount * 2
	// maxTokenTable is well above what kernels have (about 1 KiB); an index
	// entry would reach to 64 KiB.
	maxTokenTable = 16 << 10
	markerStep    = 256
	// maxSymbols is well above an allyesconfig kernel's count.
	maxSymbols = 2 << 20
	// maxNamesBack is how far before token_table names may begin, in bytes.
	maxNamesBack = 48 << 20
	// maxNameLen is KSYM_NAME_LEN since 6.1 (linux/kallsyms.h).
	maxNameLen = 512
	// locateBudget bounds the steps of a search for names around one token
	// table: a guest could make every place look right. Kernels need some
	// 200,000.
	locateBudget = 16 << 20
	// minMarkers tells a markers table from chance: no kernel has fewer symbols.
	minMarkers = 4
)

var (
	errNoTokens  = errors.New("no token table")
	errNoMarkers = errors.New("no markers fit the token table")
	errNoOffsets = errors.New("no addresses fit the names")
)

// tokens are what the bytes of a compressed name stand for.
type tokens [tokenCount][]byte

// digits is what every token table holds: these characters stand for
// themselves in all kernels, since names end in all of them.
const digits = "0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00"

// nextDigits returns the offset of the first occurrence of digits in b from
// offset at, or -1. It looks at eight bytes at a time: digits is long enough to
// hold eight aligned ones whatever its own alignment.
func nextDigits(b []byte, at int) int {
	at = max(at, 0)
	for i := at &^ 7; i+8 <= len(b); i += 8 {
		v := binary.LittleEndian.Uint64(b[i:])
		if v&0xfff0_fff0_fff0_fff0 != 0x0030_0030_0030_0030 && v&0xf0ff_f0ff_f0ff_f0ff != 0x3000_3000_3000_3000 {
			continue
		}
		lo := max(at, i-len(digits))
		hi := min(len(b), i+2*len(digits))
		if j := bytes.Index(b[lo:hi], []byte(digits)); j >= 0 {
			return lo + j
		}
	}
	return -1
}

// tokenTable says where a token table and its index lie.
type tokenTable struct{ table, index int }

// checkTokens returns the token table in b that has digits at offset at. It
// returns errNoTokens when none fits.
func checkTokens(b []byte, at int) (tokenTable, error) {
	end := at
	for range tokenCount - '0' {
		n := bytes.IndexByte(b[end:min(len(b), at+maxTokenTable)], 0)
		if n < 0 {
			return tokenTable{}, errNoTokens
		}
		end += n + 1
	}
	// The index is aligned to 8, in newer kernels to 4 (2 would do for u16).
	for _, align := range []int{8, 4, 2} {
		t := tokenTable{index: (end + align - 1) &^ (align - 1)}
		if t.index+tokenIndexLen > len(b) {
			continue
		}
		t.table = at - int(binary.LittleEndian.Uint16(b[t.index+2*'0':]))
		if t.table < 0 {
			continue
		}
		if _, err := parseTokens(b[t.table:end], b[t.index:]); err == nil {
			return t, nil
		}
	}
	return tokenTable{}, errNoTokens
}

// parseTokens reads a token table that index must agree with exactly.
func parseTokens(table, index []byte) (*tokens, error) {
	if len(index) < tokenIndexLen {
		return nil, errNoTokens
	}
	var t tokens
	at := 0
	for i := range t {
		if int(binary.LittleEndian.Uint16(index[2*i:])) != at || at >= len(table) {
			return nil, fmt.Errorf("%w: entry %d", errNoTokens, i)
		}
		n := bytes.IndexByte(table[at:], 0)
		if n < 0 || n >= maxNameLen {
			return nil, fmt.Errorf("%w: entry %d", errNoTokens, i)
		}
		t[i] = table[at : at+n : at+n]
		at += n + 1
	}
	return &t, nil
}

// layout says where kallsyms' tables lie, as offsets in the window they were
// found in.
type layout struct {
	numSyms  int // offset of kallsyms_num_syms
	count    int // its value
	names    int
	namesEnd int
	markers  int
	tokens   tokenTable
	plainLen bool // lengths are plain bytes
}

// locateNames finds names, markers and num_syms before the token table t in b.
func locateNames(b []byte, t tokenTable) (layout, error) {
	// Markers end right before the token table, or before seqs_of_names in
	// between (3 or 4 bytes for each symbol).
	budget := locateBudget
	for end := t.table &^ 3; end > 4*minMarkers && t.table-end < 4*maxSymbols && budget > 0; end -= 4 {
		start, ok := markersEndingAt(b, end, &budget)
		if !ok {
			continue
		}
		l, err := namesBefore(b, start, end, &budget)
		if err == nil {
			l.tokens = t
			return l, nil
		}
	}
	return layout{}, errNoMarkers
}

// markersEndingAt returns where the markers begin whose last one ends at end:
// each is larger than the one before by what 256 names may take, the first is 0.
func markersEndingAt(b []byte, end int, budget *int) (start int, ok bool) {
	next := binary.LittleEndian.Uint32(b[end-4:])
	if next == 0 {
		return 0, false
	}
	for at := end - 8; at >= 0 && (end-at)/4 <= maxSymbols/markerStep; at -= 4 {
		*budget--
		v := binary.LittleEndian.Uint32(b[at:])
		if v >= next || next-v < 2*markerStep || next-v > markerStep*(maxNameLen+2) {
			return 0, false
		}
		if v == 0 {
			return at, (end-at)/4 >= minMarkers
		}
		next = v
	}
	return 0, false
}

// namesBefore finds the names that end where the markers b[start:end] begin.
func namesBefore(b []byte, start, end int, budget *int) (layout, error) {
	blocks := (end - start) / 4
	lastMarker := int(binary.LittleEndian.Uint32(b[end-4:]))
	// The last block holds 1 to 256 names of at least 2 bytes.
	for names := (start - lastMarker - 2) &^ 3; names >= 8 && start-lastMarker-names <= markerStep*(maxNameLen+2)+8; names -= 4 {
		if *budget -= 2; *budget < 0 {
			return layout{}, errNoMarkers
		}
		for _, gap := range []int{8, 4} {
			at := names - gap
			n := binary.LittleEndian.Uint32(b[at:])
			if n > maxSymbols || (int(n)+markerStep-1)/markerStep != blocks {
				continue
			}
			if gap == 8 && binary.LittleEndian.Uint32(b[at+4:]) != 0 {
				continue // padding
			}
			for _, plain := range []bool{false, true} {
				l := layout{numSyms: at, count: int(n), names: names, markers: start, plainLen: plain}
				stop, steps, err := walkNames(b[names:start], b[start:end], l.count, plain, nil)
				if *budget -= steps; *budget < 0 {
					return layout{}, errNoMarkers
				}
				if err != nil || start-names-stop >= 8 || !allZero(b[names+stop:start]) {
					continue
				}
				l.namesEnd = names + stop
				return l, nil
			}
		}
	}
	return layout{}, errNoMarkers
}

// walkNames steps over count names and checks each marker on the way. It fills
// pos, unless nil, with each name's offset, and returns where the last one ends
// and how many names it stepped over.
func walkNames(names, markers []byte, count int, plain bool, pos []uint32) (end, steps int, err error) {
	at := 0
	for i := range count {
		if i%markerStep == 0 {
			m := i / markerStep * 4
			if m+4 > len(markers) {
				return 0, i, &DamagedError{Table: "kallsyms_markers", Offset: uint64(m), Err: errors.New("table too short")}
			}
			if got := binary.LittleEndian.Uint32(markers[m:]); int(got) != at {
				return 0, i, &DamagedError{Table: "kallsyms_markers", Offset: uint64(m), Err: fmt.Errorf("points to %#x, symbol %d is at %#x", got, i, at)}
			}
		}
		if pos != nil {
			pos[i] = uint32(at)
		}
		_, n := nameAt(names, at, plain)
		if n == 0 {
			return 0, i, &DamagedError{Table: "kallsyms_names", Offset: uint64(at), Err: fmt.Errorf("length of symbol %d of %d", i, count)}
		}
		at += n
	}
	return at, count, nil
}

// nameAt returns the compressed name at offset at and how many bytes it takes
// with its length; 0 bytes when there is none.
func nameAt(names []byte, at int, plain bool) (name []byte, size int) {
	if at >= len(names) {
		return nil, 0
	}
	n, head := int(names[at]), 1
	if n&0x80 != 0 && !plain {
		if at+1 >= len(names) {
			return nil, 0
		}
		n, head = n&0x7f|int(names[at+1])<<7, 2
	}
	if n == 0 || n > maxNameLen || n > len(names)-at-head {
		return nil, 0
	}
	return names[at+head : at+head+n], head + n
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

func alignUp(n, to int) int { return (n + to - 1) &^ (to - 1) }
