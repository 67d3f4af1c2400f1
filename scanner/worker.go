package scanner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hillu/go-yara/v4"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const (
	// window is how much of an extent is gone over at once to list matches. It
	// bounds how many matches libyara keeps at a time: at about 80 bytes for
	// each, a string that matches at every byte takes 5 MiB.
	window = 64 << 10
	// windowBefore and windowBehind are what is shown around a window: see
	// lookbehind, and Overlap, which has room to spare.
	windowBefore = 64
	windowBehind = 8 << 10
	// retryWindow is how much of an extent is tried at once after libyara failed
	// on the whole.
	retryWindow = 256 << 10
	// noTryCatch is libyara's SCAN_FLAGS_NO_TRYCATCH, which go-yara has no name
	// for: no signal handlers.
	noTryCatch yara.ScanFlags = 4
)

// worker scans extents, one at a time.
type worker struct {
	opts     Options
	rules    *Rules
	scanners []*yara.Scanner // one per set
	buf      *buffer
}

func newWorker(mem hypervisor.Memory, rules *Rules, opts Options) (*worker, error) {
	w := &worker{opts: opts, rules: rules, buf: newBuffer(mem, opts.extentSize)}
	// The bytes of a match are taken from the buffer; libyara need keep none.
	if err := yara.SetConfiguration(yara.ConfigMaxMatchData, 1); err != nil {
		return nil, fmt.Errorf("set up libyara: %w", err)
	}
	for _, s := range rules.sets {
		sc, err := yara.NewScanner(s.yr)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("set up YARA scanner: %w", err)
		}
		w.scanners = append(w.scanners, sc)
		sc.SetTimeout(wholeSeconds(opts.Timeout))
	}
	return w, nil
}

func (w *worker) close() {
	for _, s := range w.scanners {
		s.Destroy()
	}
}

// hurry lets a scan that is running in libyara end within a second. It may be
// called from another goroutine: it stores one aligned word, which libyara looks
// at after every 4096 bytes.
func (w *worker) hurry() {
	for _, s := range w.scanners {
		s.SetTimeout(time.Second)
	}
}

// wholeSeconds rounds up: libyara counts in seconds, and 0 is for ever.
func wholeSeconds(d time.Duration) time.Duration {
	return max((d+time.Second-1)/time.Second, 1) * time.Second
}

// scan reads and scans one extent.
func (w *worker) scan(ctx context.Context, e *extent) *result {
	res := &result{}
	if len(e.runs) == 0 {
		return res
	}
	res.base = e.base()
	err := w.buf.fill(ctx, e)
	data := w.buf.bytes()
	if err == nil && data != nil {
		for i := range w.scanners {
			if err = w.scanSet(ctx, e, i, data, res); err != nil {
				break
			}
		}
	}
	res.stats = w.buf.stats
	res.timedOut = min(res.timedOut, res.stats.read) // a page can be given up by each set
	if err != nil {
		res.ended, res.hits = err, nil
	}
	return res
}

// scanSet scans the buffer with one set of rules. Its error is that of the
// whole scan.
func (w *worker) scanSet(ctx context.Context, e *extent, set int, data []byte, res *result) error {
	if err := w.define(e, set); err != nil {
		return err
	}
	first := &firstPass{set: w.rules.sets[set]}
	err := w.run(ctx, set, data, yara.ScanFlagsFastMode, first)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		// One place that libyara cannot cope with must not hide the rest of the
		// extent: try it in windows, each for itself.
		if first, err = w.retry(ctx, e, set, data, res, err); err != nil {
			return err
		}
	}
	matched := slices.Compact(slices.Sorted(slices.Values(first.rules)))
	if len(matched) == 0 {
		return nil
	}
	second := &secondPass{w: w, e: e, set: w.rules.sets[set], want: map[int]*hit{}}
	for r := range first.matches {
		second.want[r] = &hit{set: set, rule: r}
	}
	// Nothing matches before the first match that is known, but for one that
	// starts before it and ends behind it.
	if from, ok := first.earliest(); ok {
		if err := w.list(ctx, e, set, data, max(from-windowBehind, 0), second); err != nil {
			return err
		}
	}
	w.collect(e, set, matched, first, second, res)
	return nil
}

// run lets libyara scan data.
func (w *worker) run(ctx context.Context, set int, data []byte, flags yara.ScanFlags, cb yara.ScanCallback) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return w.scanners[set].SetFlags(flags | noTryCatch).SetCallback(cb).ScanMem(data)
}

// define sets the built-in variables that the rules have.
func (w *worker) define(e *extent, set int) error {
	for _, name := range w.rules.sets[set].externals {
		if err := w.scanners[set].DefineVariable(name, e.external(name, w.opts.VM)); err != nil {
			return fmt.Errorf("set YARA variable %s: %w", name, err)
		}
	}
	return nil
}

// windows calls f with each window of data from start on: its bounds, and those
// of what libyara is shown for it.
func windows(data []byte, start, size int, f func(from, to, showFrom, showTo int) error) error {
	for from := start; from < len(data); from += size {
		to := min(from+size, len(data))
		if err := f(from, to, max(from-windowBefore, 0), min(to+windowBehind, len(data))); err != nil {
			return err
		}
	}
	return nil
}

