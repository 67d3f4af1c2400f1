// Package proc reads what Linux tells about one process in /proc, in a way
// that cannot mistake a reused PID for the process that was opened.
//
// It knows nothing of QEMU, and must not import any other package of Vantage
// but hypervisor (for its errors). What it reads was written by the process's
// owner: everything is bounded.
package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Bounds on what is read of a process.
const (
	maxFile = 16 << 20 // maps of a QEMU with many devices: some hundred KiB
	maxFDs  = 1 << 16
)

// Process is a handle on one process. It is safe for concurrent use.
type Process struct {
	PID       int
	StartTime uint64 // clock ticks after boot, field 22 of /proc/PID/stat

	dir   int      // O_PATH on /proc/PID: gives ESRCH, not another process, after its end
	pidfd *os.File // non-blocking, so that the runtime's poller waits on it
	gone  atomic.Bool
	done  chan struct{}
}

// Open takes hold of process pid. It returns an error that wraps
// hypervisor.ErrNotFound when there is none.
func Open(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, fmt.Errorf("pid %d: %w", pid, hypervisor.ErrNotFound)
	}
	// The order matters: first the pidfd, then what names the process by its
	// number, then a look whether the pidfd's process still lives. If it does,
	// all of it was of one process.
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
			return nil, fmt.Errorf("pid %d: %w", pid, hypervisor.ErrNotFound)
		}
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	p := &Process{PID: pid, dir: -1, pidfd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	if err := p.open(); err != nil {
		_ = p.pidfd.Close()
		if p.dir >= 0 {
			_ = unix.Close(p.dir)
		}
		return nil, err
	}
	go p.wait()
	return p, nil
}

func (p *Process) open() error {
	var err error
	p.dir, err = unix.Open("/proc/"+strconv.Itoa(p.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.PID, hypervisor.ErrNotFound)
	}
	if p.StartTime, err = p.startTime(); err != nil {
		return fmt.Errorf("pid %d: %w", p.PID, err)
	}
	return p.checkNow()
}

// wait notes the process's end. It returns when the process ends or Close is
// called.
func (p *Process) wait() {
	defer close(p.done)
	c, err := p.pidfd.SyscallConn()
	if err != nil {
		return
	}
	// An error means that Close was called, or that the poller cannot wait on
	// a pidfd: then checkNow alone finds out.
	_ = c.Read(func(fd uintptr) bool {
		if exited(int(fd)) {
			p.gone.Store(true)
			return true
		}
		return false
	})
}

func exited(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0 && fds[0].Revents&unix.POLLIN != 0
	}
}

// Check returns an error that wraps hypervisor.ErrGone when the process is
// known to have ended. It costs an atomic load.
func (p *Process) Check() error {
	if p.gone.Load() {
		return fmt.Errorf("pid %d: %w", p.PID, hypervisor.ErrGone)
	}
	return nil
}

// CheckNow asks the kernel whether the process has ended. What was read of the
// process by its number before a CheckNow that returns nil was of this process.
func (p *Process) CheckNow() error { return p.checkNow() }

func (p *Process) checkNow() error {
	if p.gone.Load() {
		return p.Check()
	}
	c, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("pid %d: %w", p.PID, hypervisor.ErrClosed)
	}
	if err := c.Control(func(fd uintptr) {
		if exited(int(fd)) {
			p.gone.Store(true)
		}
	}); err != nil {
		return fmt.Errorf("pid %d: %w", p.PID, hypervisor.ErrClosed)
	}
	return p.Check()
}

// Ended explains a failure: it returns an error that wraps hypervisor.ErrGone
// when the process has ended or is about to. A process that exits gives back
// its memory and namespaces some time before its pidfd says so.
func (p *Process) Ended() error {
	if err := p.checkNow(); err != nil {
		return err
	}
	fd, err := unix.Openat(p.dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
		b := make([]byte, 4096)
		n, rerr := unix.Read(fd, b)
		if rerr == nil && !Exiting(b[:n]) {
			return nil
		}
		err = rerr
	}
	if err == nil || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		p.gone.Store(true)
	}
	return p.Check()
}

// pfExiting is PF_EXITING (include/linux/sched.h): getting shut down.
const pfExiting = 4

// Exiting reports whether the text of /proc/PID/stat is of a process that is a
// zombie or on its way there.
func Exiting(stat []byte) bool {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return false
	}
	f := bytes.Fields(stat[i+1:]) // state is field 3, flags field 9
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(f[6]), 10, 64)
	return err == nil && flags&pfExiting != 0 || f[0][0] == 'Z' || f[0][0] == 'X'
}

