package profile

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sort"
	"sync"

	"github.com/zeebo/xxh3"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Symbol is one entry of kallsyms.
type Symbol struct {
	Name   string
	Addr   hypervisor.VirtAddr // see Kernel.Symbol for per-CPU variables
	Type   byte                // as nm(1) prints it: 'T', 'd', …
	PerCPU bool                // a per-CPU variable
}

// Symbols are a kernel's symbols, decoded as they are asked for. They are safe
// for concurrent use.
type Symbols struct {
	names  []byte // compressed, see kallsyms.go
	pos    []uint32
	plain  bool
	tokens *tokens
	// tokenTable is what tokens were read from.
	tokenTable []byte
	addrs      addresses
	lo, hi     hypervisor.VirtAddr // the image

	index  func() *nameIndex                   // built when a name is first asked for
	percpu func() (lo, hi hypervisor.VirtAddr) // likewise
}

// findSymbols finds and decodes kallsyms in im. It returns ErrNoKallsyms when
// there is none, and an error that wraps ErrDamaged and ErrNoKallsyms when one
// does not hold together.
func findSymbols(ctx context.Context, im *image) (*Symbols, error) {
	var damaged error
	limits := symbolSearch{tables: maxTokenTables, digits: maxDigits}
	for _, sp := range im.searched() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var s *Symbols
		var err error
		if fault := hypervisor.Guard(func() { s, err = findSymbolsIn(ctx, im, sp, &limits) }); fault != nil {
			s, err = nil, fault
		}
		if s != nil {
			return s, nil
		}
		if isGone(err) || ctx.Err() != nil {
			return nil, err
		}
		if err != nil && damaged == nil {
			damaged = err
		}
	}
	if damaged != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoKallsyms, damaged)
	}
	return nil, ErrNoKallsyms
}

const (
	// maxTokenTables bounds how many token tables one image is tried with,
	// maxDigits how many places that look a little like one.
	maxTokenTables = 8
	maxDigits      = 4096
	// maxRodata is how much of a run of rodata is searched, in bytes; kernels
	// have some 10 MiB.
	maxRodata = 128 << 20
)

// symbolSearch is what may yet be tried in an image: its page table can cut it
// into as many runs of rodata as it has pages.
type symbolSearch struct{ tables, digits int }

func findSymbolsIn(ctx context.Context, im *image, sp span, left *symbolSearch) (*Symbols, error) {
	b, err := im.view(sp.off, min(sp.size, maxRodata))
	if err != nil {
		return nil, err
	}
	var damaged error
	for at := nextDigits(b, 0); at >= 0 && left.tables > 0 && left.digits > 0; at = nextDigits(b, at+1) {
		left.digits--
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		lo := max(0, at-maxTokenTable) &^ 7 // alignment counts from b
		t, err := checkTokens(b[lo:min(len(b), at+2*maxTokenTable)], at-lo)
		if err != nil {
			continue
		}
		left.tables--
		t.table, t.index = t.table+lo, t.index+lo
		s, err := openSymbols(im, sp.off, b, t)
		if err == nil {
			return s, nil
		}
		if damaged == nil {
			damaged = err
		}
	}
	return nil, damaged
}

