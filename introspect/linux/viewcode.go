package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// Bounds of the search for code.
const (
	// viewCodeEnd is where the area of modules ends
	// (Documentation/arch/x86/x86_64/mm.rst).
	viewCodeEnd  hypervisor.VirtAddr = 0xffff_ffff_ff00_0000
	viewCodeBig                      = 2 << 20   // pages of programs' packs, and what the image is rounded up to
	viewCodeRead                     = 256 << 20 // bytes of code without an owner that are looked at
	viewCodeMost                     = 4096      // of them that are told
	viewCodeSize                     = 2 << 30   // the area of modules has 1 or 1.5 GiB
)

// CodeRange is code in the area of modules that belongs to nothing that the
// kernel knows of.
type CodeRange struct {
	Start hypervisor.VirtAddr `json:"start"`
	Size  uint64              `json:"size"` // bytes, whole pages
	// Allocator is the kernel's function that asked for the memory, as far as
	// its records of areas tell; empty where they do not.
	Allocator string `json:"allocator"`
}

type viewSpan struct{ start, end hypervisor.VirtAddr }

// viewCode collects the code in the area of modules whose owner is known.
type viewCode struct {
	g     *Guest
	f     *viewCodeFacts
	cov   *introspect.Coverage
	known []viewSpan
}

// unknownCode returns what is executable in the area of modules, by the kernel's
// own page table, and belongs neither to one of the modules at mods nor to what
// else the kernel keeps there: compiled eBPF, trampolines of ftrace, moved
// instructions of kprobes, thunks, and memory that is set aside for all those and
// holds nothing but traps.
func (g *Guest) unknownCode(ctx context.Context, mods []hypervisor.VirtAddr, cov *introspect.Coverage) ([]CodeRange, error) {
	f, err := tableOf[viewCodeFacts](g, nil)
	if err != nil || f.imageEnd == 0 {
		return nil, err
	}
	v := &viewCode{g: g, f: f, cov: cov}
	for _, m := range mods {
		v.module(m)
	}
	if err := v.records(ctx); err != nil {
		return nil, err
	}
	slices.SortFunc(v.known, func(a, b viewSpan) int { return cmp.Compare(a.start, b.start) })
	found, err := v.search(ctx)
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return v.name(found), nil
}

// add notes code from start on, to the ends of its pages.
func (v *viewCode) add(start hypervisor.VirtAddr, size uint64) {
	if start < v.g.r.lowest || size == 0 || size > viewCodeSize {
		return
	}
	const mask = hypervisor.PageSize - 1
	end := start + hypervisor.VirtAddr(size)
	if end < start || end > viewCodeEnd {
		return
	}
	v.known = append(v.known, viewSpan{start &^ mask, (end + mask) &^ mask})
}

// module adds all memory of the struct module at addr.
func (v *viewCode) module(addr hypervisor.VirtAddr) {
	m := &v.g.lay.module
	o, _, err := v.g.r.object(nil, addr, spanOf(m.coreBase, m.coreSize, m.initSize, m.mem, v.f.initBase))
	if err != nil {
		v.cov.Add("module", addr, err)
		return
	}
	if !m.mem.ok {
		v.add(o.ptr(m.coreBase), o.uint(m.coreSize))
		v.add(o.ptr(v.f.initBase), o.uint(m.initSize))
		return
	}
	for i := range m.memLen {
		at := m.mem.off + i*m.memElem
		v.add(o.ptr(field{off: at + m.memBase.off, size: 8, ok: true}), o.uint(field{off: at + m.memSize.off, size: 4, ok: true}))
	}
}

// records adds what the kernel's own lists of such code have.
func (v *viewCode) records(ctx context.Context) error {
	f := v.f
	slots := func(cache hypervisor.VirtAddr) hypervisor.VirtAddr {
		if cache == 0 || !f.cachePages.ok {
			return 0
		}
		return cache + hypervisor.VirtAddr(f.cachePages.off)
	}
	for _, l := range []struct {
		what        string
		head        hypervisor.VirtAddr
		node, start field
		size        field
		fixed       uint64 // where there is no size
		span        span
	}{
		// A pack has a large page for each NUMA node.
		{"packs of eBPF programs", f.packs, f.packNode, f.packStart, field{}, viewCodeBig, f.packSpan},
		{"trampolines of ftrace", f.tramps, f.trampNode, f.trampStart, f.trampSize, 0, f.trampSpan},
		{"pages of kprobes", slots(f.slots), f.slotNode, f.slotStart, field{}, hypervisor.PageSize, f.slotSpan},
		{"pages of kprobes", slots(f.optSlots), f.slotNode, f.slotStart, field{}, hypervisor.PageSize, f.slotSpan},
	} {
		if l.head == 0 || !l.node.ok || !l.start.ok || l.fixed == 0 && !l.size.ok {
			continue
		}
		_, err := v.g.r.walkList(ctx, l.head, forward, maxModules, func(node, _ hypervisor.VirtAddr) (links, error) {
			o, _, err := v.g.r.object(nil, node-hypervisor.VirtAddr(l.node.off), l.span)
			if err != nil {
				return links{}, err
			}
			size := l.fixed
			if size == 0 {
				size = o.uint(l.size)
			}
			v.add(o.ptr(l.start), size)
			return o.links(l.node), nil
		})
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			v.cov.Add(l.what, l.head, err)
		}
	}
	return nil
}

