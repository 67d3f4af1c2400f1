package policy

import (
	"context"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/event"
)

// Responder carries out one response. Respond must return when ctx is done; if
// it does not, it is left behind and counts against
// ExecutorOptions.MaxRunning. It must
// be safe for concurrent use.
type Responder interface {
	Respond(ctx context.Context, r Response, e *event.Event) error
}

// ResponderFunc is a function that is a Responder.
type ResponderFunc func(ctx context.Context, r Response, e *event.Event) error

// Respond calls f.
func (f ResponderFunc) Respond(ctx context.Context, r Response, e *event.Event) error {
	return f(ctx, r, e)
}

// VMs is what the built-in responses need of the host: VMs by their URI.
type VMs interface {
	// Pause returns when the VM runs no more.
	Pause(ctx context.Context, uri string) error
	// Resume lets the VM run.
	Resume(ctx context.Context, uri string) error
	// Paused reports whether the VM is paused now.
	Paused(ctx context.Context, uri string) (bool, error)
}

// Library returns the built-in responses: alert calls its argument, pause and
// resume act on vms. A nil argument leaves its responses out.
//
// Pausing a VM that is paused returns ErrDuplicate; whether it is, is asked
// each time, as somebody else may have resumed it. Responses to one VM are
// carried out one after the other.
func Library(alert func(context.Context, Response, *event.Event) error, vms VMs) map[string]Responder {
	lib := map[string]Responder{}
	if alert != nil {
		lib[Alert] = ResponderFunc(alert)
	}
	if vms != nil {
		locks := &keyLocks{held: map[string]*keyLock{}}
		lib[Pause] = &vmResponder{vms: vms, locks: locks, act: vms.Pause, want: true}
		lib[Resume] = &vmResponder{vms: vms, locks: locks, act: vms.Resume, want: false}
	}
	return lib
}

// vmResponder brings a VM into the state that it wants: paused or not.
type vmResponder struct {
	vms   VMs
	locks *keyLocks
	act   func(context.Context, string) error
	want  bool
}

func (v *vmResponder) Respond(ctx context.Context, r Response, e *event.Event) error {
	if e.VM == nil || e.VM.URI == "" {
		return fmt.Errorf("%s: the event names no VM", r.Name)
	}
	unlock, err := v.locks.lock(ctx, e.VM.URI)
	if err != nil {
		return fmt.Errorf("%s: wait for another response to this VM: %w", r.Name, err)
	}
	defer unlock()
	// When the state cannot be asked, acting is the safe side: to pause a
	// paused VM is no error.
	if paused, err := v.vms.Paused(ctx, e.VM.URI); err == nil && paused == v.want {
		return ErrDuplicate
	}
	if err := v.act(ctx, e.VM.URI); err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	return nil
}

// keyLocks is a lock for each key that somebody holds or waits for.
type keyLocks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	turn chan struct{} // holds one token while free
	refs int
}

// lock waits for key's turn, or returns ctx's error.
func (k *keyLocks) lock(ctx context.Context, key string) (unlock func(), err error) {
	k.mu.Lock()
	l := k.held[key]
	if l == nil {
		l = &keyLock{turn: make(chan struct{}, 1)}
		l.turn <- struct{}{}
		k.held[key] = l
	}
	l.refs++
	k.mu.Unlock()
	drop := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if l.refs--; l.refs == 0 {
			delete(k.held, key)
		}
	}
	select {
	case <-l.turn:
		return func() { l.turn <- struct{}{}; drop() }, nil
	case <-ctx.Done():
		drop()
		return nil, ctx.Err()
	}
}
