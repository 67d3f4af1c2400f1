package linux

import "github.com/vantage-vmi/vantage/hypervisor"

// viewCodeFacts is where it is found who has allocated code.
type viewCodeFacts struct {
	initBase                         field // of a module, until 6.3
	packNode, packStart              field // struct bpf_prog_pack, since 5.18
	trampNode, trampStart, trampSize field // struct ftrace_ops
	cachePages, slotNode, slotStart  field // struct kprobe_insn_cache, kprobe_insn_page
	areaStart, areaEnd, areaNode     field // struct vmap_area
	areaVM                           field
	vmCaller                         field // in struct vm_struct
	busyRoot                         field // struct vmap_node, since 6.9
	rbRoot, rbRight, rbLeft          field
	nodeSize                         uint64
	areaSpan                         span
	packSpan, trampSpan, slotSpan    span

	imageEnd, packs, tramps, slots, optSlots hypervisor.VirtAddr
	areaRoot, areaNodes, areaNodeCount       hypervisor.VirtAddr
}

func (f *viewCodeFacts) facts() []fact {
	return []fact{
		{&f.initBase, 8, may, []string{"module.init_layout.base"}},
		{&f.packNode, 16, may, []string{"bpf_prog_pack.list"}},
		{&f.packStart, 8, may, []string{"bpf_prog_pack.ptr"}},
		{&f.trampNode, 16, may, []string{"ftrace_ops.list"}},
		{&f.trampStart, 8, may, []string{"ftrace_ops.trampoline"}},
		{&f.trampSize, 8, may, []string{"ftrace_ops.trampoline_size"}},
		{&f.cachePages, 16, may, []string{"kprobe_insn_cache.pages"}},
		{&f.slotNode, 16, may, []string{"kprobe_insn_page.list"}},
		{&f.slotStart, 8, may, []string{"kprobe_insn_page.insns"}},
		{&f.areaStart, 8, may, []string{"vmap_area.va_start"}},
		{&f.areaEnd, 8, may, []string{"vmap_area.va_end"}},
		{&f.areaNode, 0, may, []string{"vmap_area.rb_node"}},
		{&f.areaVM, 8, may, []string{"vmap_area.vm"}},
		{&f.vmCaller, 8, may, []string{"vm_struct.caller"}},
		{&f.busyRoot, 8, may, []string{"vmap_node.busy.root.rb_node"}},
		{&f.rbRoot, 8, may, []string{"rb_root.rb_node"}},
		{&f.rbRight, 8, may, []string{"rb_node.rb_right"}},
		{&f.rbLeft, 8, may, []string{"rb_node.rb_left"}},
	}
}

func (f *viewCodeFacts) symbols() []symbol {
	return []symbol{
		{&f.imageEnd, may, []string{"_end", "__brk_limit", "_etext"}},
		{&f.packs, may, []string{"pack_list"}},
		{&f.tramps, may, []string{"ftrace_ops_trampoline_list"}}, // since 5.9
		{&f.slots, may, []string{"kprobe_insn_slots"}},
		{&f.optSlots, may, []string{"kprobe_optinsn_slots"}},
		{&f.areaRoot, may, []string{"vmap_area_root"}}, // until 6.8
		{&f.areaNodes, may, []string{"vmap_nodes"}},    // since 6.9
		{&f.areaNodeCount, may, []string{"nr_vmap_nodes"}},
	}
}

func (f *viewCodeFacts) finish(t types) {
	if n, err := t.Size("vmap_node"); err == nil {
		f.nodeSize = min(n, maxOffset)
	}
	f.areaSpan = spanOf(f.areaStart, f.areaEnd, f.areaNode, f.areaVM)
	f.packSpan = spanOf(f.packNode, f.packStart)
	f.trampSpan = spanOf(f.trampNode, f.trampStart, f.trampSize)
	f.slotSpan = spanOf(f.slotNode, f.slotStart)
}
