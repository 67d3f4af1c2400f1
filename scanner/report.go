package scanner

import (
	"context"
	"errors"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// reported is what is remembered of the extent before the present one: matches
// that touch its end, which the border extent behind it finds again, maybe
// longer.
type reported struct {
	end     uint64
	subject *subject
	matches map[matchID]bool
}

type matchID struct {
	set, rule, str int
	addr           uint64
}

// report takes results as they come and reports them in order, until all are
// there or the scan is at its end.
func (s *scan) report(ctx context.Context, cancel context.CancelFunc) error {
	var fatal error
	pending := map[uint64]extentResult{}
	var next uint64
	for r := range s.results {
		pending[r.e.seq] = r
		for {
			r, ok := pending[next]
			if !ok {
				break
			}
			delete(pending, next)
			next++
			<-s.tokens
			if fatal != nil {
				s.left(r.e)
				continue
			}
			if err := s.extent(ctx, r.e, r.res); err != nil {
				fatal = err
				cancel()
			}
		}
	}
	// The workers are done. What is pending was scanned behind one that was
	// given up: extents that nobody took leave holes in the order.
	for _, r := range pending {
		s.left(r.e)
	}
	return fatal
}

// left counts an extent that was not scanned.
func (s *scan) left(e *extent) {
	n := pagesOf(e.ownBytes())
	s.sum.PagesTotal += n
	s.sum.PagesLeft += n
}

// extent reports one extent.
func (s *scan) extent(ctx context.Context, e *extent, res *result) error {
	for _, p := range e.lost.problems {
		s.cov.Add(p.what, hypervisor.VirtAddr(p.addr), p.err)
	}
	s.sum.PagesTotal += e.lost.swapped
	s.sum.PagesSwapped += e.lost.swapped
	if len(e.runs) == 0 {
		return nil
	}
	if res.ended != nil {
		s.left(e)
		if ctx.Err() == nil && !errors.Is(res.ended, context.Canceled) {
			return res.ended
		}
		return nil
	}
	st := &res.stats
	s.sum.PagesTotal += st.pages
	s.sum.PagesRead += st.read - res.timedOut
	s.sum.PagesTimedOut += res.timedOut
	s.sum.PagesSkipped += st.skipped
	s.sum.PagesUnreadable += st.unreadable
	s.sum.PagesNotRAM += st.notRAM
	if res.cached {
		s.sum.BytesFromCache += st.scanned
	} else {
		s.sum.BytesScanned += st.scanned
	}
	for _, p := range st.problems {
		s.cov.Add(p.what, hypervisor.VirtAddr(p.addr-res.base+e.base()), p.err)
	}
	if err := s.findings(e, res); err != nil {
		return err
	}
	if s.opts.OnProgress != nil {
		s.done += e.ownBytes()
		s.opts.OnProgress(Progress{Done: s.done, Total: max(s.total, s.done), Findings: s.sum.Findings})
	}
	return nil
}

// findings reports the rules that matched in an extent.
func (s *scan) findings(e *extent, res *result) error {
	before := s.last
	if before != nil && (e.border == 0 || before.end != e.border || before.subject != e.subject) {
		before = nil
	}
	s.last = &reported{end: e.hi, subject: e.subject}
	for i := range res.hits {
		h := &res.hits[i]
		ms := h.matches
		if before != nil {
			ms = nil
			for _, m := range h.matches {
				if !before.matches[matchID{h.set, h.rule, m.str, e.base() + m.rel}] {
					ms = append(ms, m)
				}
			}
			if len(ms) == 0 {
				continue
			}
		}
		for _, m := range ms {
			if at := e.base() + m.rel; at+uint64(m.length) == e.hi {
				if s.last.matches == nil {
					s.last.matches = map[matchID]bool{}
				}
				s.last.matches[matchID{h.set, h.rule, m.str, at}] = true
			}
		}
		s.sum.Findings++
		if s.opts.OnFinding == nil {
			continue
		}
		if err := s.opts.OnFinding(s.finding(e, h, ms)); err != nil {
			return err
		}
	}
	return nil
}

// finding makes what is told of a hit.
func (s *scan) finding(e *extent, h *hit, ms []match) Finding {
	info := &s.rules.sets[h.set].rules[h.rule]
	first := max(e.lo, e.base())
	f := Finding{
		VM: s.opts.VM, Rule: info.name, Namespace: info.namespace, Tags: info.tags, Meta: info.meta,
		PID: e.subject.pid, Comm: e.subject.comm,
		Strings: make([]String, 0, len(ms)), StringsTruncated: h.more,
		PhysAddr: e.physOf(first),
	}
	for _, m := range ms {
		f.Strings = append(f.Strings, String{
			Name: info.strings[m.str], Offset: e.offset(e.base() + m.rel), VirtAddr: e.virtual(e.base() + m.rel),
			PhysAddr: m.phys, Data: Escape(m.data), Length: m.length, Truncated: m.length > len(m.data),
		})
	}
	if len(ms) > 0 {
		first = e.base() + ms[0].rel
		f.PhysAddr = ms[0].phys
	}
	f.Offset, f.VirtAddr = e.offset(first), e.virtual(first)
	f.Where = e.areaOf(first).Name
	if e.subject.symbol != nil {
		if sym := e.subject.symbol(hypervisor.VirtAddr(first)); sym != "" {
			f.Where += " " + sym
		}
	}
	return f
}

// areaOf returns the area that address a lies in.
func (e *extent) areaOf(a uint64) Area {
	if e.border != 0 && a-e.lo >= e.border-e.lo {
		return e.next
	}
	return e.area
}

// offset returns how far into its area address a is.
func (e *extent) offset(a uint64) uint64 { return a - uint64(e.areaOf(a).Start) }

func (e *extent) virtual(a uint64) *hypervisor.VirtAddr {
	if !e.subject.virtual {
		return nil
	}
	v := hypervisor.VirtAddr(a)
	return &v
}

// physOf returns the physical address of a, which lies in the extent.
func (e *extent) physOf(a uint64) hypervisor.PhysAddr {
	for _, r := range e.runs {
		if a-r.addr < r.size {
			return r.phys + hypervisor.PhysAddr(a-r.addr)
		}
	}
	return 0
}
