package linux

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// maxPages bounds a number of pages that the guest tells: 2^52 bytes.
const maxPages = 1 << 40

// memoryUse adds up what /proc/meminfo does (fs/proc/meminfo.c, si_mem_available
// in mm/show_mem.c).
func (g *Guest) memoryUse(t *infoTable) (MemoryUse, error) {
	if t.nodeStat == 0 || t.zoneStat == 0 || t.totalRAM == 0 {
		return MemoryUse{}, nil // told as missing symbols
	}
	var err error
	pages := func(at hypervisor.VirtAddr) uint64 {
		if at == 0 {
			return 0
		}
		n, e := g.r.u64(at)
		if e != nil {
			err = e
		}
		if int64(n) < 0 || n > maxPages { // a counter may be below 0 for a moment
			return 0
		}
		return n
	}
	items := []statItem{t.filePages, t.shmem, t.slab, t.slabFixed, t.misc, t.swapCache, t.fileActive, t.fileIdle, t.anonymous}
	last := uint64(0)
	for _, i := range items {
		last = max(last, i.index)
	}
	stats := make([]byte, 8*(last+1))
	if err := g.r.full(stats, t.nodeStat); err != nil {
		return MemoryUse{}, err
	}
	stat := func(i statItem) uint64 {
		n := binary.LittleEndian.Uint64(stats[8*i.index:])
		if !i.ok || int64(n) < 0 || n > maxPages {
			return 0
		}
		return n
	}
	free := uint64(0)
	if t.free.ok {
		free = pages(t.zoneStat + hypervisor.VirtAddr(8*t.free.index))
	}
	total, reserve := pages(t.totalRAM), pages(t.reserve)
	swapTotal, swapFree := pages(t.totalSwap), pages(t.freeSwap)
	if err != nil {
		return MemoryUse{}, err
	}
	// The low watermark of all zones, as __setup_per_zone_wmarks sets it when
	// nobody changed watermark_scale_factor.
	low := uint64(0)
	if t.minFree != 0 {
		kib, err := g.r.u32(t.minFree)
		if err != nil {
			return MemoryUse{}, err
		}
		low = uint64(kib) / 4
		low += max(low/4, total/1000)
	}
	half := func(n uint64) uint64 { return n - min(n/2, low) }
	available := free + half(stat(t.fileActive)+stat(t.fileIdle)) + half(stat(t.slab)+stat(t.misc))
	return MemoryUse{
		Total: infoBytes(total), Free: infoBytes(free), Available: infoBytes(infoLess(available, reserve)),
		Cached: infoBytes(infoLess(stat(t.filePages), stat(t.swapCache))), Shared: infoBytes(stat(t.shmem)),
		Anonymous: infoBytes(stat(t.anonymous)), Slab: infoBytes(stat(t.slab) + stat(t.slabFixed)),
		SwapTotal: infoBytes(swapTotal), SwapFree: infoBytes(swapFree),
	}, nil
}

func infoBytes(pages uint64) uint64 { return pages * hypervisor.PageSize }

// infoLess is a - b, not below 0.
func infoLess(a, b uint64) uint64 { return a - min(a, b) }
