package linux

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// Bounds of what the kernel runs.
const (
	maxCodeRanges = 256 << 10
	maxCodeSize   = 1 << 30 // the module area has 1 or 1.5 GiB
	maxCodeName   = 512     // KSYM_NAME_LEN, include/linux/kallsyms.h
)

// codeFields is where the facts of code lie.
type codeFields struct {
	text, textEnd                          hypervisor.VirtAddr // _stext, _etext
	bpfKsyms, trampolines                  hypervisor.VirtAddr
	insnSlots, optSlots                    hypervisor.VirtAddr
	coreText, initBase, initText           field // of a module, until 6.3
	initTextType                           uint64
	hasInitText                            bool
	ksymStart, ksymEnd, ksymName, ksymList field // struct bpf_ksym, since 5.7
	ksymSpan                               span
	opsTramp, opsTrampSize, opsList        field // struct ftrace_ops
	opsSpan                                span
	cachePages, pageList, pageInsns        field // struct kprobe_insn_cache, kprobe_insn_page
	pageSpan                               span
}

func (c *codeFields) facts() []fact {
	return []fact{
		{&c.coreText, 4, may, []string{"module.core_layout.text_size"}},
		{&c.initBase, 8, may, []string{"module.init_layout.base"}},
		{&c.initText, 4, may, []string{"module.init_layout.text_size"}},
		{&c.ksymStart, 8, may, []string{"bpf_ksym.start"}},
		{&c.ksymEnd, 8, may, []string{"bpf_ksym.end"}},
		{&c.ksymName, 0, may, []string{"bpf_ksym.name"}},
		{&c.ksymList, 16, may, []string{"bpf_ksym.lnode"}},
		{&c.opsTramp, 8, may, []string{"ftrace_ops.trampoline"}},
		{&c.opsTrampSize, 8, may, []string{"ftrace_ops.trampoline_size"}},
		{&c.opsList, 16, may, []string{"ftrace_ops.list"}}, // since 5.9
		{&c.cachePages, 16, may, []string{"kprobe_insn_cache.pages"}},
		{&c.pageList, 16, may, []string{"kprobe_insn_page.list"}},
		{&c.pageInsns, 8, may, []string{"kprobe_insn_page.insns"}},
	}
}

func (c *codeFields) symbols() []symbol {
	return []symbol{
		{&c.text, want, []string{"_stext"}},
		{&c.textEnd, want, []string{"_etext"}},
		{&c.bpfKsyms, may, []string{"bpf_kallsyms"}},
		{&c.trampolines, may, []string{"ftrace_ops_trampoline_list"}}, // since 5.9
		{&c.insnSlots, may, []string{"kprobe_insn_slots"}},
		{&c.optSlots, may, []string{"kprobe_optinsn_slots"}},
	}
}

func (c *codeFields) finish(t types) {
	if n, err := t.EnumValue("mod_mem_type", "MOD_INIT_TEXT"); err == nil && n >= 0 && n < maxModuleTypes {
		c.initTextType, c.hasInitText = uint64(n), true
	}
	c.ksymSpan = spanOf(c.ksymStart, c.ksymEnd, c.ksymName, c.ksymList)
	c.opsSpan = spanOf(c.opsTramp, c.opsTrampSize, c.opsList)
	c.pageSpan = spanOf(c.pageList, c.pageInsns)
}

// codeRange is a run of code.
type codeRange struct {
	start, end hypervisor.VirtAddr
	kind       CodeKind
	owner      string
	module     hypervisor.VirtAddr // the struct module
}

// codeMap knows whose code lies where. It is for one look at the guest, and for
// one goroutine.
type codeMap struct {
	g       *Guest
	ranges  []codeRange // sorted, none overlaps the next
	symbols map[hypervisor.VirtAddr]*moduleSymbols
}

