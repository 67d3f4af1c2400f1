package control

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// backlog is how many clients may wait to be accepted.
const backlog = 32

// Listen lets clients connect to a socket that is bound (socketdir.Claim). They
// see the process that calls it as their peer.
func Listen(socket *os.File) (*net.UnixListener, error) {
	if err := unix.Listen(int(socket.Fd()), backlog); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket.Name(), err)
	}
	ln, err := net.FileListener(socket)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket.Name(), err)
	}
	u, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("listen on %s: not a unix socket", socket.Name())
	}
	return u, nil
}
