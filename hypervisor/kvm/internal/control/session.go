package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// session is one client's connection and all that it has set.
type session struct {
	s    *Server
	c    *wire.Conn
	cred *unix.Ucred

	// ctx ends with the session; its cause is why.
	ctx    context.Context
	cancel context.CancelCauseFunc

	slots    chan struct{} // one for each request that is under way
	requests sync.WaitGroup
	events   chan wire.Event

	mu       sync.Mutex
	pending  map[uint64]context.CancelFunc // requests by ID
	saves    map[uint64]*remoteFolder      // by the request's ID
	holds    map[uint64]func()             // by token
	traps    map[uint64]hypervisor.TrapID  // by token
	channels []*channel                    // by vCPU; nil: none yet
	wantsAll bool                          // events
	dropped  uint64
}

// errLeft is why a session ends whose client has closed the connection.
var errLeft = errors.New("the client has left")

func newSession(s *Server, c *wire.Conn, cred *unix.Ucred) *session {
	t := &session{
		s: s, c: c, cred: cred,
		slots:   make(chan struct{}, maxRequests),
		events:  make(chan wire.Event, maxEvents),
		pending: make(map[uint64]context.CancelFunc),
		saves:   make(map[uint64]*remoteFolder),
		holds:   make(map[uint64]func()),
		traps:   make(map[uint64]hypervisor.TrapID),
	}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	return t
}

// end ends the session soon. It does not block, and may be called by a vCPU's
// thread.
func (t *session) end(why error) {
	t.cancel(why)
	// Wakes the reader. An error says that the connection is closed already.
	_ = t.c.SetReadDeadline(time.Unix(1, 0))
}

// run is the session's life.
func (t *session) run() {
	err := t.welcome()
	if err == nil {
		t.s.log.Info("client connected", "pid", t.cred.Pid, "uid", t.cred.Uid)
		var sender sync.WaitGroup
		sender.Go(t.sendEvents)
		err = t.read()
		t.end(err)
		sender.Wait()
	}
	t.end(err)
	t.clean()
	why := context.Cause(t.ctx)
	if !errors.Is(why, errLeft) {
		t.s.log.Info("client disconnected", "pid", t.cred.Pid, "reason", why)
		_ = t.c.Send(goodbye(why), t.s.timeout) // it is told if it can be
	}
	t.s.mu.Lock()
	delete(t.s.sessions, t)
	t.s.mu.Unlock()
	// Last of all: a client that waits for the end knows that all is back.
	t.c.Close()
}

// welcome exchanges hellos.
func (t *session) welcome() error {
	if err := t.c.SetReadDeadline(time.Now().Add(t.s.timeout)); err != nil {
		return err
	}
	m, err := t.receive()
	if err != nil {
		return err
	}
	m.CloseFiles()
	var h wire.Hello
	if m.Kind != wire.KindHello {
		return fmt.Errorf("%w: a first message of kind %d", wire.ErrMalformed, m.Kind)
	}
	if err := m.Into(&h); err != nil {
		return err
	}
	if h.Oldest > wire.Protocol || h.Newest < wire.Protocol {
		return fmt.Errorf("%w: the VM speaks version %d, the client %d to %d: use the vantage that the VM was started with",
			wire.ErrVersion, wire.Protocol, h.Oldest, h.Newest)
	}
	if err := t.c.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	if t.ctx.Err() != nil { // end was in between, and its deadline is lost
		return context.Cause(t.ctx)
	}
	w := wire.Message{Kind: wire.KindHello}.JSON(wire.Welcome{
		Protocol: wire.Protocol, Info: t.s.info(), Ranges: t.s.m.Ranges(), Methods: wire.Methods(), Facts: t.s.facts,
	})
	w.Files = append(w.Files, t.s.memory)
	return t.c.Send(w, t.s.timeout)
}

