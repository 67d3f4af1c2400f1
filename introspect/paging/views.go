package paging

import (
	"math"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// maxViews bounds how many views of RAM are kept; a memory file in more pieces
// than that is asked for each piece again.
const maxViews = 1024

// ramView is RAM that can be seen without a copy.
type ramView struct {
	phys hypervisor.PhysAddr
	data []byte
}

// mapRAM asks the mapper once for all of RAM: a walk is then arithmetic, with
// no call between its levels. What it does not give in the whole is
// asked for when it is needed (see view).
func mapRAM(mem hypervisor.Memory, mapper hypervisor.Mapper) []ramView {
	var out []ramView
	for _, r := range mem.Ranges() {
		for at := r.Start; at < r.End() && len(out) < maxViews; {
			data, err := mapper.MapPhys(at, uint64(r.End()-at))
			if err != nil || len(data) == 0 {
				break
			}
			out = append(out, ramView{phys: at, data: data})
			at += hypervisor.PhysAddr(len(data))
		}
	}
	return out
}

// view returns zero-copy memory at phys, at most limit bytes; nil when there is
// none, or only a copy (ReadPhys) can tell why not.
func (as *AddressSpace) view(phys hypervisor.PhysAddr, limit uint64) []byte {
	if as.mapper == nil {
		return nil
	}
	as.mapOnce.Do(func() { as.views = mapRAM(as.mem, as.mapper) })
	i, found := slices.BinarySearchFunc(as.views, phys, func(v ramView, a hypervisor.PhysAddr) int {
		switch {
		case v.phys > a:
			return 1
		case uint64(a-v.phys) >= uint64(len(v.data)):
			return -1
		}
		return 0
	})
	if found {
		v := as.views[i].data[phys-as.views[i].phys:]
		end := min(limit, uint64(len(v)))
		return v[:end:end]
	}
	v, err := as.mapper.MapPhys(phys, min(limit, math.MaxInt64))
	if err != nil {
		return nil
	}
	return v
}
