package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
)

// DefaultTimeout is how long a client may take to answer a trap, or to read what
// it is sent, when Options gives no other time.
const DefaultTimeout = 5 * time.Second

// Bounds of what clients may ask for.
const (
	maxClients  = 64
	maxRequests = 16 // of one client at a time: a client that sends more waits
	maxTraps    = 4096
	maxHolds    = 16
	maxEvents   = 64 // that wait for one client to read them
	// cleanTime bounds one step of taking back what a client has set.
	cleanTime = 30 * time.Second
)

// Options configure a Server.
type Options struct {
	Logger *slog.Logger // nil: nothing is logged
	// Timeout is how long a client may take; 0: DefaultTimeout.
	Timeout time.Duration
	// Allow tells whether a process may be a client. nil: root, and the user that
	// this process has.
	Allow func(*unix.Ucred) bool
	// Memory is the machine's memory as clients get it: Readable's. It is the
	// server's to close. nil: the server opens it, which needs /proc.
	Memory *os.File
	// Facts are told to each client (wire.Welcome); nil: none.
	Facts []byte
}

// Server serves one machine to its clients.
type Server struct {
	m       Machine
	log     *slog.Logger
	timeout time.Duration
	allow   func(*unix.Ucred) bool
	memory  *os.File
	facts   []byte

	holds atomic.Int64 // of all clients: the machine stands

	mu       sync.Mutex
	sessions map[*session]struct{}
	ln       *net.UnixListener // nil: not serving
	ending   error             // not nil: Close was called, and why
	dirty    *session          // tracks dirty pages
	running  sync.WaitGroup    // sessions
}

// New returns a server of m.
func New(m Machine, o Options) (*Server, error) {
	s := &Server{
		m: m, log: o.Logger, timeout: o.Timeout, allow: o.Allow, memory: o.Memory, facts: o.Facts,
		sessions: make(map[*session]struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.timeout <= 0 {
		s.timeout = DefaultTimeout
	}
	if s.allow == nil {
		uid := uint32(os.Geteuid())
		s.allow = func(c *unix.Ucred) bool { return c.Uid == 0 || c.Uid == uid }
	}
	if s.memory == nil {
		var err error
		if s.memory, err = Readable(m.MemoryFile(), nil); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Readable opens memory once more, so that who gets the file can read and map it,
// and not write. proc is a folder of type proc; nil: /proc.
func Readable(memory, proc *os.File) (*os.File, error) {
	at, path := unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", memory.Fd())
	if proc != nil {
		at, path = int(proc.Fd()), path[len("/proc/"):]
	}
	fd, err := unix.Openat(at, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the guest's memory for clients: %w", err)
	}
	return os.NewFile(uintptr(fd), "guest memory, to read"), nil
}

// Serve serves clients that connect to ln, a socket of type "unixpacket", until
// Close, and returns nil then. It takes over ln.
func (s *Server) Serve(ln *net.UnixListener) error {
	s.mu.Lock()
	if s.ending != nil || s.ln != nil {
		s.mu.Unlock()
		ln.Close()
		return nil //nolint:nilerr // it serves already, or not any more
	}
	s.ln = ln
	s.mu.Unlock()
	for {
		c, err := ln.AcceptUnix()
		if err == nil {
			s.accept(wire.NewConn(c))
			continue
		}
		s.mu.Lock()
		ending := s.ending != nil
		s.mu.Unlock()
		if ending {
			return nil //nolint:nilerr // Close has closed what is waited for
		}
		// Out of file descriptors, or a client that was gone before it was
		// there: the next one is waited for by accept itself only in the second
		// case, so the first must not spin.
		if errors.Is(err, unix.ECONNABORTED) || errors.Is(err, unix.EINTR) {
			continue
		}
		s.log.Warn("no client can connect", "error", err)
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.ENOMEM) {
			return fmt.Errorf("accept: %w", err)
		}
		s.waitForRoom()
	}
}

// waitForRoom returns when a client has ended, or after a moment.
func (s *Server) waitForRoom() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	<-ctx.Done()
}

// accept begins a session for c, or turns it away.
func (s *Server) accept(c *wire.Conn) {
	cred, err := c.Peer()
	if err == nil && !s.allow(cred) {
		err = fmt.Errorf("user %d is neither root nor the VM's owner: %w", cred.Uid, os.ErrPermission)
	}
	if err == nil {
		s.mu.Lock()
		switch {
		case s.ending != nil:
			err = s.ending
		case len(s.sessions) >= maxClients:
			err = fmt.Errorf("the VM has %d clients already: %w", maxClients, hypervisor.ErrBusy)
		default:
			t := newSession(s, c, cred)
			s.sessions[t] = struct{}{}
			s.running.Go(t.run)
		}
		s.mu.Unlock()
	}
	if err != nil {
		s.log.Warn("client turned away", "error", err)
		_ = c.Send(goodbye(err), time.Millisecond) // it is told if it can be
		c.Close()
	}
}

func goodbye(err error) wire.Message {
	return wire.Message{Kind: wire.KindGoodbye}.JSON(wire.FromError(err))
}

// Tell tells those clients that want to know. It does not block.
func (s *Server) Tell(e wire.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t := range s.sessions {
		t.tell(e)
	}
}

// info is the machine's Info; a client's hold is a pause to all others.
func (s *Server) info() hypervisor.Info {
	i := s.m.Info()
	if s.holds.Load() > 0 && i.State == hypervisor.StateRunning {
		i.State = hypervisor.StatePaused
	}
	return i
}

// Close ends all sessions, as after their clients' death, tells the clients why
// (hypervisor.ErrGone: the VM has ended), and returns when that is done. Requests
// that are under way are answered before.
func (s *Server) Close(why error) {
	s.mu.Lock()
	if s.ending == nil {
		s.ending = why
		if s.ln != nil {
			s.ln.Close()
		}
		for t := range s.sessions {
			t.end(why)
		}
	}
	s.mu.Unlock()
	s.running.Wait()
	s.memory.Close()
}
