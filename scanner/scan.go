package scanner

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Scan looks for rules in targets, which are read through mem, and returns what
// was covered.
//
// When ctx is done the scan ends soon, with a Summary that is not Complete and
// no error. The error is not nil when the VM ended (it wraps
// hypervisor.ErrGone) or was closed, when OnFinding failed, or when libyara
// could not be set up; the Summary then says what was covered until then.
func Scan(ctx context.Context, mem hypervisor.Memory, rules *Rules, targets []Target, opts Options) (Summary, error) {
	start := time.Now()
	opts = opts.withDefaults()
	sum := Summary{Summary: true, VM: opts.VM}
	if rules == nil || len(rules.sets) == 0 {
		return sum, ErrRulesClosed
	}
	sum.Rules = rules.Count()
	s := &scan{
		opts: opts, rules: rules, mem: mem, cache: newCache(), sum: &sum,
		tokens:  make(chan struct{}, 8*opts.Workers+64),
		extents: make(chan *extent),
		results: make(chan extentResult, opts.Workers),
	}
	for _, set := range rules.sets {
		s.externals = append(s.externals, set.externals...)
	}
	err := s.run(ctx, targets)
	ended := ""
	switch {
	case err != nil:
		ended = err.Error()
	case ctx.Err() != nil:
		ended = "interrupted"
		if errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			ended = "out of time"
		}
	}
	sum.DurationSeconds = time.Since(start).Seconds()
	sum.finish(ended, &s.cov)
	return sum, err
}

// extentResult is the result of one extent.
type extentResult struct {
	e   *extent
	res *result
}

// scan is one run of Scan: a planner, which makes extents in order; workers; and
// a reporter, the goroutine of Scan itself, which puts results in order again.
type scan struct {
	opts  Options
	rules *Rules
	mem   hypervisor.Memory
	cache *cache
	sum   *Summary
	// externals are the built-in variables that the rules ask for.
	externals []string

	cov introspect.Coverage

	// tokens bounds how many extents are on their way between planner and
	// reporter.
	tokens  chan struct{}
	extents chan *extent
	results chan extentResult

	total uint64 // bytes, for progress
	done  uint64

	last *reported
}

func (s *scan) run(ctx context.Context, targets []Target) error {
	// 4 times: what is shared counts for each area that has it.
	budget := 4*pagesOf(hypervisor.TotalSize(s.mem.Ranges())) + 1<<16
	if s.opts.OnProgress != nil {
		s.total = countBytes(ctx, s.mem, targets, budget)
	}
	workers := make([]*worker, s.opts.Workers)
	defer func() {
		for _, w := range workers {
			if w != nil {
				w.close()
			}
		}
	}()
	for i := range workers {
		var err error
		if workers[i], err = newWorker(s.mem, s.rules, s.opts); err != nil {
			return err
		}
	}
	stop, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(s.extents)
		s.plan(stop, targets, budget)
	})
	var busy sync.WaitGroup
	for _, w := range workers {
		busy.Go(func() { s.work(stop, w) })
	}
	wg.Go(func() {
		busy.Wait()
		close(s.results)
	})
	wg.Go(func() {
		// Let go of extents that libyara is slow with. This ends before the
		// workers are closed.
		<-stop.Done()
		for _, w := range workers {
			w.hurry()
		}
	})
	err := s.report(ctx, cancel)
	cancel()
	wg.Wait()
	return err
}

// plan sends the extents of all targets.
func (s *scan) plan(ctx context.Context, targets []Target, budget uint64) {
	p := &planner{ctx: ctx, mem: s.mem, size: uint64(s.opts.extentSize), budget: budget}
	p.emit = func(e *extent) bool {
		select {
		case s.tokens <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		select {
		case s.extents <- e:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for _, t := range targets {
		if p.stopped || ctx.Err() != nil {
			return
		}
		p.target(t)
	}
}

// work is the life of a worker.
func (s *scan) work(ctx context.Context, w *worker) {
	for e := range s.extents {
		if len(e.runs) == 0 || !e.subject.virtual { // no frame comes twice in RAM
			s.results <- extentResult{e, w.scan(ctx, e)}
			continue
		}
		k := e.key(s.externals, s.opts.VM)
		res, wait := s.cache.begin(k, e)
		if wait {
			continue
		}
		if res != nil {
			s.results <- extentResult{e, fromCache(res)}
			continue
		}
		res = w.scan(ctx, e)
		waiting := s.cache.finish(k, res)
		s.results <- extentResult{e, res}
		for _, other := range waiting {
			s.results <- extentResult{other, fromCache(res)}
		}
	}
}

func fromCache(res *result) *result {
	c := *res
	c.cached = true
	return &c
}