// openSymbols finds the tables around token table t in b, the image's bytes
// from offset off, copies them, and decodes the copy: b may change at any time.
func openSymbols(im *image, off uint64, b []byte, t tokenTable) (*Symbols, error) {
	lo, hi := im.virt, im.virt+hypervisor.VirtAddr(im.size)
	start := max(0, t.table-maxNamesBack) &^ 7
	w := b[start:]
	t.table, t.index = t.table-start, t.index-start
	l, err := locateNames(w, t)
	if err != nil {
		return nil, &DamagedError{Table: "kallsyms_names", Offset: 0, Err: err}
	}
	va := im.virt + hypervisor.VirtAddr(off) + hypervisor.VirtAddr(start)
	for _, at := range addressTables(l, len(w)) {
		a, ok := at.open(w, va, lo, hi, l.count)
		if !ok || !a.plausible(l.count, lo, hi) {
			continue
		}
		// From here on only the copy counts.
		first, last := copyBounds(l, at)
		c := append([]byte(nil), w[first:last]...)
		s, err := newSymbols(c, va+hypervisor.VirtAddr(first), l.shift(first), at.shift(first), lo, hi)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return nil, &DamagedError{Table: "kallsyms_offsets", Offset: 0, Err: errNoOffsets}
}

// copyBounds returns the part of a window that holds all tables of l and at.
func copyBounds(l layout, at addressTable) (first, last int) {
	first, last = l.numSyms, l.tokens.index+tokenIndexLen
	end := at.offsets + 4*l.count
	if at.form != formSelfRelative {
		first, end = min(first, at.base), max(end, at.base+8)
	}
	return min(first, at.offsets) &^ 7, max(last, end)
}

func (l layout) shift(by int) layout {
	l.numSyms -= by
	l.names -= by
	l.namesEnd -= by
	l.markers -= by
	l.tokens.table -= by
	l.tokens.index -= by
	return l
}

func (t addressTable) shift(by int) addressTable {
	t.base -= by
	t.offsets -= by
	return t
}

// newSymbols decodes the tables in b, a private copy that begins at va, and
// checks all of it.
func newSymbols(b []byte, va hypervisor.VirtAddr, l layout, t addressTable, lo, hi hypervisor.VirtAddr) (*Symbols, error) {
	s := &Symbols{plain: l.plainLen, lo: lo, hi: hi}
	var err error
	s.tokenTable = b[l.tokens.table:l.tokens.index]
	if s.tokens, err = parseTokens(s.tokenTable, b[l.tokens.index:]); err != nil {
		return nil, &DamagedError{Table: "kallsyms_token_table", Offset: 0, Err: err}
	}
	s.names = b[l.names:l.namesEnd:l.namesEnd]
	s.pos = make([]uint32, l.count)
	if _, _, err = walkNames(s.names, b[l.markers:l.tokens.table], l.count, l.plainLen, s.pos); err != nil {
		return nil, err
	}
	var ok bool
	if s.addrs, ok = t.open(b, va, lo, hi, l.count); !ok || !s.addrs.plausible(l.count, lo, hi) {
		return nil, &DamagedError{Table: "kallsyms_offsets", Offset: 0, Err: errNoOffsets}
	}
	s.index = sync.OnceValue(s.buildIndex)
	s.percpu = sync.OnceValues(s.percpuRange)
	return s, nil
}

// Len returns the number of symbols.
func (s *Symbols) Len() int {
	if s == nil {
		return 0
	}
	return len(s.pos)
}

// appendName appends symbol i's expanded name, its type first, to b.
func (s *Symbols) appendName(b []byte, i int) []byte {
	name, _ := nameAt(s.names, int(s.pos[i]), s.plain)
	for _, c := range name {
		t := s.tokens[c]
		if len(b)+len(t) > maxNameLen {
			break // longer than any kernel's: cut, as the kernel would
		}
		b = append(b, t...)
	}
	return b
}

// symbol returns symbol i.
func (s *Symbols) symbol(i int) Symbol {
	var buf [maxNameLen]byte
	sym := Symbol{Addr: s.addrs.at(i)}
	if b := s.appendName(buf[:0], i); len(b) > 0 {
		sym.Type, sym.Name = b[0], string(b[1:])
	}
	if s.addrs.form == formAbsolutePerCPU {
		sym.PerCPU = sym.Addr < kernelMap
	} else {
		lo, hi := s.percpu()
		sym.PerCPU = sym.Addr >= lo && sym.Addr < hi
	}
	return sym
}

// percpuRange returns where per-CPU variables are linked in kernels that have
// them in the image.
func (s *Symbols) percpuRange() (lo, hi hypervisor.VirtAddr) {
	a, okA := s.find("__per_cpu_start")
	b, okB := s.find("__per_cpu_end")
	if !okA || !okB {
		return 0, 0
	}
	return s.addrs.at(a), s.addrs.at(b)
}

// All yields every symbol in the order of kallsyms, which is that of addresses.
func (s *Symbols) All() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for i := range s.Len() {
			if !yield(s.symbol(i)) {
				return
			}
		}
	}
}

// Lookup returns the first symbol (by address) named name, or an error that
// wraps ErrNoSymbol.
func (s *Symbols) Lookup(name string) (Symbol, error) {
	if s.Len() == 0 {
		return Symbol{}, ErrNoKallsyms
	}
	i, ok := s.find(name)
	if !ok {
		return Symbol{}, fmt.Errorf("%w: %s", ErrNoSymbol, name)
	}
	return s.symbol(i), nil
}

// find returns the first symbol named name.
func (s *Symbols) find(name string) (int, bool) {
	var buf [maxNameLen]byte
	for i := range s.index().candidates(name) {
		if b := s.appendName(buf[:0], int(i)); len(b) > 0 && string(b[1:]) == name {
			return int(i), true
		}
	}
	return 0, false
}

// At returns the symbol that va lies in: the last one that is not above it,
// of several at one address the first. ok is false outside of the image.
func (s *Symbols) At(va hypervisor.VirtAddr) (name string, offset uint64, ok bool) {
	if s.Len() == 0 || va < s.lo || va >= s.hi {
		return "", 0, false
	}
	i := sort.Search(len(s.pos), func(i int) bool { return s.addrs.at(i) > va }) - 1
	if i < 0 {
		return "", 0, false
	}
	addr := s.addrs.at(i)
	if addr < s.lo {
		return "", 0, false
	}
	first := sort.Search(i, func(j int) bool { return s.addrs.at(j) >= addr })
	return s.symbol(first).Name, uint64(va - addr), true
}

// buildIndex hashes every name.
func (s *Symbols) buildIndex() *nameIndex {
	entries := make([]uint64, 0, len(s.pos))
	var buf [maxNameLen]byte
	for i := range s.pos {
		if b := s.appendName(buf[:0], i); len(b) > 1 {
			entries = append(entries, indexEntry(xxh3.Hash(b[1:]), uint32(i)))
		}
	}
	return newNameIndex(entries)
}

// isDamaged reports whether err says that a table does not hold together.
func isDamaged(err error) bool { return errors.Is(err, ErrDamaged) }
