package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
	"github.com/vantage-vmi/vantage/introspect/paging"
	"github.com/vantage-vmi/vantage/node"
)

// maxPieces is how many runs of physical memory one virtual area may be in: each
// is a trap of its own.
const maxPieces = 256

// kernelHalf is where the kernel's addresses begin, whatever the paging mode.
const kernelHalf = 1 << 63

// guestKernel is what watch needs of a guest's kernel.
type guestKernel struct {
	space    *paging.AddressSpace
	symbol   func(name string) (hypervisor.VirtAddr, error)
	symbolAt func(hypervisor.VirtAddr) (name string, offset uint64, ok bool)
}

// places finds what watchPlaces are. The kernel is looked for when it is needed:
// a guest that runs something else can be watched too.
type places struct {
	vcpus  func() ([]*paging.AddressSpace, error) // that the vCPUs use at the moment
	kernel func() (*guestKernel, error)
	found  *guestKernel // nil: not looked for, or not there
}

// newPlaces returns the places of vm.
func newPlaces(ctx context.Context, n *node.Node, vm hypervisor.VM) *places {
	p := &places{}
	p.vcpus = sync.OnceValues(func() (spaces []*paging.AddressSpace, err error) {
		rr, ok := vm.(hypervisor.RegisterReader)
		if !ok {
			return nil, nil
		}
		regs, err := rr.Registers(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range regs {
			if root, err := paging.RootFromRegisters(r); err == nil { // else it does not translate
				spaces = append(spaces, paging.New(vm, root))
			}
		}
		return spaces, nil
	})
	p.kernel = sync.OnceValues(func() (*guestKernel, error) {
		g, err := n.Linux(ctx, vm)
		if err != nil {
			return nil, err
		}
		k := g.Kernel()
		p.found = &guestKernel{
			space:    k.Space,
			symbol:   func(name string) (hypervisor.VirtAddr, error) { return oneSymbol(ctx, k.Symbols, name) },
			symbolAt: k.SymbolAt,
		}
		return p.found, nil
	})
	return p
}

// oneSymbol is the address of the one symbol that is called name.
func oneSymbol(ctx context.Context, symbols *profile.Symbols, name string) (hypervisor.VirtAddr, error) {
	s, err := symbols.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("%w (symbols of modules are not looked up)", err)
	}
	if s.PerCPU {
		return 0, fmt.Errorf("symbol %s is a per-CPU variable, which each vCPU has elsewhere: give the address of one, virt:0x…", name)
	}
	// A static function's name may be that of others too: a trap on the wrong
	// one would be silent.
	const most = 4
	var at []string
	total := 0
	for other := range symbols.All() {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if other.Name != name || total > 0 && other.Addr == s.Addr {
			continue
		}
		if total++; total <= most {
			at = append(at, "virt:"+other.Addr.String())
		}
	}
	if total > 1 {
		return 0, fmt.Errorf("%d symbols are called %s: name one by its address: %s", total, name, strings.Join(at, ", "))
	}
	return s.Addr, nil
}

// traps makes the driver's traps of s: several where virtual memory is in pieces.
func (p *places) traps(ctx context.Context, s *watchSpec) ([]hypervisor.Trap, error) {
	t := s.trap
	switch t.Kind {
	case hypervisor.TrapPage, hypervisor.TrapBreakpoint, hypervisor.TrapHardware:
	default:
		return []hypervisor.Trap{t}, nil // without an address
	}
	if s.place.kind == placePhys {
		t.Addr = hypervisor.PhysAddr(s.place.addr)
		return []hypervisor.Trap{t}, nil
	}
	va, err := p.virt(s.place)
	if err != nil {
		return nil, err
	}
	if t.Kind == hypervisor.TrapHardware {
		t.Virt = va
		return []hypervisor.Trap{t}, checkAligned(uint64(va), t.Size)
	}
	if va < kernelHalf {
		return nil, fmt.Errorf("%v is not of the kernel, and each process has its own there: give the guest-physical address, or use --hw", va)
	}
	pieces, err := p.pieces(ctx, va, max(t.Size, 1))
	if err != nil {
		return nil, err
	}
	ts := make([]hypervisor.Trap, 0, len(pieces))
	for _, r := range pieces {
		t.Addr = r.Start
		if t.Kind == hypervisor.TrapPage {
			t.Size = r.Size
		}
		ts = append(ts, t)
	}
	return ts, nil
}

// virt is the virtual address of a place that has one.
func (p *places) virt(at watchPlace) (hypervisor.VirtAddr, error) {
	if at.kind == placeVirt {
		return hypervisor.VirtAddr(at.addr), nil
	}
	k, err := p.kernel()
	if err != nil {
		return 0, fmt.Errorf("look up symbol %s: %w", at.symbol, err)
	}
	va, err := k.symbol(at.symbol)
	if err != nil {
		return 0, err
	}
	if end := va + hypervisor.VirtAddr(at.offset); end >= va {
		return end, nil
	}
	return 0, fmt.Errorf("%s+%#x is behind the last address", at.symbol, at.offset)
}

// pieces are the runs of physical memory that size bytes at va are in.
func (p *places) pieces(ctx context.Context, va hypervisor.VirtAddr, size uint64) ([]hypervisor.Range, error) {
	if va+hypervisor.VirtAddr(size-1) < va {
		return nil, fmt.Errorf("%d bytes at %v are more than there are addresses", size, va)
	}
	var out []hypervisor.Range
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		gpa, err := p.phys(va)
		if err != nil {
			return nil, err
		}
		n := min(size, hypervisor.PageSize-va.Offset())
		if last := len(out) - 1; last >= 0 && out[last].End() == gpa {
			out[last].Size += n
		} else {
			if len(out) == maxPieces {
				return nil, fmt.Errorf("it is in more than %d pieces of physical memory: watch a smaller SIZE", maxPieces)
			}
			out = append(out, hypervisor.Range{Start: gpa, Size: n})
		}
		va, size = va+hypervisor.VirtAddr(n), size-n
	}
	return out, nil
}

// phys translates an address of the kernel. Each process's page table has the
// kernel's half; but under page-table isolation (PTI) a vCPU in user mode uses one
// without it, so that all vCPUs and at last the kernel's own table are tried.
func (p *places) phys(va hypervisor.VirtAddr) (hypervisor.PhysAddr, error) {
	var spaces []*paging.AddressSpace
	if p.found == nil {
		var err error
		if spaces, err = p.vcpus(); err != nil {
			return 0, err
		}
	}
	for _, as := range spaces {
		gpa, err := as.PhysOf(va)
		if err == nil || errors.Is(err, hypervisor.ErrGone) {
			return gpa, err
		}
	}
	k, err := p.kernel()
	if err != nil {
		return 0, fmt.Errorf("%v is not mapped by what the vCPUs use, and the kernel's page table was not found: %w", va, err)
	}
	gpa, err := k.space.PhysOf(va)
	if err != nil {
		return 0, fmt.Errorf("translate %v: %w", va, err)
	}
	return gpa, nil
}
