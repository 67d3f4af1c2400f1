package linux

import (
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds of a module's symbols.
const (
	maxModuleSymbols = 64 << 10
	// maxLookSymbols bounds the modules whose symbols are read in one look.
	maxLookSymbols = 1 << 20
	maxSameSymbols = 16 // of one address
)

// Of an Elf64_Sym (include/uapi/linux/elf.h).
const (
	elfSymLen   = 24
	elfSymName  = 0 // st_name, 4 bytes
	elfSymIndex = 6 // st_shndx, 2 bytes
	elfSymValue = 8 // st_value, 8 bytes
	shnUndef    = 0 // SHN_UNDEF
)

// ksymFields is where the facts of a module's symbols lie.
type ksymFields struct {
	kallsyms           field // in struct module
	table, count, strs field // in struct mod_kallsyms
	span               span
}

func (k *ksymFields) facts() []fact {
	return []fact{
		{&k.kallsyms, 8, must, []string{"module.kallsyms"}}, // CONFIG_KALLSYMS
		{&k.table, 8, must, []string{"mod_kallsyms.symtab"}},
		{&k.count, 4, must, []string{"mod_kallsyms.num_symtab"}},
		{&k.strs, 8, must, []string{"mod_kallsyms.strtab"}},
	}
}

func (k *ksymFields) symbols() []symbol { return nil }

func (k *ksymFields) finish(types) { k.span = spanOf(k.table, k.count, k.strs) }

// moduleSymbols are the symbols of one module, as its loader left them.
type moduleSymbols struct {
	table []byte // Elf64_Sym each
	strs  hypervisor.VirtAddr
}

// moduleSymbol returns the symbol of the struct module at mod that addr lies in,
// in the part of its code that begins at start. Modules may lack symbols, and
// what cannot be read is no symbol.
func (m *codeMap) moduleSymbol(mod, start, addr hypervisor.VirtAddr) (name string, offset uint64, ok bool) {
	s, known := m.symbols[mod]
	if !known {
		read := 0
		for _, s := range m.symbols {
			read += len(s.table) / elfSymLen
		}
		var err error
		if s, err = m.readSymbols(mod, maxLookSymbols-read); err != nil {
			s = &moduleSymbols{}
		}
		m.symbols[mod] = s
	}
	// The last one that is not above addr: of several at one address, the first
	// with a name, as the kernel does it (find_kallsyms_symbol in
	// kernel/module/kallsyms.c).
	var at []uint32
	var value hypervisor.VirtAddr
	for i := range len(s.table) / elfSymLen {
		b := s.table[i*elfSymLen:]
		v := hypervisor.VirtAddr(binary.LittleEndian.Uint64(b[elfSymValue:]))
		if v < start || v > addr || v < value || binary.LittleEndian.Uint16(b[elfSymIndex:]) == shnUndef {
			continue
		}
		if v > value {
			at, value = at[:0], v
		}
		if len(at) < maxSameSymbols {
			at = append(at, binary.LittleEndian.Uint32(b[elfSymName:]))
		}
	}
	for _, a := range at {
		if name, err := m.g.r.cstring(s.strs+hypervisor.VirtAddr(a), maxCodeName); err == nil && name != "" {
			return name, uint64(addr - value), true
		}
	}
	return "", 0, false
}

func (m *codeMap) readSymbols(mod hypervisor.VirtAddr, limit int) (*moduleSymbols, error) {
	f, err := tableOf[ksymFields](m.g, nil)
	if err != nil {
		return nil, err
	}
	r := &m.g.r
	at, err := r.ptr(mod + hypervisor.VirtAddr(f.kallsyms.off))
	if err != nil {
		return nil, err
	}
	if err := r.check(mod, at, 8); err != nil {
		return nil, err
	}
	o, _, err := r.object(nil, at, f.span)
	if err != nil {
		return nil, err
	}
	n := o.uint(f.count)
	if n > maxModuleSymbols || int(n) > limit {
		return nil, fmt.Errorf("symbols of a module: %w: %d", ErrLimit, n)
	}
	table := o.ptr(f.table)
	if err := r.check(at, table, 8); err != nil {
		return nil, err
	}
	s := &moduleSymbols{table: make([]byte, n*elfSymLen), strs: o.ptr(f.strs)}
	return s, r.full(s.table, table)
}
