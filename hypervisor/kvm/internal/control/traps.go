package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// channel carries one vCPU's events to a client.
type channel struct {
	c *wire.Channel

	mu      sync.Mutex // one event at a time
	number  uint64
	in, out []byte
}

// openChannels makes the channels of all vCPUs, and returns the client's ends.
func (t *session) openChannels() (files []*os.File, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.channels != nil {
		return nil, fmt.Errorf("%w: trap channels are there already", wire.ErrMalformed)
	}
	var all []*channel
	for range min(t.s.m.Info().VCPUs, wire.MaxFiles) {
		ours, theirs, err := wire.NewChannels(t.s.timeout)
		if err != nil {
			for _, ch := range all {
				ch.c.Close()
			}
			wire.Message{Files: files}.CloseFiles()
			return nil, err
		}
		all = append(all, &channel{c: ours, in: make([]byte, wire.MaxTrap)})
		files = append(files, theirs)
	}
	t.channels = all
	return files, nil
}

// stopChannels lets go of vCPUs that wait for the client.
func (t *session) stopChannels() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ch := range t.channels {
		ch.c.Shutdown()
	}
}

// closeChannels waits for the last that uses one. No trap is left.
func (t *session) closeChannels() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ch := range t.channels {
		ch.c.Close()
	}
}

// setTrap arms a trap whose events go to the client.
func (t *session) setTrap(ctx context.Context, b wire.SetTrap) error {
	t.mu.Lock()
	_, used := t.traps[b.Token]
	n, channels := len(t.traps), t.channels
	if !used && n < maxTraps && channels != nil {
		t.traps[b.Token] = 0 // is being set
	}
	t.mu.Unlock()
	switch {
	case channels == nil:
		return fmt.Errorf("%w: a trap before its channels", wire.ErrMalformed)
	case used:
		return fmt.Errorf("%w: trap %d is in use", wire.ErrMalformed, b.Token)
	case n >= maxTraps:
		return &hypervisor.TrapError{Trap: b.Trap, Err: fmt.Errorf("%d traps are there: %w", n, hypervisor.ErrNoResources)}
	}
	id, err := t.s.m.SetTrap(ctx, b.Trap, func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
		ev.Trap = hypervisor.TrapID(b.Token)
		a, err := channels[max(0, min(ev.VCPU, len(channels)-1))].ask(ev)
		if err != nil {
			t.end(err)
			return hypervisor.TrapAnswer{Verb: hypervisor.TrapContinue}
		}
		return a
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		delete(t.traps, b.Token)
		return err
	}
	t.traps[b.Token] = id
	return nil
}

// removeTrap takes a trap away. Its handler waits for the client's answer at
// most, which the client may give meanwhile.
func (t *session) removeTrap(ctx context.Context, token uint64) error {
	t.mu.Lock()
	id := t.traps[token]
	t.mu.Unlock()
	if id == 0 {
		return fmt.Errorf("trap %d: %w", token, hypervisor.ErrNotFound)
	}
	if err := t.s.m.RemoveTrap(ctx, id); err != nil {
		return err
	}
	t.mu.Lock()
	delete(t.traps, token)
	t.mu.Unlock()
	return nil
}

// ask lets the client answer an event. An error is one that ends the session.
func (ch *channel) ask(ev *hypervisor.TrapEvent) (hypervisor.TrapAnswer, error) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.number++
	ch.out = wire.AppendEvent(ch.out[:0], ch.number, ev)
	if err := ch.c.Send(ch.out); err != nil {
		return hypervisor.TrapAnswer{}, unanswered(err)
	}
	n, err := ch.c.Receive(ch.in)
	if err != nil {
		return hypervisor.TrapAnswer{}, unanswered(err)
	}
	number, a, err := wire.ParseAnswer(ch.in[:n])
	if err == nil && number != ch.number {
		err = fmt.Errorf("%w: the answer to event %d, want %d", wire.ErrMalformed, number, ch.number)
	}
	return a, err
}

// unanswered is the reason for which a session ends whose client has not answered.
func unanswered(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("%w: a trap", wire.ErrUnresponsive)
	}
	return errLeft
}
