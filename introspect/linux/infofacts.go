package linux

import (
	"github.com/vantage-vmi/vantage/hypervisor"
)

// infoTable is where the facts of the guest as a whole lie that no listing
// needs.
type infoTable struct {
	avenrun, taint, cpu                            hypervisor.VirtAddr
	lsmNames, lsmIDs, lsmCount, lockedDown         hypervisor.VirtAddr
	zoneStat, nodeStat, totalRAM, reserve, minFree hypervisor.VirtAddr
	totalSwap, freeSwap                            hypervisor.VirtAddr
	cgroupRoots, cgroupV2                          hypervisor.VirtAddr
	base, nsec, shift                              field // of timekeeper.tkr_mono
	cpuModel                                       field
	lsmName                                        field
	// Places of counters in vm_zone_stat and vm_node_stat.
	free                                                                     statItem
	filePages, shmem, slab, slabFixed, misc, swapCache, fileActive, fileIdle statItem
	anonymous                                                                statItem
	integrity, confidentiality                                               uint64 // of enum lockdown_reason
}

// statItem is the place of a counter in an array of them.
type statItem struct {
	index uint64
	ok    bool
}

func (i *infoTable) facts() []fact {
	return []fact{
		{&i.base, 8, want, []string{"timekeeper.tkr_mono.base"}},
		{&i.nsec, 8, want, []string{"timekeeper.tkr_mono.xtime_nsec"}},
		{&i.shift, 4, want, []string{"timekeeper.tkr_mono.shift"}},
		{&i.cpuModel, 64, may, []string{"cpuinfo_x86.x86_model_id"}},
		{&i.lsmName, 8, may, []string{"lsm_id.name"}}, // since 6.8
	}
}

func (i *infoTable) symbols() []symbol {
	return []symbol{
		{&i.avenrun, want, []string{"avenrun"}},
		{&i.taint, want, []string{"tainted_mask"}},
		{&i.cpu, may, []string{"boot_cpu_data"}},
		{&i.lsmIDs, may, []string{"lsm_idlist"}},             // since 6.8
		{&i.lsmCount, may, []string{"lsm_active_cnt"}},       // since 6.8
		{&i.lsmNames, may, []string{"lsm_names"}},            // until 6.18
		{&i.lockedDown, may, []string{"kernel_locked_down"}}, // CONFIG_SECURITY_LOCKDOWN_LSM
		{&i.zoneStat, want, []string{"vm_zone_stat"}},
		{&i.nodeStat, want, []string{"vm_node_stat"}},
		{&i.totalRAM, want, []string{"_totalram_pages"}},
		{&i.reserve, may, []string{"totalreserve_pages"}},
		{&i.minFree, may, []string{"min_free_kbytes"}},
		{&i.totalSwap, may, []string{"total_swap_pages"}}, // CONFIG_SWAP
		{&i.freeSwap, may, []string{"nr_swap_pages"}},
		{&i.cgroupRoots, may, []string{"cgroup_root_count"}},
		{&i.cgroupV2, may, []string{"cgrp_dfl_visible"}},
	}
}

// maxStatItem bounds the counters of vm_zone_stat and vm_node_stat.
const maxStatItem = 512

func (i *infoTable) finish(t types) {
	const zone, node = "zone_stat_item", "node_stat_item"
	for _, s := range []struct {
		to    *statItem
		enum  string
		names []string
	}{
		{&i.free, zone, []string{"NR_FREE_PAGES"}},
		{&i.filePages, node, []string{"NR_FILE_PAGES"}},
		{&i.shmem, node, []string{"NR_SHMEM"}},
		{&i.slab, node, []string{"NR_SLAB_RECLAIMABLE_B", "NR_SLAB_RECLAIMABLE"}}, // renamed in 5.9
		{&i.slabFixed, node, []string{"NR_SLAB_UNRECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE"}},
		{&i.misc, node, []string{"NR_KERNEL_MISC_RECLAIMABLE"}},
		{&i.swapCache, node, []string{"NR_SWAPCACHE"}}, // since 5.12
		{&i.fileActive, node, []string{"NR_ACTIVE_FILE"}},
		{&i.fileIdle, node, []string{"NR_INACTIVE_FILE"}},
		{&i.anonymous, node, []string{"NR_ANON_MAPPED"}},
	} {
		for _, name := range s.names {
			if n, err := t.EnumValue(s.enum, name); err == nil && n >= 0 && n < maxStatItem {
				*s.to = statItem{index: uint64(n), ok: true}
				break
			}
		}
	}
	for name, to := range map[string]*uint64{
		"LOCKDOWN_INTEGRITY_MAX": &i.integrity, "LOCKDOWN_CONFIDENTIALITY_MAX": &i.confidentiality,
	} {
		if n, err := t.EnumValue("lockdown_reason", name); err == nil && n > 0 && n < 64 {
			*to = uint64(n)
		}
	}
}