// codeMap learns what code the kernel has now: its own text, that of its
// modules, and what it has made itself: compiled eBPF, trampolines of ftrace,
// slots of kprobes. What of it could not be read is told in cov, which may be
// nil.
func (g *Guest) codeMap(ctx context.Context, cov *introspect.Coverage) (*codeMap, error) {
	if cov == nil {
		cov = &introspect.Coverage{}
	}
	f, err := tableOf[codeFields](g, cov)
	if err != nil {
		return nil, fmt.Errorf("code of the kernel: %w", err)
	}
	m := &codeMap{g: g, symbols: map[hypervisor.VirtAddr]*moduleSymbols{}}
	m.add(cov, "kernel", f.text, f.text, f.textEnd, codeRange{kind: CodeKernel})
	for _, part := range []struct {
		what string
		find func(context.Context, *codeFields, *introspect.Coverage) error
	}{
		{"code of modules", m.modules},
		{"list of compiled eBPF", m.bpf},
		{"list of trampolines", m.ftrace},
		{"slots of kprobes", m.kprobes},
	} {
		if err := part.find(ctx, f, cov); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			cov.Add(part.what, 0, err)
		}
	}
	m.sort()
	return m, nil
}

// add adds the code from start to end, which the structure at where tells of.
func (m *codeMap) add(cov *introspect.Coverage, what string, where, start, end hypervisor.VirtAddr, r codeRange) {
	if start == 0 || start == end {
		return
	}
	if err := m.g.r.check(where, start, 1); err != nil {
		cov.Add(what, where, err)
		return
	}
	if end < start || end-start > maxCodeSize || len(m.ranges) >= maxCodeRanges {
		cov.Add(what, where, fmt.Errorf("code from %#x to %#x: %w", uint64(start), uint64(end), ErrTorn))
		return
	}
	r.start, r.end = start, end
	m.ranges = append(m.ranges, r)
}

// sort brings the ranges in order. Where they overlap, the one that begins first
// wins: what a guest says of its modules is no cover for anything else.
func (m *codeMap) sort() {
	slices.SortStableFunc(m.ranges, func(a, b codeRange) int {
		return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end))
	})
	out := m.ranges[:0]
	for _, r := range m.ranges {
		if n := len(out); n > 0 && r.start < out[n-1].end {
			if r.end <= out[n-1].end {
				continue
			}
			r.start = out[n-1].end
		}
		out = append(out, r)
	}
	m.ranges = out
}

func (m *codeMap) modules(ctx context.Context, f *codeFields, cov *introspect.Coverage) error {
	l, err := m.g.moduleLooks(ctx, false)
	switch {
	case errors.Is(err, profile.ErrNoType), errors.Is(err, profile.ErrNoSymbol):
		return nil // a kernel without loadable modules
	case err != nil:
		return err
	}
	cov.Merge(l.Coverage)
	lay := &m.g.lay.module
	for i := range l.Modules {
		mod := &l.Modules[i]
		r := codeRange{kind: CodeModule, owner: mod.Name, module: mod.KernelAddress}
		o, _, err := m.g.r.object(nil, mod.KernelAddress, spanOf(lay.mem, lay.coreBase, f.coreText, f.initBase, f.initText))
		if err != nil {
			cov.Add("code of a module", mod.KernelAddress, err)
			continue
		}
		part := func(start hypervisor.VirtAddr, size uint64) {
			m.add(cov, "code of a module", mod.KernelAddress, start, start+hypervisor.VirtAddr(min(size, maxCodeSize+1)), r)
		}
		if !lay.mem.ok {
			part(o.ptr(lay.coreBase), o.uint(f.coreText))
			part(o.ptr(f.initBase), o.uint(f.initText))
			continue
		}
		for i := range lay.memLen {
			if i != lay.textType && (!f.hasInitText || i != f.initTextType) {
				continue
			}
			at := lay.mem.off + i*lay.memElem
			part(o.ptr(field{off: at + lay.memBase.off, size: 8, ok: true}), o.uint(field{off: at + lay.memSize.off, size: 4, ok: true}))
		}
	}
	return nil
}