// search returns the runs of pages that can be executed, are not known, and hold
// code.
func (v *viewCode) search(ctx context.Context) ([]viewSpan, error) {
	lo := (v.f.imageEnd + viewCodeBig - 1) &^ (viewCodeBig - 1)
	var found []viewSpan
	left := viewCodeRead
	next := 0 // the first of known that ends behind the page
	var page [hypervisor.PageSize]byte
	for run, err := range v.g.kernel.Space.Runs(ctx, lo, viewCodeEnd, 0) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if missing := (*paging.NotMappedError)(nil); err != nil && !errors.As(err, &missing) {
			v.cov.Add("area of modules", run.Virt, err)
		}
		if err != nil || !run.Flags.Executable() {
			continue
		}
		for at := run.Virt; at < run.End() && at < viewCodeEnd; at += hypervisor.PageSize {
			for next < len(v.known) && v.known[next].end <= at {
				next++
			}
			if next < len(v.known) && v.known[next].start <= at {
				at = v.known[next].end - hypervisor.PageSize
				continue
			}
			if left -= hypervisor.PageSize; left < 0 || len(found) >= viewCodeMost {
				v.cov.Add("area of modules", at, fmt.Errorf("code: %w", ErrLimit))
				return found, nil
			}
			if err := v.g.r.full(page[:], at); err == nil && viewIdle(page[:]) {
				continue
			}
			if n := len(found); n > 0 && found[n-1].end == at {
				found[n-1].end += hypervisor.PageSize
			} else {
				found = append(found, viewSpan{at, at + hypervisor.PageSize})
			}
		}
	}
	return found, nil
}

// viewIdle reports whether a page holds nothing that does anything: traps and
// zeros, with which the kernel fills what it has set aside for code, and jumps
// through registers, which are all that a page of thunks against indirect target
// selection has (arch/x86/kernel/alternative.c: its_init_thunk).
func viewIdle(page []byte) bool {
	for i := 0; i < len(page); i++ {
		switch page[i] {
		case 0, 0xcc:
			continue
		case 0x41: // the prefix of r8 to r15
			i++
		}
		if i+1 >= len(page) || page[i] != 0xff || page[i+1]&^7 != 0xe0 {
			return false
		}
		i++
	}
	return true
}

// viewAllocators begin the names of what allocates such code on kernels that have
// no list of it: programs of eBPF up to 5.17, and the kernel's own pages.
var viewAllocators = []string{"bpf_", "alloc_insn_page", "create_trampoline", "arch_ftrace_update_trampoline", "alloc_tramp", "its_"}

// name returns the ranges with who allocated them, without those that the
// kernel's own parts have for other code than modules.
func (v *viewCode) name(found []viewSpan) []CodeRange {
	roots, err := v.g.viewAreaRoots(v.f)
	if err != nil {
		v.cov.Add("areas of virtual memory", 0, err)
	}
	out := make([]CodeRange, 0, len(found))
	for _, s := range found {
		for at := s.start; at < s.end; {
			r := CodeRange{Start: at, Size: uint64(s.end - at)}
			if a, ok := v.g.viewAreaOf(v.f, roots, at); ok {
				r.Size = uint64(min(s.end, a.end) - at)
				if a.caller != 0 && v.g.kernel.Symbols != nil {
					r.Allocator, _, _ = v.g.kernel.Symbols.At(a.caller)
				}
			}
			at += hypervisor.VirtAddr(r.Size)
			if !slices.ContainsFunc(viewAllocators, func(p string) bool { return strings.HasPrefix(r.Allocator, p) }) {
				out = append(out, r)
			}
		}
	}
	return out
}