// retry scans in windows what could not be scanned as a whole because of cause.
// It returns what matched in any.
func (w *worker) retry(ctx context.Context, e *extent, set int, data []byte, res *result, cause error) (*firstPass, error) {
	if len(data) <= retryWindow {
		w.fail(e, res, []failure{{0, len(data), cause}})
		return &firstPass{}, nil
	}
	sc := w.scanners[set]
	sc.SetTimeout(time.Second)
	defer sc.SetTimeout(wholeSeconds(w.opts.Timeout))
	pass := &firstPass{set: w.rules.sets[set]}
	var failed []failure
	err := windows(data, 0, retryWindow, func(from, to, showFrom, showTo int) error {
		pass.shown = showFrom
		err := w.run(ctx, set, data[showFrom:showTo], yara.ScanFlagsFastMode, pass)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			failed = append(failed, failure{from, to, err})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	w.opts.Logger.Debug("extent scanned in windows", "addr", e.base(), "kind", e.subject.kind, "err", cause)
	w.fail(e, res, failed)
	return pass, nil
}

// failure is a part of a buffer that libyara failed on.
type failure struct {
	from, to int
	err      error
}

// fail notes windows that were not scanned.
func (w *worker) fail(e *extent, res *result, failed []failure) {
	b := w.buf
	for _, f := range failed {
		i, _ := b.locate(f.from)
		var pages uint64
		for j := i; j < len(b.segs) && b.segs[j].off < f.to; j++ {
			s := b.segs[j]
			lo, hi := max(s.off, f.from), min(s.off+s.size, f.to)
			pages += pagesOf(e.ownPart(s.addr+uint64(lo-s.off), uint64(hi-lo)))
		}
		res.timedOut += pages
		err := f.err
		if errors.Is(err, errScanTimeout) {
			err = fmt.Errorf("libyara took too long over %d bytes", f.to-f.from)
		}
		w.problem(e, f.from, err)
	}
}

// errListed ends a listing early.
var errListed = errors.New("enough is listed")

// list goes over data from an offset on once more for the places of matches,
// until each rule has MaxStrings of them or time is up.
func (w *worker) list(ctx context.Context, e *extent, set int, data []byte, from int, pass *secondPass) error {
	sc := w.scanners[set]
	limit := wholeSeconds(w.opts.Timeout)
	defer sc.SetTimeout(limit)
	start := time.Now()
	err := windows(data, from, window, func(from, to, showFrom, showTo int) error {
		pass.from, pass.to, pass.shown = from, to, showFrom
		pass.next = 0
		sc.SetTimeout(time.Second)
		if err := w.run(ctx, set, data[showFrom:showTo], 0, pass); err != nil && ctx.Err() == nil {
			// That the rules matched is known, only not all the places.
			pass.more()
			w.problem(e, from, fmt.Errorf("not all places of matches are listed: %w", err))
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case to == len(data):
			return nil
		case pass.full() || time.Since(start) > limit:
			pass.more()
			return errListed
		}
		return nil
	})
	if errors.Is(err, errListed) {
		return nil
	}
	return err
}

// problem notes err at offset off of the buffer.
func (w *worker) problem(e *extent, off int, err error) {
	b := w.buf
	at := e.base()
	if i, _ := b.locate(off); i < len(b.segs) {
		at = b.segs[i].addr + uint64(max(off-b.segs[i].off, 0))
	}
	if len(b.stats.problems) < maxHoles {
		b.stats.problems = append(b.stats.problems, problem{e.subject.kind + " memory", at, err})
	}
}

// collect makes hits of what the passes found.
func (w *worker) collect(e *extent, set int, matched []int, first *firstPass, second *secondPass, res *result) {
	for _, r := range matched {
		h := second.want[r]
		if h == nil { // none of its strings, if it has any, is there
			h = &hit{set: set, rule: r}
		}
		for _, m := range first.matches[r] {
			// What only the first pass saw: a match longer than a window shows.
			if mm, ok := w.place(e, m.off, m.length); ok && !slices.ContainsFunc(h.matches, func(o match) bool {
				return o.str == m.str && o.rel == mm.rel
			}) {
				mm.str = m.str
				h.matches = append(h.matches, mm)
			}
		}
		sortMatches(h.matches)
		if m := w.opts.MaxStrings; len(h.matches) > m {
			h.matches, h.more = h.matches[:m], true
		}
		if len(h.matches) == 0 && !h.more && (len(first.matches[r]) > 0 || !w.speaksFor(e)) {
			// All its strings belong to a neighbour, or lie across a hole.
			continue
		}
		res.hits = append(res.hits, *h)
	}
}

// speaksFor reports whether a rule without strings that matched e is worth
// telling: not of the bytes around a border, which two extents showed already.
func (w *worker) speaksFor(e *extent) bool { return e.border == 0 }

func sortMatches(ms []match) {
	slices.SortFunc(ms, func(a, b match) int {
		return cmp.Or(cmp.Compare(a.rel, b.rel), cmp.Compare(a.str, b.str))
	})
}

// place returns the match of n bytes at offset off of the buffer, if it is one
// of the extent's own: if it starts there, crosses no hole, and straddles the
// border when there is one.
func (w *worker) place(e *extent, off, n int) (match, bool) {
	b := w.buf
	i, ok := b.locate(off)
	if !ok || off+n > b.n {
		return match{}, false
	}
	s := &b.segs[i]
	addr := s.addr + uint64(off-s.off)
	if !e.owns(addr) || !b.whole(i, off, n) || (e.border != 0 && addr+uint64(n)-e.lo <= e.border-e.lo) {
		return match{}, false
	}
	return match{
		rel:    addr - e.base(),
		phys:   s.phys + hypervisor.PhysAddr(off-s.off),
		length: n,
		data:   slices.Clone(b.data[off : off+min(n, MaxData)]),
	}, true
}
