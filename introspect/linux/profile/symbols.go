package profile

import (
	"iter"

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
type Symbols struct{}

// Lookup returns the first symbol (by address) named name, or an error that
// wraps ErrNoSymbol.
func (s *Symbols) Lookup(name string) (Symbol, error) { return Symbol{}, ErrNoSymbol }

// At returns the symbol that va lies in: the last one that is not above it,
// of several at one address the first. ok is false outside of the image.
func (s *Symbols) At(va hypervisor.VirtAddr) (name string, offset uint64, ok bool) {
	return "", 0, false
}

// Len returns the number of symbols.
func (s *Symbols) Len() int { return 0 }

// All yields every symbol in the order of kallsyms, which is that of addresses.
func (s *Symbols) All() iter.Seq[Symbol] { return func(func(Symbol) bool) {} }
