package kvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// Bounds of a connection.
const (
	sendTime = 10 * time.Second // until a machine has to have read a message
	// closeTime is how long a machine may take to take back what we have set.
	closeTime = 60 * time.Second
	// cancelTime is how long the answer to a request that is not wanted any more
	// is waited for.
	cancelTime = 3 * time.Second
)

// conn is a connection to a machine's process: requests and their answers.
type conn struct {
	c       *wire.Conn
	welcome wire.Welcome
	memory  *os.File // the guest's, read only; whoever takes it closes it
	pid     int      // of the machine's process

	mu      sync.Mutex
	events  func(wire.Event) // gets events, on the reader's goroutine
	last    uint64
	calls   map[uint64]*call
	closing bool
	failed  error         // why we gave it up ourselves
	why     error         // why it ended; valid when done is closed
	done    chan struct{} // closed when no more is read
	reader  sync.WaitGroup
}

// call is a request that is not answered yet.
type call struct {
	answer chan wire.Message // of one; never blocks

	mu   sync.Mutex
	part func(wire.Message) error // nil: the answer has no parts, or no one wants them
	err  error                    // the first of part
}

// take hands a part of the answer on.
func (k *call) take(m wire.Message) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.part != nil && k.err == nil {
		k.err = k.part(m)
	}
}

// drop makes sure that part is not running and will not be called.
func (k *call) drop() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.part = nil
	return k.err
}

// dial connects to the socket at path and exchanges hellos.
func dial(ctx context.Context, path string, timeout time.Duration) (_ *conn, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var nd net.Dialer
	nc, err := nd.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	u, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("connect to %s: not a unix socket", path)
	}
	c := &conn{c: wire.NewConn(u), calls: make(map[uint64]*call), done: make(chan struct{})}
	defer func() {
		if err != nil {
			c.c.Close()
		}
	}()
	// The hello may be waited for without end by a machine that hangs.
	stop := context.AfterFunc(ctx, func() { _ = c.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	hello := wire.Message{Kind: wire.KindHello}.JSON(wire.Hello{Oldest: wire.Protocol, Newest: wire.Protocol, Program: "vantage"})
	if err := c.c.Send(hello, timeout); err != nil {
		return nil, c.refused(err)
	}
	m, err := c.c.Receive()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("it does not answer: %w", context.Cause(ctx))
		}
		return nil, err
	}
	if err := c.greet(m); err != nil {
		m.CloseFiles()
		return nil, err
	}
	if !stop() { // too late, and the deadline is set
		c.memory.Close()
		return nil, fmt.Errorf("it does not answer: %w", context.Cause(ctx))
	}
	c.reader.Go(c.run)
	return c, nil
}

// refused returns why a machine has closed a connection, which it may have said
// before it did.
func (c *conn) refused(err error) error {
	m, rerr := c.c.Receive()
	if rerr != nil {
		return err
	}
	defer m.CloseFiles()
	return c.greet(m)
}

// greet takes the machine's hello.
func (c *conn) greet(m wire.Message) error {
	if m.Kind == wire.KindGoodbye {
		var e wire.Error
		if err := m.Into(&e); err != nil {
			return err
		}
		return fmt.Errorf("turned away: %w", e.Err())
	}
	if m.Kind != wire.KindHello || len(m.Files) != 1 {
		return fmt.Errorf("%w: a hello of kind %d with %d files", wire.ErrMalformed, m.Kind, len(m.Files))
	}
	if err := m.Into(&c.welcome); err != nil {
		return err
	}
	if c.welcome.Protocol != wire.Protocol {
		return fmt.Errorf("%w: the VM chose version %d", wire.ErrVersion, c.welcome.Protocol)
	}
	cred, err := c.c.Peer()
	if err != nil {
		return err
	}
	c.pid, c.memory = int(cred.Pid), m.Files[0]
	return nil
}

// run reads what the machine sends, until the end.
func (c *conn) run() {
	why := c.read()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		why = c.failed
	}
	if c.closing {
		why = hypervisor.ErrClosed
	}
	c.why = why
	close(c.done)
}

func (c *conn) read() error {
	for {
		m, err := c.c.Receive()
		if err != nil {
			if errors.Is(err, wire.ErrMalformed) {
				return err
			}
			// The process has ended without a word.
			return hypervisor.ErrGone
		}
		switch m.Kind {
		case wire.KindResponse, wire.KindError, wire.KindPart, wire.KindWant:
			if err := c.dispatch(m); err != nil {
				return err
			}
		case wire.KindEvent:
			m.CloseFiles()
			var e wire.Event
			if err := m.Into(&e); err != nil {
				return err
			}
			c.event(e)
		case wire.KindGoodbye:
			m.CloseFiles()
			var e wire.Error
			if err := m.Into(&e); err != nil {
				return err
			}
			return e.Err()
		default:
			m.CloseFiles()
			return fmt.Errorf("%w: kind %d from a VM", wire.ErrMalformed, m.Kind)
		}
	}
}