// bpf walks the list of what /proc/kallsyms has of eBPF: programs, their
// functions, trampolines and dispatchers.
func (m *codeMap) bpf(ctx context.Context, f *codeFields, cov *introspect.Coverage) error {
	if f.bpfKsyms == 0 || !f.ksymStart.ok || !f.ksymEnd.ok || !f.ksymList.ok || f.ksymSpan.hi-f.ksymSpan.lo > 2*maxField {
		return nil
	}
	_, err := m.g.r.walkList(ctx, f.bpfKsyms, forward, maxCodeRanges, func(node, _ hypervisor.VirtAddr) (links, error) {
		at := node - hypervisor.VirtAddr(f.ksymList.off)
		o, _, err := m.g.r.object(nil, at, f.ksymSpan)
		if err != nil {
			return links{}, err
		}
		r := codeRange{kind: CodeBPF, owner: cString(o.bytes(f.ksymName))}
		m.add(cov, "compiled eBPF", at, o.ptr(f.ksymStart), o.ptr(f.ksymEnd), r)
		return o.links(f.ksymList), nil
	})
	return err
}

func (m *codeMap) ftrace(ctx context.Context, f *codeFields, cov *introspect.Coverage) error {
	if f.trampolines == 0 || !f.opsTramp.ok || !f.opsTrampSize.ok || !f.opsList.ok {
		return nil
	}
	_, err := m.g.r.walkList(ctx, f.trampolines, forward, maxCodeRanges, func(node, _ hypervisor.VirtAddr) (links, error) {
		at := node - hypervisor.VirtAddr(f.opsList.off)
		o, _, err := m.g.r.object(nil, at, f.opsSpan)
		if err != nil {
			return links{}, err
		}
		start := o.ptr(f.opsTramp)
		m.add(cov, "trampoline", at, start, start+hypervisor.VirtAddr(min(o.uint(f.opsTrampSize), maxCodeSize+1)), codeRange{kind: CodeFtrace})
		return o.links(f.opsList), nil
	})
	return err
}

// kprobes walks the pages that hold the instructions that kprobes have moved.
func (m *codeMap) kprobes(ctx context.Context, f *codeFields, cov *introspect.Coverage) error {
	if !f.cachePages.ok || !f.pageList.ok || !f.pageInsns.ok {
		return nil
	}
	for _, cache := range []hypervisor.VirtAddr{f.insnSlots, f.optSlots} {
		if cache == 0 {
			continue
		}
		_, err := m.g.r.walkList(ctx, cache+hypervisor.VirtAddr(f.cachePages.off), forward, maxCodeRanges, func(node, _ hypervisor.VirtAddr) (links, error) {
			at := node - hypervisor.VirtAddr(f.pageList.off)
			o, _, err := m.g.r.object(nil, at, f.pageSpan)
			if err != nil {
				return links{}, err
			}
			start := o.ptr(f.pageInsns)
			m.add(cov, "slots of kprobes", at, start, start+hypervisor.PageSize, codeRange{kind: CodeKprobe})
			return o.links(f.pageList), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// owner returns what addr lies in.
func (m *codeMap) owner(addr hypervisor.VirtAddr) Code {
	c := Code{Address: addr, Kind: CodeUnknown}
	i, found := slices.BinarySearchFunc(m.ranges, addr, func(r codeRange, a hypervisor.VirtAddr) int { return cmp.Compare(r.start, a) })
	if !found {
		i--
	}
	if i < 0 || addr >= m.ranges[i].end {
		// What is in the kernel's image but no code of it has a name still.
		c.Symbol, c.Offset, _ = m.g.kernel.SymbolAt(addr)
		return c
	}
	r := &m.ranges[i]
	c.Kind, c.Owner, c.Offset = r.kind, r.owner, uint64(addr-r.start)
	switch r.kind {
	case CodeKernel:
		if name, off, ok := m.g.kernel.SymbolAt(addr); ok {
			c.Symbol, c.Offset = name, off
		}
	case CodeModule:
		if name, off, ok := m.moduleSymbol(r.module, r.start, addr); ok {
			c.Symbol, c.Offset = name, off
		}
	}
	return c
}
