package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/cmdline"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/proc"
	"github.com/vantage-vmi/vantage/hypervisor/qemu/internal/qmp"
)

const (
	qmpRemedy = "start QEMU with -qmp unix:PATH,server=on,wait=off"
	// busyRetry is how long and how often a held monitor is looked at again:
	// what other observers ask takes milliseconds.
	busyRetry    = 200 * time.Millisecond
	busyInterval = 10 * time.Millisecond
)

// socket is a listening socket of a VM's process that serves QMP.
type socket struct {
	path string // unix: as it was bound; "@…" is abstract
	tcp  string // TCP: "127.0.0.1:4444"
	held bool   // a client is on it now
}

func (s socket) String() string {
	if s.tcp != "" {
		return s.tcp
	}
	return s.path
}

// monitorSockets returns the QMP sockets that the process listens on. What the
// command line claims counts only where the kernel says that this very process
// holds the listening socket: the command line is its starter's, and must not
// make us talk to somebody else's socket.
func monitorSockets(p *proc.Process, cfg *cmdline.Config) ([]socket, error) {
	if len(cfg.Monitors) == 0 {
		return nil, nil
	}
	fds, err := p.FDs()
	if err != nil {
		return nil, err
	}
	own := map[uint64]bool{}
	for _, l := range fds {
		if ino, ok := proc.SocketInode(l); ok {
			own[ino] = true
		}
	}
	all, err := p.UnixSockets()
	if err != nil {
		return nil, err
	}
	var out []socket
	for _, m := range cfg.Monitors {
		if m.Port != "" {
			if s, ok := tcpSocket(p, m, own); ok {
				out = append(out, s)
			}
			continue
		}
		i := slices.IndexFunc(all, func(s proc.UnixSocket) bool {
			if !s.Listening || !own[s.Inode] {
				return false
			}
			if m.FD >= 0 {
				ino, ok := proc.SocketInode(fds[m.FD])
				return ok && ino == s.Inode
			}
			return s.Path == m.Path
		})
		if i < 0 {
			continue
		}
		s := socket{path: all[i].Path}
		// A client that QEMU has accepted has the listener's path, and a
		// descriptor of QEMU's.
		s.held = slices.ContainsFunc(all, func(c proc.UnixSocket) bool {
			return !c.Listening && c.Connected && c.Path == s.path && own[c.Inode]
		})
		out = append(out, s)
	}
	return out, nil
}

// dial connects to the first of the process's QMP monitors that is free. It
// returns a *hypervisor.NotSupportedError when there is none, and an error that
// wraps hypervisor.ErrBusy when all are held.
func dial(ctx context.Context, p *proc.Process, cfg *cmdline.Config) (*qmp.Client, error) {
	retry := time.Now().Add(busyRetry)
	for {
		c, err := dialOnce(ctx, p, cfg)
		if err == nil || !errors.Is(err, hypervisor.ErrBusy) || time.Now().After(retry) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyInterval):
		}
	}
}

func dialOnce(ctx context.Context, p *proc.Process, cfg *cmdline.Config) (*qmp.Client, error) {
	socks, err := monitorSockets(p, cfg)
	if err != nil {
		return nil, err
	}
	if len(socks) == 0 {
		return nil, &hypervisor.NotSupportedError{What: "QMP of a VM without a monitor socket", Driver: DriverName, Remedy: qmpRemedy}
	}
	var errs []error
	for _, s := range socks {
		if s.held {
			errs = append(errs, fmt.Errorf("QMP monitor %q: %w: end that client (libvirt: virsh qemu-monitor-command), or %s a second time",
				s.String(), hypervisor.ErrBusy, qmpRemedy))
			continue
		}
		conn, err := connect(ctx, p, s)
		if err != nil {
			errs = append(errs, fmt.Errorf("QMP monitor %q: %w", s.String(), err))
			continue
		}
		c, err := qmp.New(ctx, conn)
		if err == nil {
			return c, nil
		}
		errs = append(errs, fmt.Errorf("QMP monitor %q: %w", s.String(), err))
	}
	if err := p.Ended(); err != nil {
		return nil, err
	}
	return nil, errors.Join(errs...)
}

