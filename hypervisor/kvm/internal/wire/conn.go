package wire

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Conn carries messages. Send may be called by several goroutines, Receive by
// one.
type Conn struct {
	c    *net.UnixConn
	send sync.Mutex
	out  []byte // Send's
	in   []byte // Receive's
	oob  []byte
}

// NewConn returns a connection on a socket of type SOCK_SEQPACKET ("unixpacket"),
// which it owns.
func NewConn(c *net.UnixConn) *Conn {
	// One byte more than a message has: a longer one is seen for what it is.
	return &Conn{c: c, in: make([]byte, MaxMessage+1), oob: make([]byte, unix.CmsgSpace(4*MaxFiles))}
}

// Send sends m with a copy of each of its files. It waits for timeout at most
// when the peer does not read; after an error the connection is of no use.
func (c *Conn) Send(m Message, timeout time.Duration) error {
	c.send.Lock()
	defer c.send.Unlock()
	var err error
	if c.out, err = m.Append(c.out[:0]); err != nil {
		return err
	}
	if err := c.c.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	var oob []byte
	if len(m.Files) > 0 {
		fds := make([]int, len(m.Files))
		for i, f := range m.Files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.c.WriteMsgUnix(c.out, oob, nil); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// Receive returns the next message; its body is valid until the next call, its
// files are the caller's. io.EOF: the peer has closed the connection. Any error
// but a passed deadline (SetReadDeadline) makes the connection useless.
func (c *Conn) Receive() (Message, error) {
	n, oobn, flags, _, err := c.c.ReadMsgUnix(c.in, c.oob)
	if errors.Is(err, unix.ECONNRESET) {
		// The peer has closed without having read all that we sent. That is told
		// once; what it said before is still there.
		n, oobn, flags, _, err = c.c.ReadMsgUnix(c.in, c.oob)
	}
	var files []*os.File
	if oobn > 0 {
		var ferr error
		if files, ferr = parseFiles(c.oob[:oobn]); err == nil {
			err = ferr
		}
	}
	var m Message
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("%w: longer than %d bytes, or with more than %d files", ErrMalformed, MaxMessage, MaxFiles)
	}
	if err == nil {
		var want int
		if m, want, err = Parse(c.in[:n]); err == nil && want != len(files) {
			err = fmt.Errorf("%w: %d files that claim to be %d", ErrMalformed, len(files), want)
		}
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return Message{}, err
	}
	m.Files = files
	return m, nil
}

// parseFiles takes the file descriptors out of control messages. The kernel has
// made them ours already: none may be lost.
func parseFiles(oob []byte) ([]*os.File, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue // credentials, of which no one asked
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "passed file"))
		}
	}
	return files, nil
}

// CloseFiles closes the files of a message that no one wants.
func (m Message) CloseFiles() {
	for _, f := range m.Files {
		f.Close()
	}
}

// SetReadDeadline bounds Receive; the zero time: it waits for ever.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.c.SetReadDeadline(t) }

// CloseWrite says that no more is sent: the peer's Receive returns io.EOF.
func (c *Conn) CloseWrite() error { return c.c.CloseWrite() }

// Close ends the connection.
func (c *Conn) Close() error { return c.c.Close() }

// Peer says whose process is at the other end (SO_PEERCRED, unix(7)): who
// connected, or who called listen. The PID is 0, and the UID the overflow UID,
// for one that has no number in our namespaces.
func (c *Conn) Peer() (*unix.Ucred, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("peer of a socket: %w", err)
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, cerr); err != nil {
		return nil, fmt.Errorf("peer of a socket: %w", err)
	}
	return cred, nil
}
