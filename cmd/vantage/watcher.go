package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
)

const (
	// watchQueue is how many events wait for the printer: the guest must not.
	watchQueue = 4096
	// unwatchWithin is how long taking the traps away may take.
	unwatchWithin = 30 * time.Second
)

// symbolAt names an address of a guest's kernel.
type symbolAt func(hypervisor.VirtAddr) (name string, offset uint64, ok bool)

// watcher takes the events of a VM's traps from their handlers to the printer.
type watcher struct {
	vm     string
	answer hypervisor.TrapVerb
	limit  uint64 // events to print; 0: all
	symbol symbolAt
	start  time.Time

	events  chan watched
	printed uint64 // the printer's, until it has ended

	mu        sync.Mutex // of what follows
	closed    bool
	taken     uint64 // events on their way to the printer
	unrated   uint64 // not told by the driver, for --rate
	unprinted uint64 // told while the queue was full
	lost      uint64 // breakpoints that are there no more
}

func newWatcher(vm string, answer hypervisor.TrapVerb, limit int) *watcher {
	return &watcher{vm: vm, answer: answer, limit: uint64(limit), events: make(chan watched, watchQueue)}
}

// watchEnd is how a watch ended.
type watchEnd struct {
	gone   bool // with the VM
	paused bool // with a VM that stands
}

// handler answers the events of a trap of spec. A vCPU waits for it: it must not.
func (w *watcher) handler(spec *watchSpec) hypervisor.TrapHandler {
	return func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
		at := time.Now()
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.closed || w.limit > 0 && w.taken == w.limit {
			// Its watch is over: what is not told must not be changed either.
			return hypervisor.TrapAnswer{Verb: hypervisor.TrapContinue}
		}
		w.unrated += ev.Dropped
		if ev.Lost {
			w.lost++
		}
		kept := *ev
		select {
		case w.events <- watched{at, spec, &kept}:
			w.taken++
		default:
			w.unprinted++
		}
		return hypervisor.TrapAnswer{Verb: w.answer}
	}
}

// close ends the printer when it has printed what is there. A handler may still
// run where a trap could not be removed.
func (w *watcher) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	close(w.events)
}

// run sets traps, prints their events until the end that was asked for, and takes
// them away. Whoever reads our output may be slow, or not read at all: the traps
// are removed without waiting for him.
func (w *watcher) run(ctx context.Context, a *app, vm hypervisor.VM, t hypervisor.Trapper, traps []specTrap, limit time.Duration) (end watchEnd, err error) {
	w.start = time.Now()
	ids, err := w.arm(ctx, t, traps)
	if err != nil {
		return end, errors.Join(err, disarm(ctx, t, ids))
	}
	if err := a.watchBegins(w.vm, len(ids)); err != nil {
		return end, errors.Join(err, disarm(ctx, t, ids))
	}
	printed := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		printed <- w.print(a)
	}()
	end.gone, err = wait(ctx, vm, done, limit)
	err = errors.Join(err, disarm(ctx, t, ids))
	w.close()
	err = errors.Join(err, <-printed)
	if !end.gone {
		end.paused = stands(ctx, vm)
	}
	return end, err
}

// arm sets traps. It returns those that are set, with an error too.
func (w *watcher) arm(ctx context.Context, t hypervisor.Trapper, traps []specTrap) (ids []hypervisor.TrapID, err error) {
	for _, st := range traps {
		id, err := t.SetTrap(ctx, st.trap, w.handler(st.spec))
		if err != nil {
			return ids, st.spec.fail(err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// disarm removes traps, whatever ended the watch.
func disarm(ctx context.Context, t hypervisor.Trapper, ids []hypervisor.TrapID) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unwatchWithin)
	defer cancel()
	var errs []error
	for _, id := range ids {
		if err := t.RemoveTrap(ctx, id); err != nil && !errors.Is(err, hypervisor.ErrGone) {
			errs = append(errs, fmt.Errorf("remove trap: %w", err))
		}
	}
	return errors.Join(errs...)
}

// wait returns when the watch is to end: by ctx, after limit, when the printer has
// enough or cannot print, or with the VM (gone).
func wait(ctx context.Context, vm hypervisor.VM, printer <-chan struct{}, limit time.Duration) (gone bool, err error) {
	var late <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		late = timer.C
	}
	ended := make(chan error, 1)
	if n, ok := vm.(hypervisor.Notifier); ok {
		nctx, cancel := context.WithCancel(ctx)
		var told sync.WaitGroup
		told.Go(func() { ended <- n.Events(nctx, func(hypervisor.MachineEvent) {}) })
		defer told.Wait()
		defer cancel()
	}
	select {
	case <-ctx.Done():
	case <-late:
	case <-printer:
	case err := <-ended:
		switch {
		case errors.Is(err, hypervisor.ErrGone):
			return true, nil
		case ctx.Err() == nil:
			return false, err // no event may ever come on this connection
		}
	}
	return false, nil
}

// stands reports whether vm is paused, as far as it tells.
func stands(ctx context.Context, vm hypervisor.VM) bool {
	p, ok := vm.(hypervisor.Pauser)
	if !ok {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unwatchWithin)
	defer cancel()
	s, err := p.State(ctx)
	return err == nil && s == hypervisor.StatePaused
}

// watchBegins says on stderr that the traps are in force.
func (a *app) watchBegins(vm string, traps int) error {
	if a.json {
		return a.printJSONErr(struct {
			VM       string `json:"vm"`
			Watching bool   `json:"watching"`
			Traps    int    `json:"traps"`
		}{vm, true, traps})
	}
	_, err := fmt.Fprintf(a.stderr, "vantage: %s is watched (traps: %d); Ctrl-C ends it\n", term.Escape(vm), traps)
	return err
}
