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

// Bounds of modules.
const (
	maxModules     = 16 << 10
	maxModuleTypes = 16 // MOD_MEM_NUM_TYPES is 7
)

// moduleFields is where the facts of modules lie.
type moduleFields struct {
	state, list, name                       field
	coreBase, coreSize, initSize            field // until 6.3
	mem, memBase, memSize                   field // since 6.4; the last two in struct module_memory
	memLen, memElem                         uint64
	textType                                uint64
	kobjMod, kobjEntry, ksetList            field // in module_kobject, kobject and kset
	treeRoot, nodeMod, nodeLatch, latchNode field // mod_tree_root, mod_tree_node, latch_tree_node
	rbRight, rbLeft                         field
	span                                    span
	live, coming, going, unformed           uint64
	kobj                                    field // in struct module_kobject
}

func (m *moduleFields) facts() []fact {
	return []fact{
		{&m.state, 4, may, []string{"module.state"}},
		{&m.list, 16, may, []string{"module.list"}},
		{&m.name, 0, may, []string{"module.name"}},
		{&m.coreBase, 8, may, []string{"module.core_layout.base"}},
		{&m.coreSize, 4, may, []string{"module.core_layout.size"}},
		{&m.initSize, 4, may, []string{"module.init_layout.size"}},
		{&m.mem, 0, may, []string{"module.mem"}},
		{&m.memBase, 8, may, []string{"module_memory.base"}},
		{&m.memSize, 4, may, []string{"module_memory.size"}},
		{&m.kobj, 0, may, []string{"module_kobject.kobj"}},
		{&m.kobjMod, 8, may, []string{"module_kobject.mod"}},
		{&m.kobjEntry, 16, may, []string{"kobject.entry"}},
		{&m.ksetList, 16, may, []string{"kset.list"}},
		{&m.treeRoot, 8, may, []string{"mod_tree_root.root.tree"}}, // the first of two
		{&m.nodeMod, 8, may, []string{"mod_tree_node.mod"}},
		{&m.nodeLatch, 0, may, []string{"mod_tree_node.node"}},
		{&m.latchNode, 0, may, []string{"latch_tree_node.node"}},
		{&m.rbRight, 8, may, []string{"rb_node.rb_right"}},
		{&m.rbLeft, 8, may, []string{"rb_node.rb_left"}},
	}
}

func (m *moduleFields) finish(t types) {
	if f, err := t.Field("module.mem"); err == nil && m.mem.ok {
		m.memLen, m.memElem = min(f.Len, maxModuleTypes), f.Elem
		if m.memElem == 0 || m.memLen*m.memElem > m.mem.size {
			m.mem.ok = false
		}
	}
	m.live, m.coming, m.going, m.unformed = 0, 1, 2, 3
	for _, v := range []struct {
		enum, name string
		to         *uint64
	}{
		{"mod_mem_type", "MOD_TEXT", &m.textType},
		{"module_state", "MODULE_STATE_LIVE", &m.live},
		{"module_state", "MODULE_STATE_COMING", &m.coming},
		{"module_state", "MODULE_STATE_GOING", &m.going},
		{"module_state", "MODULE_STATE_UNFORMED", &m.unformed},
	} {
		if n, err := t.EnumValue(v.enum, v.name); err == nil && n >= 0 {
			*v.to = uint64(n)
		}
	}
	if m.name.size > 64 {
		m.name.size = 64 // MODULE_NAME_LEN is 64 less a pointer
	}
}

func (m *moduleFields) spans() {
	m.span = spanOf(m.state, m.list, m.name, m.coreBase, m.coreSize, m.initSize, m.mem)
}

// usable reports whether modules can be read on this kernel.
func (m *moduleFields) usable() bool {
	return m.list.ok && m.name.ok && (m.mem.ok && m.memBase.ok && m.memSize.ok || m.coreBase.ok && m.coreSize.ok)
}

// moduleView is one view of the modules.
type moduleView struct {
	view  View
	there map[hypervisor.VirtAddr]struct{}
	whole bool
}

// Modules lists the loaded modules by three views: the list behind
// /proc/modules, the tree that finds a module by an address in it, and sysfs.
// A module that one of them lacks is marked hidden, unless that one could not be
// walked to its end; SeenIn always says who has it. One that all of them lack
// leaves its code, which UnknownCode tells of.
//
// It returns an error that wraps profile.ErrNoType or profile.ErrNoSymbol for a
// kernel without loadable modules.
func (g *Guest) Modules(ctx context.Context) (ModuleList, error) {
	return g.moduleLooks(ctx, true)
}

