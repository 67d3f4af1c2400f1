package wire

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Channel is one end of a pair of sockets on which a vCPU's trap events and their
// answers go. It blocks in the kernel, not in Go's poller: between an event and
// its handler lies one thread that wakes up, and no more.
//
// One goroutine uses it at a time; Shutdown may be called by any.
type Channel struct {
	fd   int
	use  sync.RWMutex // held for reading by who is in a system call
	done atomic.Bool
}

// NewChannels returns a channel's two ends: ours, and the file to give away.
// Receive on ours waits for timeout at most.
func NewChannels(timeout time.Duration) (*Channel, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("trap channel: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "trap channel")
	tv := unix.NsecToTimeval(int64(timeout))
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fds[0])
		theirs.Close()
		return nil, nil, fmt.Errorf("trap channel: %w", err)
	}
	return &Channel{fd: fds[0]}, theirs, nil
}

// OpenChannel takes over a file that came from NewChannels. Its Receive waits
// until there is something, or until Shutdown.
func OpenChannel(f *os.File) (*Channel, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return nil, fmt.Errorf("trap channel: %w", err)
	}
	return &Channel{fd: fd}, nil
}

// Send sends one event or answer. It does not wait: only one is under way at a
// time, and a peer that lets more pile up is not answered.
func (c *Channel) Send(b []byte) error {
	c.use.RLock()
	defer c.use.RUnlock()
	if c.done.Load() {
		return io.EOF
	}
	for {
		err := unix.Send(c.fd, b, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("trap channel: %w", err)
		}
		return nil
	}
}

// Receive fills buf with the next event or answer and returns its length. io.EOF:
// the peer, or Shutdown, has ended the channel; os.ErrDeadlineExceeded: see
// NewChannels.
func (c *Channel) Receive(buf []byte) (int, error) {
	c.use.RLock()
	defer c.use.RUnlock()
	if c.done.Load() {
		return 0, io.EOF
	}
	var began time.Time
	for {
		n, err := unix.Read(c.fd, buf)
		switch {
		case err == nil && n > 0:
			return n, nil
		case err == nil, errors.Is(err, unix.ECONNRESET):
			return 0, io.EOF
		case errors.Is(err, unix.EAGAIN):
			return 0, os.ErrDeadlineExceeded
		case !errors.Is(err, unix.EINTR):
			return 0, fmt.Errorf("trap channel: %w", err)
		}
		// A signal (one kicks a vCPU's thread): the kernel's clock begins anew,
		// ours does not.
		tv, terr := unix.GetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO)
		switch {
		case terr != nil || tv.Nano() == 0:
		case began.IsZero():
			began = time.Now()
		case time.Since(began) > time.Duration(tv.Nano()):
			return 0, os.ErrDeadlineExceeded
		}
	}
}

// Shutdown ends the channel: who waits in Receive, at either end, gets io.EOF.
func (c *Channel) Shutdown() {
	c.use.RLock()
	defer c.use.RUnlock()
	if !c.done.Swap(true) {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR) // a peer that is gone is no error
	}
}

// Close ends the channel and waits for who uses it.
func (c *Channel) Close() error {
	c.Shutdown()
	c.use.Lock()
	defer c.use.Unlock()
	if c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}