// receive is the connection's, with the session's end as the reason of its errors.
func (t *session) receive() (wire.Message, error) {
	m, err := t.c.Receive()
	switch {
	case err == nil:
		return m, nil
	case t.ctx.Err() != nil:
		return m, context.Cause(t.ctx)
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
		return m, errLeft
	}
	return m, err
}

// read takes the client's messages until the session ends.
func (t *session) read() error {
	for {
		m, err := t.receive()
		if err != nil {
			return err
		}
		switch m.Kind {
		case wire.KindRequest:
			m.CloseFiles()
			if err := t.begin(m); err != nil {
				return err
			}
		case wire.KindCancel:
			m.CloseFiles()
			t.mu.Lock()
			if cancel := t.pending[m.ID]; cancel != nil {
				cancel()
			}
			t.mu.Unlock()
		case wire.KindGive:
			if err := t.give(m); err != nil {
				return err
			}
		default:
			m.CloseFiles()
			return fmt.Errorf("%w: kind %d from a client", wire.ErrMalformed, m.Kind)
		}
	}
}

// begin starts to do a request, when there is room for one more.
func (t *session) begin(m wire.Message) error {
	select {
	case t.slots <- struct{}{}:
	case <-t.ctx.Done():
		return context.Cause(t.ctx)
	}
	ctx, cancel := context.WithCancel(t.ctx)
	t.mu.Lock()
	_, used := t.pending[m.ID]
	if !used {
		t.pending[m.ID] = cancel
	}
	t.mu.Unlock()
	if used {
		cancel()
		<-t.slots
		return fmt.Errorf("%w: ID %d is in use", wire.ErrMalformed, m.ID)
	}
	m.Body = append([]byte(nil), m.Body...) // the connection's until the next message
	t.requests.Go(func() {
		r, err := t.do(ctx, m)
		t.mu.Lock()
		delete(t.pending, m.ID)
		t.mu.Unlock()
		cancel()
		r.Kind, r.ID = wire.KindResponse, m.ID
		if err != nil {
			r = wire.Message{Kind: wire.KindError, ID: m.ID}.JSON(failure(err))
		}
		t.send(r)
		r.CloseFiles()
		<-t.slots
	})
	return nil
}

// send sends m; a client that does not read is disconnected.
func (t *session) send(m wire.Message) {
	if err := t.c.Send(m, t.s.timeout); err != nil {
		t.end(fmt.Errorf("%w: %w", wire.ErrUnresponsive, err))
	}
}

// tell queues an event. The server's lock is held.
func (t *session) tell(e wire.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.wantsAll {
		return
	}
	e.Dropped = t.dropped
	select {
	case t.events <- e:
		t.dropped = 0
	default:
		t.dropped++
	}
}

func (t *session) sendEvents() {
	for {
		select {
		case e := <-t.events:
			t.send(wire.Message{Kind: wire.KindEvent}.JSON(e))
		case <-t.ctx.Done():
			// What was told before the end is still sent.
			for {
				select {
				case e := <-t.events:
					if t.c.Send(wire.Message{Kind: wire.KindEvent}.JSON(e), t.s.timeout) != nil {
						return
					}
				default:
					return
				}
			}
		}
	}
}

// clean takes back all that the client has set. The session has ended.
func (t *session) clean() {
	t.stopChannels() // vCPUs that wait for an answer go on
	t.requests.Wait()
	t.mu.Lock()
	traps, holds := t.traps, t.holds
	t.traps, t.holds = nil, nil
	t.mu.Unlock()
	for _, id := range traps {
		t.undo("trap", func(ctx context.Context) error { return t.s.m.RemoveTrap(ctx, id) })
	}
	t.closeChannels()
	if t.s.releaseDirty(t) {
		t.undo("dirty tracking", t.s.m.StopDirty)
	}
	for _, release := range holds {
		release()
	}
}

func (t *session) undo(what string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTime)
	defer cancel()
	if err := do(ctx); err != nil && !errors.Is(err, hypervisor.ErrGone) {
		t.s.log.Error("what a client had set is still there", "what", what, "error", err)
	}
}
