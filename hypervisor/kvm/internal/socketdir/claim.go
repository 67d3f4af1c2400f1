package socketdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrTaken is returned by Claim when a machine of this name runs.
var ErrTaken = errors.New("a VM of this name is running")

// Claim is a name that is ours, and its socket: bound, and not listening yet, so
// that the process that serves it is the one that its clients see as their peer
// (SO_PEERCRED is of who calls listen).
type Claim struct {
	dir    Dir
	name   string
	lock   *os.File
	socket *os.File
}

// Claim takes a name. What a dead machine of that name has left is removed. The
// name is taken for as long as a process has a copy of Lock open.
func (d Dir) Claim(name string) (_ *Claim, err error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	if err := d.make(); err != nil {
		return nil, err
	}
	c := &Claim{dir: d, name: name}
	defer func() {
		if err != nil {
			c.Release()
		}
	}()
	if c.lock, err = d.take(name); err != nil {
		return nil, err
	}
	if err := os.Remove(d.Socket(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("socket of a dead VM: %w", err)
	}
	if c.socket, err = bind(d.Socket(name)); err != nil {
		return nil, err
	}
	return c, nil
}

// make makes the folder, and refuses one that is not ours alone.
func (d Dir) make() error {
	if err := os.MkdirAll(filepath.Dir(string(d)), 0o755); err != nil {
		return fmt.Errorf("folder for the VM's socket: %w", err)
	}
	if err := os.Mkdir(string(d), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("folder for the VM's socket: %w", err)
	}
	st, err := os.Lstat(string(d))
	if err != nil {
		return fmt.Errorf("folder for the VM's socket: %w", err)
	}
	if !st.IsDir() || owner(st) != os.Geteuid() || st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("folder for the VM's socket: %s must be a folder of yours with mode 0700, it is %v of user %d", d, st.Mode(), owner(st))
	}
	return nil
}

// take locks a name. The lock is one of the open file (F_OFD_SETLK, fcntl(2)): it
// lives as long as any process that has it.
func (d Dir) take(name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(d.lock(name), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("name %s: %w", name, err)
		}
		l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			f.Close()
			return nil, fmt.Errorf("name %s: %w: choose another with --name, or end that one with 'vantage stop %s'", name, ErrTaken, name)
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("name %s: lock: %w", name, err)
		}
		// Who gave the name back may have removed the file in between.
		here, herr := f.Stat()
		there, terr := os.Lstat(d.lock(name))
		if herr == nil && terr == nil && os.SameFile(here, there) {
			return f, nil
		}
		f.Close()
		if terr != nil && !errors.Is(terr, fs.ErrNotExist) {
			return nil, fmt.Errorf("name %s: %w", name, errors.Join(herr, terr))
		}
	}
}

// bind makes a socket that only its owner can connect to.
func bind(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	// The mode of a socket that is not bound yet is that of the file it becomes.
	err = unix.Fchmod(fd, 0o600)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// Path returns the socket's path.
func (c *Claim) Path() string { return c.dir.Socket(c.name) }

// Lock and Socket are to be handed to the process that runs the machine.
func (c *Claim) Lock() *os.File { return c.lock }

// Socket is bound: see Claim.
func (c *Claim) Socket() *os.File { return c.socket }

// Release gives the name back, and removes the files. No one may serve the socket
// any more.
func (c *Claim) Release() {
	if c.socket != nil {
		os.Remove(c.dir.Socket(c.name))
		c.socket.Close()
		c.socket = nil
	}
	if c.lock != nil {
		os.Remove(c.dir.lock(c.name))
		c.lock.Close()
		c.lock = nil
	}
}

// Sweep removes what a dead machine of this name has left, and reports whether
// there was no machine alive. A folder that is not ours is left alone.
func (d Dir) Sweep(name string) (dead bool, err error) {
	f, err := os.OpenFile(d.lock(name), os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("name %s: %w", name, err)
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return false, fmt.Errorf("name %s: %w", name, err)
	}
	if l.Type != unix.F_UNLCK {
		return false, nil // alive, and not disturbed
	}
	// Not in a folder of someone else: what a name there is may change while it
	// is looked at.
	if st, err := os.Lstat(string(d)); err != nil || owner(st) != os.Geteuid() {
		return true, err
	}
	lock, err := d.take(name)
	if errors.Is(err, ErrTaken) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer lock.Close()
	return true, errors.Join(removed(d.Socket(name)), removed(d.lock(name)))
}

func removed(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
