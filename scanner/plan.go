package scanner

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// planner cuts targets into extents and hands them out in order.
type planner struct {
	ctx    context.Context
	mem    hypervisor.Memory
	size   uint64             // of an extent
	emit   func(*extent) bool // false: stop
	seq    uint64
	budget uint64 // pages a target may map before it is taken for a lie

	stopped bool
}

// maxAreas bounds the areas of one target.
const maxAreas = 1 << 20

func (p *planner) target(t Target) {
	switch t := t.(type) {
	case PhysicalTarget:
		p.physical()
	case ProcessTarget:
		s := &subject{kind: "process", pid: t.PID, comm: t.Comm, virtual: true}
		p.virtual(s, t.Space, t.Areas)
	case KernelTarget:
		s := &subject{kind: "kernel", virtual: true, symbol: t.Symbol}
		p.virtual(s, t.Space, t.Areas)
	}
}

// physicalArea is the name of guest RAM as an area.
const physicalArea = "[physical]"

func (p *planner) physical() {
	s := &subject{kind: "physical"}
	for _, r := range p.mem.Ranges() {
		b := p.builder(s, Area{Name: physicalArea})
		// A RAM range need not end on a page; no page table can say so either.
		for at, left := r.Start, r.Size; left > 0 && !p.stopped; {
			n := min(left, p.size)
			b.add(run{uint64(at), at, n})
			at, left = at+hypervisor.PhysAddr(n), left-n
		}
		b.flush()
	}
}

func (p *planner) virtual(s *subject, space Space, areas []Area) {
	areas, problems := tidyAreas(areas)
	var pages uint64
	for i, a := range areas {
		if p.stopped {
			return
		}
		b := p.builder(s, a)
		b.lost.problems, problems = problems, nil
		for m, err := range space.Mappings(p.ctx, a.Start, a.End) {
			if p.stopped || p.ctx.Err() != nil {
				break
			}
			if m.Size == 0 || err != nil {
				b.hole(m, err)
				continue
			}
			r := clip(m, a)
			if pages += r.size / pageSize; pages > p.budget {
				b.problem(r.addr, fmt.Errorf("maps more than %d pages, more than the guest has memory: the rest of the target is not scanned", p.budget))
				b.flush()
				return
			}
			for r.size > 0 && !p.stopped {
				head := run{r.addr, r.phys, min(r.size, p.size)}
				b.add(head)
				r = r.from(head.end())
			}
		}
		b.flush()
		if i+1 < len(areas) && areas[i+1].Start == a.End {
			p.border(s, space, a, areas[i+1])
		}
	}
	if len(problems) > 0 {
		p.send(&extent{subject: s, lost: lost{problems: problems}})
	}
}

// tidyAreas sorts areas and takes away what overlaps: the guest says where they
// are, and a thousand areas over the same pages must not cost a thousand scans.
func tidyAreas(areas []Area) ([]Area, []problem) {
	var problems []problem
	if len(areas) > maxAreas {
		problems = append(problems, problem{"areas", 0, fmt.Errorf("%d areas: only %d are scanned", len(areas), maxAreas)})
		areas = areas[:maxAreas]
	}
	areas = slices.Clone(areas)
	slices.SortStableFunc(areas, func(a, b Area) int {
		switch {
		case a.Start != b.Start:
			if a.Start < b.Start {
				return -1
			}
			return 1
		}
		return 0
	})
	out := areas[:0]
	var end hypervisor.VirtAddr
	for _, a := range areas {
		a.Start, a.End = a.Start.Page(), (a.End + pageSize - 1).Page()
		if len(out) > 0 {
			if end == 0 {
				break // the one before reaches the end of the address space
			}
			a.Start = max(a.Start, end)
		}
		if a.End != 0 && a.End <= a.Start {
			continue
		}
		if a.Name == "" {
			a.Name = AnonymousArea
		}
		end = a.End
		out = append(out, a)
	}
	return out, problems
}

// clip returns the part of mapping m that lies in a, which has some of it.
func clip(m paging.Mapping, a Area) run {
	r := run{uint64(m.Virt), m.Phys, m.Size}
	if r.addr < uint64(a.Start) {
		r = r.from(uint64(a.Start))
	}
	// Relative to the area's start nothing wraps, at the end of the address
	// space neither.
	if room := uint64(a.End-a.Start) - (r.addr - uint64(a.Start)); r.size > room {
		r.size = room
	}
	return r
}

// border plans the extent around the border of two areas that touch.
func (p *planner) border(s *subject, space Space, a, next Area) {
	at := uint64(a.End)
	e := &extent{subject: s, area: a, next: next, lo: at - borderReach, hi: at, border: at}
	// Holes were told of with the areas' own extents.
	for m := range present(space.Mappings(p.ctx, a.End-borderReach, a.End+borderReach)) {
		e.runs = append(e.runs, clip(m, Area{Start: a.End - borderReach, End: a.End + borderReach}))
	}
	if len(e.runs) == 0 || e.runs[0].addr >= at || e.runs[len(e.runs)-1].end() <= at {
		return // nothing on one of the sides
	}
	p.send(e)
}

func (p *planner) send(e *extent) {
	if p.stopped {
		return
	}
	e.seq = p.seq
	p.seq++
	if !p.emit(e) {
		p.stopped = true
	}
}

func (p *planner) builder(s *subject, a Area) *builder {
	return &builder{p: p, subject: s, area: a}
}

// builder collects the runs of one area into extents.
type builder struct {
	p       *planner
	subject *subject
	area    Area
	runs    []run
	fill    uint64 // bytes that runs will take in a buffer, gaps included
	lo      uint64 // the first address that is not in an extent yet
	cut     bool   // lo is where the area was cut
	lost    lost
}