// moduleLooks looks at the views until they agree, on a live guest a few times at
// most, and if code is set at the code that belongs to none of them. What is such
// code in one look only was a module that came or went.
func (g *Guest) moduleLooks(ctx context.Context, code bool) (ModuleList, error) {
	if !g.lay.module.usable() {
		return ModuleList{Coverage: &introspect.Coverage{}}, fmt.Errorf("list modules: %w: module", profile.ErrNoType)
	}
	if g.sym.modules == 0 {
		return ModuleList{Coverage: &introspect.Coverage{}}, fmt.Errorf("list modules: %w", errNoSymbol("modules"))
	}
	var best ModuleList
	var unknown []CodeRange // in every look so far
	for i := range g.rounds() {
		l, err := g.moduleLook(ctx)
		if err != nil {
			return l, fmt.Errorf("list modules: %w", err)
		}
		if code {
			mods := make([]hypervisor.VirtAddr, len(l.Modules))
			for i := range l.Modules {
				mods[i] = l.Modules[i].KernelAddress
			}
			found, err := g.unknownCode(ctx, mods, l.Coverage)
			if ctx.Err() != nil {
				return l, fmt.Errorf("list modules: %w", ctx.Err())
			}
			if err != nil {
				l.Coverage.Add("code of no module", 0, err)
			}
			if i == 0 {
				unknown = found
			}
			unknown = slices.DeleteFunc(unknown, func(c CodeRange) bool { return !slices.Contains(found, c) })
		}
		odd := func(m Module) bool { return m.Hidden }
		if i == 0 || l.Coverage.Total() <= best.Coverage.Total() {
			best = l
		}
		if l.Coverage.Complete() && !slices.ContainsFunc(l.Modules, odd) && len(unknown) == 0 {
			best = l
			break
		}
	}
	best.UnknownCode = unknown
	return best, nil
}

func (g *Guest) moduleLook(ctx context.Context) (ModuleList, error) {
	cov := &introspect.Coverage{}
	l := ModuleList{Modules: []Module{}, Coverage: cov}
	views := []*moduleView{
		{view: ViewModuleList}, {view: ViewModuleTree}, {view: ViewSysfs},
	}
	for i, walk := range []func(context.Context, *moduleView) error{g.moduleList, g.moduleTree, g.moduleSysfs} {
		v := views[i]
		v.there = map[hypervisor.VirtAddr]struct{}{}
		err := walk(ctx, v)
		if ctx.Err() != nil {
			return l, ctx.Err()
		}
		if err != nil && !errors.Is(err, errNoView) {
			cov.Add("view "+string(v.view), 0, err)
		}
	}
	all := map[hypervisor.VirtAddr]struct{}{}
	for _, v := range views {
		for a := range v.there {
			all[a] = struct{}{}
		}
	}
	for a := range all {
		m, state, err := g.module(a)
		if err != nil {
			cov.Add("module", a, err)
			continue
		}
		for _, v := range views {
			if _, ok := v.there[a]; ok {
				m.SeenIn = append(m.SeenIn, v.view)
			} else if v.whole && (state == g.lay.module.live || v.view == ViewModuleList) {
				// While it is loaded or unloaded, it is on its way into or
				// out of the others.
				m.Hidden = true
			}
		}
		l.Modules = append(l.Modules, m)
	}
	slices.SortFunc(l.Modules, func(a, b Module) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.KernelAddress, b.KernelAddress))
	})
	return l, nil
}

// errNoView says that this kernel does not have a view at all.
var errNoView = errors.New("no such view in this kernel")

func (g *Guest) moduleList(ctx context.Context, v *moduleView) error {
	f := &g.lay.module
	round, err := g.r.walkList(ctx, g.sym.modules, forward, maxModules, func(node, _ hypervisor.VirtAddr) (links, error) {
		v.there[node-hypervisor.VirtAddr(f.list.off)] = struct{}{}
		return g.r.readLinks(node)
	})
	v.whole = round
	if !round {
		_, back := g.r.walkList(ctx, g.sym.modules, backward, maxModules, func(node, _ hypervisor.VirtAddr) (links, error) {
			v.there[node-hypervisor.VirtAddr(f.list.off)] = struct{}{}
			return g.r.readLinks(node)
		})
		if v.whole = back == nil; back != nil {
			err = errors.Join(err, back)
		}
	}
	return err
}

