package kvm

import (
	"context"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// maxEvents is how many machine events wait for a handler that is slow.
const maxEvents = 256

// events hands machine events to who asked for them.
type events struct {
	mu   sync.Mutex
	subs map[*subscription]struct{}
}

type subscription struct {
	c       chan hypervisor.MachineEvent
	dropped uint64
}

func (e *events) init() { e.subs = make(map[*subscription]struct{}) }

// tell is called on the connection's reader and must not block.
func (e *events) tell(w wire.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for s := range e.subs {
		ev := hypervisor.MachineEvent{
			Kind: hypervisor.MachineEventKind(w.Kind), Time: w.Time, Detail: w.Detail, Dropped: w.Dropped + s.dropped,
		}
		select {
		case s.c <- ev:
			s.dropped = 0
		default:
			s.dropped += w.Dropped + 1
		}
	}
}

// Events is hypervisor.Notifier's.
func (vm *VM) Events(ctx context.Context, f func(hypervisor.MachineEvent)) error {
	s := &subscription{c: make(chan hypervisor.MachineEvent, maxEvents)}
	vm.events.mu.Lock()
	vm.events.subs[s] = struct{}{}
	vm.events.mu.Unlock()
	defer func() {
		vm.events.mu.Lock()
		defer vm.events.mu.Unlock()
		delete(vm.events.subs, s)
	}()
	if err := vm.ask(ctx, wire.Message{Method: wire.MethodEvents}); err != nil {
		return err
	}
	for {
		select {
		case e := <-s.c:
			f(e)
			continue
		default:
		}
		select {
		case e := <-s.c:
			f(e)
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-vm.c.done:
			for { // what came before the end
				select {
				case e := <-s.c:
					f(e)
				default:
					return fmt.Errorf("VM %s: %w", vm.name, vm.c.ended())
				}
			}
		}
	}
}