// Close lets go of the process. It must not run concurrently with any other
// method.
func (p *Process) Close() error {
	err := p.pidfd.Close()
	<-p.done
	if p.dir >= 0 {
		err = errors.Join(err, unix.Close(p.dir))
		p.dir = -1
	}
	return err
}

// FDFromPidfd duplicates the process's file descriptor fd (Linux >= 5.6). It
// needs the right to trace the process.
func (p *Process) FDFromPidfd(fd int) (int, error) {
	c, err := p.pidfd.SyscallConn()
	if err != nil {
		return -1, err
	}
	n, got := -1, error(nil)
	if err := c.Control(func(pidfd uintptr) { n, got = unix.PidfdGetfd(int(pidfd), fd, 0) }); err != nil {
		return -1, err
	}
	if got != nil {
		return -1, fmt.Errorf("pidfd_getfd %d of pid %d: %w", fd, p.PID, got)
	}
	return n, nil
}

// OpenFile opens name below /proc/PID, for example "mem" or "fd/3".
func (p *Process) OpenFile(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(p.dir, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.fail(name, err)
	}
	return os.NewFile(uintptr(fd), "/proc/"+strconv.Itoa(p.PID)+"/"+name), nil
}

// fail turns an errno into ErrGone where the process's end explains it.
func (p *Process) fail(name string, err error) error {
	if gone := p.Ended(); gone != nil {
		return gone
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return fmt.Errorf("/proc/%d/%s: %w: run as root or with CAP_SYS_PTRACE", p.PID, name, err)
	}
	return fmt.Errorf("/proc/%d/%s: %w", p.PID, name, err)
}

// ReadFile reads name below /proc/PID, at most limit bytes of it (0: 16 MiB).
func (p *Process) ReadFile(name string, limit int64) ([]byte, error) {
	if limit <= 0 {
		limit = maxFile
	}
	f, err := p.OpenFile(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, p.fail(name, err)
	}
	return b, nil
}

// Readlink returns the target of the link name below /proc/PID.
func (p *Process) Readlink(name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(p.dir, name, b)
	if err != nil {
		return "", p.fail(name, err)
	}
	return string(b[:n]), nil
}

// Cmdline returns the process's arguments, at most limit bytes of them.
func (p *Process) Cmdline(limit int64) ([]string, error) {
	b, err := p.ReadFile("cmdline", limit)
	if err != nil {
		return nil, err
	}
	return SplitCmdline(b), nil
}

// SplitCmdline splits what /proc/PID/cmdline holds.
func SplitCmdline(b []byte) []string {
	b = bytes.TrimSuffix(b, []byte{0})
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

// FDs returns the process's open file descriptors: number and link text, as
// "socket:[123]" or "anon_inode:kvm-vcpu:0".
func (p *Process) FDs() (map[int]string, error) {
	names, err := p.list("fd", maxFDs)
	if err != nil {
		return nil, err
	}
	fds := make(map[int]string, len(names))
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if l, err := p.Readlink("fd/" + name); err == nil {
			fds[n] = l
		}
	}
	return fds, p.checkNow()
}

// Threads returns the IDs of the process's threads.
func (p *Process) Threads() ([]int, error) {
	names, err := p.list("task", maxFDs)
	if err != nil {
		return nil, err
	}
	var tids []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			tids = append(tids, n)
		}
	}
	return tids, p.checkNow()
}

func (p *Process) list(name string, limit int) ([]string, error) {
	f, err := p.OpenFile(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, p.fail(name, err)
	}
	return names, nil
}

func (p *Process) startTime() (uint64, error) {
	b, err := p.ReadFile("stat", 4096)
	if err != nil {
		return 0, err
	}
	return ParseStartTime(b)
}

// ParseStartTime returns field 22 of the text of /proc/PID/stat. The command
// name in field 2 may hold blanks and parentheses.
func ParseStartTime(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("stat: no command name")
	}
	f := bytes.Fields(stat[i+1:])
	const want = 22 - 3 // the first field behind the name is number 3
	if len(f) <= want {
		return 0, fmt.Errorf("stat: %d fields", len(f)+2)
	}
	v, err := strconv.ParseUint(string(f[want]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("stat: start time: %w", err)
	}
	return v, nil
}