// add appends a run no longer than an extent, and sends an extent when there is
// enough for one and for what is to be shown behind it.
func (b *builder) add(r run) {
	if n := len(b.runs); n == 0 {
		if !b.cut {
			b.lo = r.addr
		}
		b.runs = append(b.runs, r)
	} else if last := &b.runs[n-1]; last.end() == r.addr && last.phys+hypervisor.PhysAddr(last.size) == r.phys {
		last.size += r.size
	} else {
		if last.end() != r.addr {
			b.fill += gapSize
		}
		b.runs = append(b.runs, r)
	}
	b.fill += r.size
	for b.fill >= b.p.size+Overlap && !b.p.stopped {
		b.split()
	}
}

// split sends the first extent of what was collected and keeps the rest.
func (b *builder) split() {
	// Find the address at which an extent is full.
	var fill uint64
	i, at := 0, uint64(0)
	for ; i < len(b.runs); i++ {
		r := b.runs[i]
		if i > 0 && b.runs[i-1].end() != r.addr {
			fill += gapSize
		}
		if fill+r.size > b.p.size {
			if fill >= b.p.size {
				at = r.addr // the gap before it took what was left
			} else {
				at = r.addr + b.p.size - fill
			}
			break
		}
		fill += r.size
	}
	if i == len(b.runs) { // fill counted the same bytes: cannot be
		b.flush()
		return
	}
	head := slices.Clone(b.runs[:i])
	if r := b.runs[i]; at > r.addr {
		head = append(head, run{r.addr, r.phys, at - r.addr})
	}
	e := &extent{subject: b.subject, area: b.area, runs: head, lo: b.lo, hi: at}
	// Show what follows without a hole.
	for j, end, left := i, at, uint64(Overlap); j < len(b.runs) && left > 0; j++ {
		r := b.runs[j]
		if j == i {
			r = r.from(at)
		}
		if r.addr != end || r.size == 0 {
			break
		}
		n := min(r.size, left)
		e.runs = append(e.runs, run{r.addr, r.phys, n})
		end, left = end+n, left-n
	}
	e.lost, b.lost = b.lost, lost{}
	// Keep the rest, and the page before it.
	keep := b.runs[i]
	var rest []run
	if at > keep.addr {
		rest = append(rest, keep.from(at-min(lookbehind, at-keep.addr)))
	} else {
		if last := b.runs[i-1]; last.end() == at {
			rest = append(rest, last.from(last.end()-min(lookbehind, last.size)))
		}
		rest = append(rest, keep)
	}
	b.runs = append(rest, b.runs[i+1:]...)
	b.fill = 0
	for k, r := range b.runs {
		if k > 0 && b.runs[k-1].end() != r.addr {
			b.fill += gapSize
		}
		b.fill += r.size
	}
	b.lo, b.cut = at, true
	b.p.send(e)
}

// flush sends what is left. The builder is done.
func (b *builder) flush() {
	e := &extent{subject: b.subject, area: b.area, runs: b.runs, lo: b.lo, lost: b.lost}
	if n := len(b.runs); n > 0 {
		e.hi = b.runs[n-1].end()
		if e.hi == e.lo && b.cut {
			e.runs = nil // only what was shown before is left
		}
	}
	b.runs, b.lost = nil, lost{}
	if len(e.runs) > 0 || e.lost.swapped > 0 || len(e.lost.problems) > 0 {
		b.p.send(e)
	}
}

func (b *builder) problem(addr uint64, err error) {
	what := b.area.Name
	if b.subject.pid != 0 {
		what = fmt.Sprintf("pid %d %s", b.subject.pid, what)
	}
	if len(b.lost.problems) < maxHoles {
		b.lost.problems = append(b.lost.problems, problem{Escape([]byte(what)), addr, err})
	}
}

// maxHoles bounds what is told of one extent.
const maxHoles = 64

// hole notes what the page tables say of a place without a page.
func (b *builder) hole(m paging.Mapping, err error) {
	var nm *paging.NotMappedError
	switch {
	case errors.As(err, &nm) && nm.Kind == paging.KindSwapped && m.Size == pageSize:
		b.lost.swapped++
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		// The scan's end says it.
	case err != nil:
		b.problem(uint64(m.Virt), err)
	}
}

// countBytes returns how many bytes targets have in RAM.
func countBytes(ctx context.Context, mem hypervisor.Memory, targets []Target, budget uint64) uint64 {
	var n uint64
	for _, t := range targets {
		switch t := t.(type) {
		case PhysicalTarget:
			n += hypervisor.TotalSize(mem.Ranges())
		case ProcessTarget:
			n += countVirtual(ctx, t.Space, t.Areas, budget)
		case KernelTarget:
			n += countVirtual(ctx, t.Space, t.Areas, budget)
		}
	}
	return n
}

func countVirtual(ctx context.Context, space Space, areas []Area, budget uint64) uint64 {
	var n uint64
	areas, _ = tidyAreas(areas)
	for _, a := range areas {
		for m := range present(space.Mappings(ctx, a.Start, a.End)) {
			if n += clip(m, a).size; n/pageSize > budget {
				return n
			}
		}
	}
	return n
}

// present passes on the pages only.
func present(seq iter.Seq2[paging.Mapping, error]) iter.Seq[paging.Mapping] {
	return func(yield func(paging.Mapping) bool) {
		for m, err := range seq {
			if err == nil && m.Size > 0 && !yield(m) {
				return
			}
		}
	}
}