func connect(ctx context.Context, p *proc.Process, s socket) (net.Conn, error) {
	var nd net.Dialer
	if s.tcp != "" {
		return nd.DialContext(ctx, "tcp", s.tcp)
	}
	if strings.HasPrefix(s.path, "@") {
		return nd.DialContext(ctx, "unix", s.path) // works in its own network namespace only
	}
	f, err := p.OpenFile(inside(s.path), unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return connectFile(ctx, f)
}

// connectFile connects to a socket file that is open with O_PATH: so a path
// may be of any length, and is resolved once.
func connectFile(ctx context.Context, f *os.File) (net.Conn, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("not a socket")
	}
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(int(f.Fd())))
	if errors.Is(err, unix.EAGAIN) { // clients are queued for it
		return nil, fmt.Errorf("%w: %w", hypervisor.ErrBusy, err)
	}
	return c, err
}

// pidOfSocket returns the QEMU process that listens on the socket file name.
func pidOfSocket(ctx context.Context, name string) (int, error) {
	f, err := os.OpenFile(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return 0, fmt.Errorf("%w: %w", hypervisor.ErrNotFound, err)
		}
		return 0, err
	}
	defer f.Close()
	want, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if want.Mode().Type() != fs.ModeSocket {
		return 0, fmt.Errorf("%q is not a socket: %w", name, hypervisor.ErrNotFound)
	}
	pids, err := qemuPIDs(ctx)
	if err != nil {
		return 0, err
	}
	// Without a connection, so that a held socket works too.
	for _, pid := range pids {
		if listensOn(pid, want) {
			return pid, nil
		}
	}
	// Where another user's descriptors cannot be read: the listener's
	// credentials. Under libvirt these are libvirtd's.
	conn, err := connectFile(ctx, f)
	if err != nil {
		return 0, fmt.Errorf("no QEMU listens on %q: %w", name, errors.Join(hypervisor.ErrNotFound, err))
	}
	defer func() { _ = conn.Close() }()
	pid, err := peerPID(conn)
	if err != nil {
		return 0, err
	}
	if !slices.Contains(pids, pid) {
		return 0, fmt.Errorf("%q is held by pid %d, which is not a QEMU process: %w", name, pid, hypervisor.ErrNotFound)
	}
	return pid, nil
}

// listensOn reports whether the process listens on the socket file want.
func listensOn(pid int, want fs.FileInfo) bool {
	p, err := proc.Open(pid)
	if err != nil {
		return false
	}
	defer func() { _ = p.Close() }()
	fds, err := p.FDs()
	if err != nil {
		return false
	}
	own := map[uint64]bool{}
	for _, l := range fds {
		if ino, ok := proc.SocketInode(l); ok {
			own[ino] = true
		}
	}
	all, err := p.UnixSockets()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all, func(s proc.UnixSocket) bool {
		if !s.Listening || !own[s.Inode] || strings.HasPrefix(s.Path, "@") {
			return false
		}
		f, err := p.OpenFile(inside(s.Path), unix.O_PATH)
		if err != nil {
			return false
		}
		defer f.Close()
		st, err := f.Stat()
		return err == nil && os.SameFile(st, want)
	})
}

func peerPID(conn net.Conn) (int, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return 0, errors.New("not a unix socket")
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var got error
	if err := raw.Control(func(fd uintptr) {
		cred, got = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if got != nil {
		return 0, fmt.Errorf("SO_PEERCRED: %w", got)
	}
	return int(cred.Pid), nil
}

// tcpSocket finds a monitor's TCP listener among the process's sockets.
func tcpSocket(p *proc.Process, m cmdline.Monitor, own map[uint64]bool) (socket, bool) {
	theirs, err1 := p.Readlink("ns/net")
	ours, err2 := os.Readlink("/proc/self/ns/net")
	if err1 != nil || err2 != nil || theirs != ours {
		return socket{}, false
	}
	port, err := strconv.ParseUint(m.Port, 10, 16)
	if err != nil {
		return socket{}, false
	}
	all, err := p.TCPSockets()
	if err != nil {
		return socket{}, false
	}
	for _, l := range all {
		if !l.Listening || uint64(l.Local.Port()) != port || !own[l.Inode] {
			continue
		}
		// The address is the kernel's, not the command line's: a name there
		// could lead anywhere.
		to := l.Local
		if to.Addr().IsUnspecified() {
			to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
			if !l.Local.Addr().Is4() {
				to = netip.AddrPortFrom(netip.IPv6Loopback(), to.Port())
			}
		}
		s := socket{tcp: to.String()}
		s.held = slices.ContainsFunc(all, func(c proc.TCPSocket) bool {
			return !c.Listening && c.Local.Port() == l.Local.Port() && own[c.Inode]
		})
		return s, true
	}
	return socket{}, false
}