// moduleSysfs walks the kset of /sys/module, which holds built-in modules too.
func (g *Guest) moduleSysfs(ctx context.Context, v *moduleView) error {
	f := &g.lay.module
	if g.sym.moduleKset == 0 || !f.kobj.ok || !f.kobjMod.ok || !f.kobjEntry.ok || !f.ksetList.ok {
		return errNoView
	}
	kset, err := g.r.ptr(g.sym.moduleKset)
	if err != nil {
		return err
	}
	if kset == 0 {
		return errNoView // a kernel without sysfs
	}
	if err := g.r.check(g.sym.moduleKset, kset, 8); err != nil {
		return err
	}
	round, err := g.r.walkList(ctx, kset+hypervisor.VirtAddr(f.ksetList.off), forward, maxModules, func(node, _ hypervisor.VirtAddr) (links, error) {
		mkobj := node - hypervisor.VirtAddr(f.kobj.off+f.kobjEntry.off)
		mod, err := g.r.ptr(mkobj + hypervisor.VirtAddr(f.kobjMod.off))
		if err != nil {
			return links{}, err
		}
		if mod != 0 { // a built-in one has none
			if err := g.r.check(mkobj, mod, 8); err != nil {
				return links{}, err
			}
			v.there[mod] = struct{}{}
		}
		return g.r.readLinks(node)
	})
	v.whole = round
	return err
}

// moduleTree walks the first of the two trees that mod_tree keeps
// (include/linux/rbtree_latch.h).
func (g *Guest) moduleTree(ctx context.Context, v *moduleView) error {
	f := &g.lay.module
	if g.sym.modTree == 0 || !f.treeRoot.ok || !f.nodeMod.ok || !f.nodeLatch.ok || !f.latchNode.ok || !f.rbLeft.ok || !f.rbRight.ok {
		return errNoView // CONFIG_MODULES_TREE_LOOKUP=n
	}
	root, err := g.r.ptr(g.sym.modTree + hypervisor.VirtAddr(f.treeRoot.off))
	if err != nil {
		return err
	}
	seen := map[hypervisor.VirtAddr]struct{}{}
	todo := []hypervisor.VirtAddr{root}
	v.whole = true
	var errs error
	lost := func(err error) {
		v.whole = false
		if errs == nil {
			errs = err
		}
	}
	for len(todo) > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		node := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if node == 0 {
			continue
		}
		if err := g.r.check(node, node, 8); err != nil {
			lost(err)
			continue
		}
		if _, ok := seen[node]; ok {
			lost(&PointerError{Where: node, Value: node, Err: ErrCycle})
			continue
		}
		if len(seen) >= maxModules*maxModuleTypes {
			lost(fmt.Errorf("module tree: %w", ErrLimit))
			break
		}
		seen[node] = struct{}{}
		right, err := g.r.ptr(node + hypervisor.VirtAddr(f.rbRight.off))
		if err != nil {
			lost(err)
			continue
		}
		left, err := g.r.ptr(node + hypervisor.VirtAddr(f.rbLeft.off))
		if err != nil {
			lost(err)
			continue
		}
		mod, err := g.r.ptr(node - hypervisor.VirtAddr(f.nodeLatch.off+f.latchNode.off) + hypervisor.VirtAddr(f.nodeMod.off))
		if err == nil {
			err = g.r.check(node, mod, 8)
		}
		if err != nil {
			lost(err)
		} else {
			v.there[mod] = struct{}{}
		}
		todo = append(todo, right, left)
	}
	return errs
}

// module reads the struct module at addr.
func (g *Guest) module(addr hypervisor.VirtAddr) (Module, uint64, error) {
	f := &g.lay.module
	if err := g.r.check(addr, addr, 8); err != nil {
		return Module{}, 0, err
	}
	o, _, err := g.r.object(nil, addr, f.span)
	if err != nil {
		return Module{}, 0, err
	}
	state := o.uint(f.state)
	m := Module{Name: cString(o.bytes(f.name)), KernelAddress: addr, SeenIn: []View{}}
	switch state {
	case f.live:
		m.State = "Live"
	case f.coming:
		m.State = "Loading"
	case f.going:
		m.State = "Unloading"
	default:
		m.State = "Unformed"
	}
	if !f.mem.ok {
		m.Base = o.ptr(f.coreBase)
		m.Size = o.uint(f.coreSize) + o.uint(f.initSize)
		return m, state, nil
	}
	for i := range f.memLen {
		at := f.mem.off + i*f.memElem
		m.Size += o.uint(field{off: at + f.memSize.off, size: 4, ok: true})
		if i == f.textType {
			m.Base = o.ptr(field{off: at + f.memBase.off, size: 8, ok: true})
		}
	}
	return m, state, nil
}
