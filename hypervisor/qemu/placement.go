package qemu

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/board"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/cmdline"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/monitor"
)

// ramBlock is one memory backend of a VM.
type ramBlock struct {
	id     string // "" for the board's own, whose name is QEMU's affair
	size   uint64 // bytes
	hva    uint64 // in QEMU's process; 0: not known yet
	anon   bool   // hint: not backed by a named file
	shared bool   // hint: mapped shared
	path   string // hint: file or directory, as the process names it
}

// placement is a run of a block in the guest-physical address space.
type placement struct {
	gpa   hypervisor.PhysAddr
	size  uint64
	block int    // index
	off   uint64 // of gpa in the block
}

func (p placement) end() hypervisor.PhysAddr { return p.gpa + hypervisor.PhysAddr(p.size) }

// layout is where a VM's RAM lies.
type layout struct {
	blocks []ramBlock
	places []placement // sorted by gpa
}

// errContradiction is returned when QEMU's memory map is not what its command
// line and its own sums say.
var errContradiction = errors.New("QEMU's memory map does not add up")

// mainBlocks returns the backends of main memory in the order in which the
// board lays them out.
func mainBlocks(cfg *cmdline.Config) ([]ramBlock, error) {
	nodes := slices.Clone(cfg.Nodes)
	slices.SortStableFunc(nodes, func(a, b cmdline.Node) int { return a.ID - b.ID })
	var blocks []ramBlock
	for _, n := range nodes {
		if n.MemDev == "" {
			continue // mem= only describes, and a node may have no memory
		}
		o, ok := cfg.Object(n.MemDev)
		if !ok {
			return nil, fmt.Errorf("NUMA node %d: no memory backend %.64q on the command line", n.ID, n.MemDev)
		}
		blocks = append(blocks, blockOf(o))
	}
	if len(blocks) > 0 {
		return blocks, nil
	}
	if id := cfg.Machine["memory-backend"]; id != "" {
		o, ok := cfg.Object(id)
		if !ok {
			return nil, fmt.Errorf("no memory backend %.64q on the command line", id)
		}
		return []ramBlock{blockOf(o)}, nil
	}
	return []ramBlock{{size: cfg.MemoryBytes(), anon: cfg.MemPath == "", path: cfg.MemPath}}, nil
}

func blockOf(o cmdline.Object) ramBlock {
	return ramBlock{
		id:     o.ID,
		size:   o.Size(),
		anon:   o.Type == "memory-backend-ram",
		shared: o.Shared(),
		path:   o.Props["mem-path"],
	}
}

// layoutFromConfig places main memory as the command line says.
func layoutFromConfig(cfg *cmdline.Config, kvm bool) (*layout, error) {
	segs, err := board.Layout(cfg, kvm, hostCPUVendor())
	if err != nil {
		return nil, err
	}
	blocks, err := mainBlocks(cfg)
	if err != nil {
		return nil, err
	}
	var sum uint64
	for _, b := range blocks {
		if b.size == 0 || b.size > math.MaxInt64-sum {
			return nil, fmt.Errorf("memory backend %.64q: size %#x", b.id, b.size)
		}
		sum += b.size
	}
	if sum != cfg.MemoryBytes() {
		return nil, fmt.Errorf("the memory backends have %#x bytes, main memory %#x", sum, cfg.MemoryBytes())
	}
	l := &layout{blocks: blocks}
	for _, s := range segs {
		var base uint64 // of the block in main memory
		for i, b := range blocks {
			lo, hi := max(s.Offset, base), min(s.Offset+s.Size, base+b.size)
			if lo < hi {
				l.places = append(l.places, placement{
					gpa: s.Start + hypervisor.PhysAddr(lo-s.Offset), size: hi - lo, block: i, off: lo - base,
				})
			}
			base += b.size
		}
	}
	return l, nil
}

// layoutFromMonitor places memory as QEMU's flat view says. expect, the layout
// from the command line, may be nil; where the view bears it out it is taken
// over, with the host addresses added.
func layoutFromMonitor(v *monitorView, expect *layout) (*layout, bool, error) {
	runs := ramRuns(v)
	got, confirmed := confirm(expect, v, runs)
	if !confirmed {
		main, err := mainRuns(v, runs)
		if err != nil {
			return nil, false, err
		}
		got = fromRuns(v, main)
	}
	for _, d := range v.dimms {
		if !slices.ContainsFunc(runs, func(r ramRun) bool {
			return r.name == d.backend && r.gpa <= d.addr && r.off == uint64(d.addr-r.gpa) && r.size-r.off >= d.size
		}) {
			continue // plugged, but not in the address space
		}
		got.blocks = append(got.blocks, ramBlock{id: d.backend, size: d.size})
		got.places = append(got.places, placement{gpa: d.addr, size: d.size, block: len(got.blocks) - 1})
	}
	slices.SortFunc(got.places, func(a, b placement) int {
		if a.gpa < b.gpa {
			return -1
		}
		return 1
	})
	return got, confirmed, got.ask(v)
}

// ramRun is a run of a named backend in the flat view.
type ramRun struct {
	gpa  hypervisor.PhysAddr
	size uint64
	name string
	off  uint64
}

