package profile

import (
	"log/slog"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// Options say how Find works. The zero value is ready for use.
type Options struct {
	// CacheDir is where profiles are kept between runs; it is created with mode
	// 0700. Empty: no cache.
	CacheDir string
	// Logger gets what was tried and refused. Nil: nothing is logged.
	Logger *slog.Logger
}

// Kernel is a Linux kernel found in memory. It is safe for concurrent use.
type Kernel struct {
	// Release is the kernel's release as `uname -r` prints it. Like Banner it
	// is a guest string: escape it before printing.
	Release string
	// Banner is /proc/version's text, without the newline.
	Banner string
	// BuildID is the GNU build-id in hexadecimal, or "h-" and a hash of banner
	// and tables when the kernel has none.
	BuildID string
	// VirtBase is the address of _text, the first byte of the kernel's image.
	VirtBase hypervisor.VirtAddr
	// PhysBase is where VirtBase lies in physical memory.
	PhysBase hypervisor.PhysAddr
	// PageOffset is where the direct map of physical address 0 begins
	// (page_offset_base).
	PageOffset hypervisor.VirtAddr
	// VmemmapBase is where struct page of frame 0 lies (vmemmap_base).
	VmemmapBase hypervisor.VirtAddr
	// Root is the kernel's own page table (init_top_pgt).
	Root paging.Root
	// Space translates through Root.
	Space *paging.AddressSpace
	// Types are the kernel's types. Nil when Find returned ErrNoBTF.
	Types *Types
	// Symbols are the kernel's symbols.
	Symbols *Symbols
	// FromCache reports whether the tables' indices came from Options.CacheDir.
	FromCache bool
}

// Symbol returns the address of the symbol name: the first one when several
// have that name. It returns an error that wraps ErrNoSymbol when none has.
//
// The address of a per-CPU variable is what the kernel adds a CPU's entry of
// __per_cpu_offset to: an offset in the per-CPU area before Linux 6.15, an
// address in the image since. The sum is right for both.
func (k *Kernel) Symbol(name string) (hypervisor.VirtAddr, error) {
	s, err := k.Symbols.Lookup(name)
	return s.Addr, err
}

// SymbolAt returns the symbol of the kernel's image that va lies in, and va's
// offset from it in bytes. ok is false when va is not in the image.
func (k *Kernel) SymbolAt(va hypervisor.VirtAddr) (name string, offset uint64, ok bool) {
	return k.Symbols.At(va)
}