// dispatch hands m to the call that it belongs to.
func (c *conn) dispatch(m wire.Message) error {
	c.mu.Lock()
	k := c.calls[m.ID]
	last := m.Kind == wire.KindResponse || m.Kind == wire.KindError
	if k != nil && last {
		delete(c.calls, m.ID)
	}
	c.mu.Unlock()
	switch {
	case k == nil:
		m.CloseFiles()
		return fmt.Errorf("%w: the answer to request %d, which is not there", wire.ErrMalformed, m.ID)
	case last:
		m.Body = append([]byte(nil), m.Body...) // the connection's until the next message
		k.answer <- m
	default:
		k.take(m)
		m.CloseFiles()
	}
	return nil
}

// do sends a request and returns its response. part gets the parts of the answer,
// in the reader's goroutine: it must not block. A request that is not wanted any
// more (ctx) is cancelled, and its answer waited for a moment longer: what it has
// done by then is known.
func (c *conn) do(ctx context.Context, m wire.Message, part func(wire.Message) error) (wire.Message, error) {
	if err := ctx.Err(); err != nil {
		return wire.Message{}, fmt.Errorf("%v: %w", m.Method, context.Cause(ctx))
	}
	k := &call{part: part, answer: make(chan wire.Message, 1)}
	c.mu.Lock()
	if c.closing {
		c.mu.Unlock()
		return wire.Message{}, fmt.Errorf("%v: %w", m.Method, hypervisor.ErrClosed)
	}
	c.last++
	m.Kind, m.ID = wire.KindRequest, c.last
	c.calls[m.ID] = k
	c.mu.Unlock()
	if err := c.c.Send(m, sendTime); err != nil {
		return wire.Message{}, fmt.Errorf("%v: %w", m.Method, c.lost(err))
	}
	var r wire.Message
	select {
	case r = <-k.answer:
	case <-c.done:
		return c.late(m, k)
	case <-ctx.Done():
		_ = c.c.Send(wire.Message{Kind: wire.KindCancel, ID: m.ID}, sendTime) // done tells of an error
		timer := time.NewTimer(cancelTime)
		defer timer.Stop()
		select {
		case r = <-k.answer:
		case <-c.done:
			return c.late(m, k)
		case <-timer.C:
			_ = k.drop() // the reason is another
			return wire.Message{}, fmt.Errorf("%v: %w", m.Method, context.Cause(ctx))
		}
	}
	return c.answered(m, k, r)
}

// late returns the answer that came just before the end of the connection.
func (c *conn) late(m wire.Message, k *call) (wire.Message, error) {
	select {
	case r := <-k.answer:
		return c.answered(m, k, r)
	default:
		return wire.Message{}, fmt.Errorf("%v: %w", m.Method, c.ended())
	}
}

func (c *conn) answered(m wire.Message, k *call, r wire.Message) (wire.Message, error) {
	if r.Kind == wire.KindResponse {
		return r, k.drop()
	}
	r.CloseFiles()
	var e wire.Error
	if err := r.Into(&e); err != nil {
		return wire.Message{}, err
	}
	if m.Method == wire.MethodWrite {
		return wire.Message{}, &partlyError{int(min(e.Done, wire.MaxWrite)), e.Err()}
	}
	return wire.Message{}, e.Err()
}

// partlyError is an error of a write that was done in part.
type partlyError struct {
	done int
	error
}

func (e *partlyError) Unwrap() error { return e.error }

// ended returns why the connection has ended; nil: it has not.
func (c *conn) ended() error {
	select {
	case <-c.done:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.why
	default:
		return nil
	}
}

// lost returns why nothing can be sent.
func (c *conn) lost(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("the VM's process does not read: %w", err)
	}
	// The reader knows better, and soon: the machine has closed the connection.
	timer := time.NewTimer(cancelTime)
	defer timer.Stop()
	select {
	case <-c.done:
		return c.ended()
	case <-timer.C:
		return err
	}
}

// close ends the connection, and returns when the machine has taken back what
// was set through it.
func (c *conn) close() {
	c.mu.Lock()
	c.closing = true
	c.mu.Unlock()
	_ = c.c.SetReadDeadline(time.Now().Add(closeTime)) // an error says that it is closed
	if c.c.CloseWrite() == nil {
		<-c.done // the machine closes its end when all is back
	}
	c.c.Close()
	c.reader.Wait()
}

// onEvent sets who gets events; nil: no one.
func (c *conn) onEvent(f func(wire.Event)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = f
}

func (c *conn) event(e wire.Event) {
	c.mu.Lock()
	f := c.events
	c.mu.Unlock()
	if f != nil {
		f(e)
	}
}
