package linux

import (
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// bpfFields is where the facts of eBPF lie.
type bpfFields struct {
	progIDR, mapIDR, linkIDR                               hypervisor.VirtAddr
	progFops, mapFops, linkFops, linkPollFops, perfFops    hypervisor.VirtAddr
	superBlocks, cgroupRoot, netList                       hypervisor.VirtAddr
	idrHead                                                field // in struct idr
	progType, progAttach, progLen, jitLen, tag, aux, entry field // in struct bpf_prog
	progSpan                                               span
	progID, mapCount, maps, user, loadTime, name, function field // in struct bpf_prog_aux
	funcCount, funcs                                       field
	auxSpan                                                span
	uid                                                    field // in struct user_struct
	mapType, keySize, valueSize, maxEntries, mapFlags      field // in struct bpf_map
	mapID, mapName, frozen                                 field
	mapSpan                                                span
	linkID, linkType, linkProg, linkAttach                 field // in struct bpf_link
	linkSpan                                               span
	fileOp, filePrivate                                    field // in struct file
	fileSpan                                               span
	progTypes, mapTypes, linkTypes, attachTypes            map[int64]string
	cgroupTypes                                            map[int64]string // of the lists in a control group
	places                                                 bpfPlaceFields
}

func (b *bpfFields) facts() []fact {
	return append([]fact{
		{&b.idrHead, 8, must, []string{"idr.idr_rt.xa_head"}},
		{&b.progType, 4, want, []string{"bpf_prog.type"}},
		{&b.progAttach, 4, may, []string{"bpf_prog.expected_attach_type"}},
		{&b.progLen, 4, want, []string{"bpf_prog.len"}},
		{&b.jitLen, 4, want, []string{"bpf_prog.jited_len"}},
		{&b.tag, 8, want, []string{"bpf_prog.tag"}},
		{&b.aux, 8, must, []string{"bpf_prog.aux"}},
		{&b.entry, 8, want, []string{"bpf_prog.bpf_func"}},
		{&b.progID, 4, must, []string{"bpf_prog_aux.id"}},
		{&b.mapCount, 4, want, []string{"bpf_prog_aux.used_map_cnt"}},
		{&b.maps, 8, want, []string{"bpf_prog_aux.used_maps"}},
		{&b.user, 8, want, []string{"bpf_prog_aux.user"}},
		{&b.loadTime, 8, want, []string{"bpf_prog_aux.load_time"}},
		{&b.name, 16, want, []string{"bpf_prog_aux.name"}},
		{&b.function, 8, may, []string{"bpf_prog_aux.attach_func_name"}}, // since 5.5
		{&b.funcCount, 4, may, []string{"bpf_prog_aux.func_cnt"}},
		{&b.funcs, 8, may, []string{"bpf_prog_aux.func"}},
		{&b.uid, 4, want, []string{"user_struct.uid"}},
		{&b.mapType, 4, want, []string{"bpf_map.map_type"}},
		{&b.keySize, 4, want, []string{"bpf_map.key_size"}},
		{&b.valueSize, 4, want, []string{"bpf_map.value_size"}},
		{&b.maxEntries, 4, want, []string{"bpf_map.max_entries"}},
		{&b.mapFlags, 4, want, []string{"bpf_map.map_flags"}},
		{&b.mapID, 4, must, []string{"bpf_map.id"}},
		{&b.mapName, 16, want, []string{"bpf_map.name"}},
		{&b.frozen, 1, may, []string{"bpf_map.frozen"}}, // since 5.2
		{&b.linkID, 4, may, []string{"bpf_link.id"}},    // since 5.8
		{&b.linkType, 4, may, []string{"bpf_link.type"}},
		{&b.linkProg, 8, may, []string{"bpf_link.prog"}},
		{&b.linkAttach, 4, may, []string{"bpf_link.attach_type"}}, // since 6.18
		{&b.fileOp, 8, want, []string{"file.f_op"}},
		{&b.filePrivate, 8, want, []string{"file.private_data"}},
	}, b.places.facts()...)
}

func (b *bpfFields) symbols() []symbol {
	return []symbol{
		{&b.progIDR, must, []string{"prog_idr"}},
		{&b.mapIDR, must, []string{"map_idr"}},
		{&b.linkIDR, may, []string{"link_idr"}}, // since 5.8
		{&b.progFops, want, []string{"bpf_prog_fops"}},
		{&b.mapFops, want, []string{"bpf_map_fops"}},
		{&b.linkFops, may, []string{"bpf_link_fops"}},
		{&b.linkPollFops, may, []string{"bpf_link_fops_poll"}}, // since 6.9
		{&b.perfFops, may, []string{"perf_fops"}},
		{&b.superBlocks, want, []string{"super_blocks"}},
		{&b.cgroupRoot, may, []string{"cgrp_dfl_root"}},
		{&b.netList, may, []string{"net_namespace_list"}},
	}
}

func (b *bpfFields) finish(t types) {
	b.progSpan = spanOf(b.progType, b.progAttach, b.progLen, b.jitLen, b.tag, b.aux, b.entry)
	b.auxSpan = spanOf(b.progID, b.mapCount, b.maps, b.user, b.loadTime, b.name, b.function, b.funcCount, b.funcs)
	b.mapSpan = spanOf(b.mapType, b.keySize, b.valueSize, b.maxEntries, b.mapFlags, b.mapID, b.mapName, b.frozen)
	b.linkSpan = spanOf(b.linkID, b.linkType, b.linkProg, b.linkAttach)
	b.fileSpan = spanOf(b.fileOp, b.filePrivate)
	b.progTypes = bpfNames(t, "bpf_prog_type", "BPF_PROG_TYPE_")
	b.mapTypes = bpfNames(t, "bpf_map_type", "BPF_MAP_TYPE_")
	b.linkTypes = bpfNames(t, "bpf_link_type", "BPF_LINK_TYPE_")
	b.attachTypes = bpfNames(t, "bpf_attach_type", "BPF_")
	// A control group numbers its lists on its own since 5.17.
	if b.cgroupTypes = bpfNames(t, "cgroup_bpf_attach_type", ""); len(b.cgroupTypes) == 0 {
		b.cgroupTypes = b.attachTypes
	}
	for slot, name := range b.cgroupTypes {
		// One each for the hooks that programs are attached to.
		if strings.HasPrefix(name, "cgroup_lsm_") {
			b.cgroupTypes[slot] = "lsm_cgroup"
		}
	}
	b.places.finish(t)
}

// bpfNames returns the names of an enum's values, as bpftool prints them: of two
// for one value the first, without what marks it as no longer to be used.
func bpfNames(t types, enum, prefix string) map[int64]string {
	out := map[int64]string{}
	all, ok := t.(interface { // *profile.Types
		Enumerators(enum string) (names []string, values []int64, err error)
	})
	if !ok {
		return out
	}
	names, values, err := all.Enumerators(enum)
	if err != nil {
		return out
	}
	for i, n := range names {
		name, ok := strings.CutPrefix(n, prefix)
		if _, dup := out[values[i]]; !ok || dup {
			continue
		}
		out[values[i]] = strings.TrimSuffix(strings.ToLower(name), "_deprecated")
	}
	return out
}

// bpfName returns the name of value v.
func bpfName(names map[int64]string, v uint64) string {
	if n, ok := names[int64(v)]; ok {
		return n
	}
	return fmt.Sprintf("type_%d", v)
}
