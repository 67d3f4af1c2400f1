package linux

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// groups walks the lists of tasks of every css_set (include/linux/cgroup-defs.h:
// the control groups that some tasks have in common): those in the kernel's table
// of them, and those that tasks name.
func (v *viewLook) groups(ctx context.Context) error {
	f := v.f
	sets, err := v.setTable(ctx)
	if err != nil {
		return err
	}
	seen := make(map[hypervisor.VirtAddr]struct{}, len(sets))
	for _, s := range sets {
		seen[s] = struct{}{}
	}
	for _, t := range v.known {
		if _, ok := seen[t.cgroups]; !ok && t.cgroups != 0 && len(sets) < viewMaxSets {
			seen[t.cgroups] = struct{}{}
			sets = append(sets, t.cgroups)
		}
	}
	v.sets = v.linked()
	fields := [viewListHeads]field{f.setTasks, f.setMoving, f.setDying}
	heads := make(map[hypervisor.VirtAddr]struct{}, len(sets)*viewListHeads)
	for _, s := range sets {
		for _, list := range fields {
			if list.ok {
				heads[s+hypervisor.VirtAddr(list.off)] = struct{}{}
			}
		}
	}
	add := func(t hypervisor.VirtAddr) { v.found("control group", t, v.cgroup) }
	var buf []byte
	for _, s := range sets {
		err := v.g.r.check(s, s, 8)
		var o object
		if err == nil {
			o, buf, err = v.g.r.object(buf, s, f.setSpan)
		}
		if err != nil {
			v.sets = false
			v.problems.add("css_set", s, err)
			continue
		}
		for _, list := range fields {
			if head := o.at(list); !list.ok || o.ptr(field{off: list.off, size: 8, ok: true}) == head {
				continue // no such list, or an empty one
			}
			round, err := v.list(ctx, "tasks of a control group", o.at(list), f.cgNode.off, v.left, heads, add)
			if err != nil {
				return err
			}
			v.sets = v.sets && round
		}
	}
	return nil
}

// setTable returns the css_sets of the kernel's table.
func (v *viewLook) setTable(ctx context.Context) ([]hypervisor.VirtAddr, error) {
	f, r := v.f, &v.g.r
	if f.setTable == 0 || !f.setHash.ok {
		return nil, nil
	}
	var table [viewHashSize * viewPointerLen]byte
	if err := r.full(table[:], f.setTable); err != nil {
		v.problems.add("css_set_table", f.setTable, err)
		return nil, nil
	}
	var sets []hypervisor.VirtAddr
	for i := range viewHashSize {
		if binary.LittleEndian.Uint64(table[i*viewPointerLen:]) == 0 {
			continue
		}
		head := f.setTable + hypervisor.VirtAddr(i*viewPointerLen)
		err := r.walkHList(ctx, head, viewMaxSets-len(sets), func(node hypervisor.VirtAddr) error {
			sets = append(sets, node-hypervisor.VirtAddr(f.setHash.off))
			return nil
		})
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			v.problems.add("css_set_table", head, fmt.Errorf("sets of control groups: %w", err))
		}
	}
	return sets, nil
}

// linked reports whether this kernel keeps the lists all the time.
func (v *viewLook) linked() bool {
	if v.f.setsUnused == 0 {
		return true
	}
	var b [1]byte
	return v.g.r.full(b[:], v.f.setsUnused) == nil && b[0] != 0
}

// inSet reports whether t must be in a list of its css_set. One that has ended need
// not: whether it waits for its parent there differs from kernel to kernel.
func (v *viewLook) inSet(t *task) bool {
	return v.sets && t.exitState == 0 && !t.passing()
}
