package kvm

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// traps are a handle's traps, and the channels on which their events come.
type traps struct {
	open     sync.Mutex // one opens the channels
	mu       sync.RWMutex
	handlers map[hypervisor.TrapID]hypervisor.TrapHandler
	channels []*wire.Channel // nil: not open yet
	threads  sync.WaitGroup  // one for each channel
}

// SetTrap is hypervisor.Trapper's. Its handler runs on a thread of the vCPU that
// it is about.
func (vm *VM) SetTrap(ctx context.Context, t hypervisor.Trap, h hypervisor.TrapHandler) (hypervisor.TrapID, error) {
	if err := vm.openChannels(ctx); err != nil {
		return 0, err
	}
	token := vm.tokens.next()
	id := hypervisor.TrapID(token.Token)
	vm.traps.mu.Lock()
	vm.traps.handlers[id] = h // before the trap: its first event may come before the answer
	vm.traps.mu.Unlock()
	if err := vm.ask(ctx, wire.Message{Method: wire.MethodSetTrap}.JSON(wire.SetTrap{Token: token.Token, Trap: t})); err != nil {
		vm.traps.mu.Lock()
		delete(vm.traps.handlers, id)
		vm.traps.mu.Unlock()
		return 0, err
	}
	return id, nil
}

// RemoveTrap is hypervisor.Trapper's.
func (vm *VM) RemoveTrap(ctx context.Context, id hypervisor.TrapID) error {
	// The machine waits for the handler: it must still be found meanwhile.
	if err := vm.ask(ctx, wire.Message{Method: wire.MethodRemoveTrap}.JSON(wire.Token{Token: uint64(id)})); err != nil {
		return err
	}
	vm.traps.mu.Lock()
	delete(vm.traps.handlers, id)
	vm.traps.mu.Unlock()
	return nil
}

// openChannels gets the channels from the machine, once.
func (vm *VM) openChannels(ctx context.Context) error {
	ts := &vm.traps
	ts.open.Lock()
	defer ts.open.Unlock()
	if ts.channels != nil {
		return nil
	}
	r, err := vm.do(ctx, wire.Message{Method: wire.MethodChannels}, nil)
	if err != nil {
		return err
	}
	if len(r.Files) == 0 {
		return fmt.Errorf("VM %s: %w: no trap channels", vm.name, wire.ErrMalformed)
	}
	var all []*wire.Channel
	for i, f := range r.Files {
		c, err := wire.OpenChannel(f)
		if err != nil {
			wire.Message{Files: r.Files[i+1:]}.CloseFiles()
			for _, c := range all {
				c.Close()
			}
			return err
		}
		all = append(all, c)
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.handlers, ts.channels = make(map[hypervisor.TrapID]hypervisor.TrapHandler), all
	for i, c := range all {
		ts.threads.Go(func() {
			if err := ts.serve(i, c); err != nil {
				// It cannot be gone on with: no answer will come.
				vm.c.fail(err)
			}
			c.Shutdown() // lets go of a vCPU that waits
		})
	}
	return nil
}

// serve answers the events of one channel until its end.
func (ts *traps) serve(vcpu int, c *wire.Channel) error {
	in, out := make([]byte, wire.MaxTrap), []byte(nil)
	for {
		n, err := c.Receive(in)
		if err != nil {
			return nil //nolint:nilerr // the machine has closed it, or we have
		}
		ev := new(hypervisor.TrapEvent) // the handler's to keep
		number, err := wire.ParseEvent(in[:n], ev)
		if err != nil {
			return fmt.Errorf("trap event of vCPU %d: %w", vcpu, err)
		}
		ts.mu.RLock()
		h := ts.handlers[ev.Trap]
		ts.mu.RUnlock()
		var a hypervisor.TrapAnswer
		if h != nil { // else one of a SetTrap that was given up
			a = h(ev)
		}
		out = wire.AppendAnswer(out[:0], number, &a)
		if c.Send(out) != nil {
			return nil //nolint:nilerr // as above
		}
	}
}

// close ends the channels and waits for the handlers. The machine has removed the
// traps already.
func (ts *traps) close() {
	ts.open.Lock()
	defer ts.open.Unlock()
	for _, c := range ts.channels {
		c.Shutdown()
	}
	ts.threads.Wait()
	for _, c := range ts.channels {
		c.Close()
	}
}

// errProtocol is what a connection ends with that cannot be gone on with.
var errProtocol = errors.New("the VM's process does not speak our protocol")

// fail ends the connection for good.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.failed == nil {
		c.failed = fmt.Errorf("%w: %w", errProtocol, err)
	}
	c.mu.Unlock()
	c.c.Close()
}