// ramRuns returns the runs of memory backends, outside the legacy windows whose
// looks change with the guest's doings, neighbours merged.
func ramRuns(v *monitorView) []ramRun {
	names := map[string]bool{}
	for id := range v.backends {
		names[id] = true
	}
	for _, r := range v.regions { // before QEMU 5.0 the board's own is no backend
		if r.RAM() && r.Start <= board.LegacyEnd && r.End > board.LegacyEnd {
			names[r.Name] = true
		}
	}
	var out []ramRun
	add := func(r monitor.Region, lo, hi hypervisor.PhysAddr) {
		lo, hi = max(r.Start, lo), min(r.End, hi)
		if lo >= hi {
			return
		}
		run := ramRun{gpa: lo, size: uint64(hi - lo), name: r.Name, off: r.Offset + uint64(lo-r.Start)}
		if n := len(out); n > 0 {
			p := &out[n-1]
			if p.name == run.name && p.gpa+hypervisor.PhysAddr(p.size) == run.gpa && p.off+p.size == run.off {
				p.size += run.size
				return
			}
		}
		out = append(out, run)
	}
	for _, r := range v.regions {
		if r.RAM() && names[r.Name] {
			add(r, 0, board.VGAStart)
			add(r, board.LegacyEnd, math.MaxUint64)
		}
	}
	return out
}

// mainRuns returns the runs of main memory: those that are no DIMMs, from below
// up, as many as main memory has bytes.
func mainRuns(v *monitorView, runs []ramRun) ([]ramRun, error) {
	left := v.baseMemory
	var out []ramRun
	for _, r := range runs {
		if slices.ContainsFunc(v.dimms, func(d dimm) bool { return d.backend == r.name }) {
			continue
		}
		need := r.size
		if r.gpa == board.LegacyEnd {
			need += board.LegacyEnd - board.VGAStart // the RAM behind the windows
		}
		if need > left {
			continue // a device's memory below what is above 4 GiB
		}
		left -= need
		out = append(out, r)
		if left == 0 {
			return out, nil
		}
	}
	if len(out) == 1 && out[0].gpa == 0 && left <= board.LegacyEnd-board.VGAStart {
		return out, nil // less than 1 MiB in all
	}
	return nil, fmt.Errorf("%w: %#x of %#x bytes of main memory are not in it", errContradiction, left, v.baseMemory)
}

// fromRuns makes a layout of runs, with the RAM behind the legacy windows.
func fromRuns(v *monitorView, runs []ramRun) *layout {
	l := &layout{}
	index := map[string]int{}
	for _, r := range runs {
		i, ok := index[r.name]
		if !ok {
			i = len(l.blocks)
			index[r.name] = i
			l.blocks = append(l.blocks, ramBlock{id: r.name, size: v.backends[r.name]})
		}
		if l.blocks[i].size < r.off+r.size {
			l.blocks[i].size = r.off + r.size
		}
		p := placement{gpa: r.gpa, size: r.size, block: i, off: r.off}
		const hidden = board.LegacyEnd - board.VGAStart
		if n := len(l.places); n > 0 && p.gpa == board.LegacyEnd && p.off >= hidden {
			if last := &l.places[n-1]; last.end() == board.VGAStart && last.block == i && last.off+last.size+hidden == p.off {
				last.size += hidden + p.size
				continue
			}
		}
		l.places = append(l.places, p)
	}
	return l
}

// confirm reports whether the flat view has all of the layout that the command
// line led to expect, and returns that layout with its blocks named.
func confirm(expect *layout, v *monitorView, runs []ramRun) (*layout, bool) {
	if expect == nil {
		return nil, false
	}
	l := &layout{blocks: slices.Clone(expect.blocks), places: slices.Clone(expect.places)}
	var sum uint64
	for _, p := range l.places {
		sum += p.size
		b := &l.blocks[p.block]
		for _, part := range visible(p) {
			i := slices.IndexFunc(runs, func(r ramRun) bool {
				return r.gpa <= part.gpa && r.gpa+hypervisor.PhysAddr(r.size) >= part.end() &&
					r.off+uint64(part.gpa-r.gpa) == part.off
			})
			if i < 0 || b.id != "" && b.id != runs[i].name {
				return nil, false
			}
			b.id = runs[i].name
		}
	}
	return l, sum == v.baseMemory
}

// visible returns the parts of p outside the legacy windows.
func visible(p placement) []placement {
	var out []placement
	cut := func(lo, hi hypervisor.PhysAddr) {
		lo, hi = max(lo, p.gpa), min(hi, p.end())
		if lo < hi {
			out = append(out, placement{gpa: lo, size: uint64(hi - lo), block: p.block, off: p.off + uint64(lo-p.gpa)})
		}
	}
	cut(0, board.VGAStart)
	cut(board.LegacyEnd, math.MaxUint64)
	return out
}

// ask fills in the blocks' host addresses.
func (l *layout) ask(v *monitorView) error {
	for i := range l.blocks {
		b := &l.blocks[i]
		j := slices.IndexFunc(l.places, func(p placement) bool { return p.block == i && p.end() > board.LegacyEnd })
		if j < 0 {
			continue
		}
		p := l.places[j]
		gpa := max(p.gpa, board.LegacyEnd)
		hva, name, err := v.hostAddr(gpa)
		if err != nil {
			return fmt.Errorf("host address of gpa %v: %w", gpa, err)
		}
		off := p.off + uint64(gpa-p.gpa)
		if name != b.id || hva < off {
			return fmt.Errorf("%w: gpa %v is in %.64q, not in %.64q", errContradiction, gpa, name, b.id)
		}
		b.hva = hva - off
	}
	return nil
}
