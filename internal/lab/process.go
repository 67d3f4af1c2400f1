package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a running QEMU and what watches over it.
type process struct {
	pid     int
	proc    *os.Process
	done    chan struct{} // closed when QEMU has ended and was waited for
	waitErr error         // valid after done
	stderr  *limitedBuffer
	janitor *exec.Cmd

	stdin   *os.File // the guest's serial line
	stdout  *os.File
	monitor net.Conn
}

// monitorFD is the number of the monitor's socket in QEMU: it is the first of
// exec.Cmd.ExtraFiles. The one after it is the janitor's pipe.
const monitorFD = 3

// startProcess starts QEMU so that it ends when this process does (unless
// detached), and so that the paths in garbage are removed when QEMU has ended,
// however either of them ends.
func startProcess(qemu string, args []string, garbage []string, detach bool) (p *process, err error) {
	p = &process{done: make(chan struct{}), stderr: &limitedBuffer{max: 16 << 10}}
	var theirs []*os.File // what QEMU inherits; not needed here once it runs
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			p.closeFiles()
		}
	}()
	inR, inW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	p.stdin, theirs = inW, append(theirs, inR)
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	p.stdout, theirs = outR, append(theirs, outW)
	leashR, leashW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	theirs = append(theirs, leashR, leashW)
	conn, their, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	p.monitor, theirs = conn, append(theirs, their)

	// The janitor reads from a pipe that only QEMU holds open for writing: the
	// read ends when QEMU does. It is in a session of its own so that Ctrl-C
	// does not end it before its work is done.
	sh := append([]string{"-c", `trap "" INT TERM HUP; read -r x; rm -rf -- "$@"`, "janitor"}, garbage...)
	//nolint:noctx // ends with QEMU and must not end before
	p.janitor = exec.Command("/bin/sh", sh...)
	p.janitor.Stdin = leashR
	p.janitor.Dir = "/"
	p.janitor.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.janitor.Start(); err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}

	//nolint:noctx // a guest outlives the context of Boot; Close ends it
	cmd := exec.Command(qemu, args...)
	cmd.Stdin, cmd.Stdout = inR, outW
	cmd.Stderr = p.stderr
	cmd.ExtraFiles = []*os.File{their, leashW}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if detach {
		cmd.SysProcAttr.Setsid = true
		cmd.Stderr = nil // a pipe of ours would be broken when we end
	} else {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the signal when the *thread* that started QEMU ends,
		// so one thread stays with it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		p.pid, p.proc = cmd.Process.Pid, cmd.Process
		started <- nil
		p.waitErr = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		leashW.Close()
		p.janitor.Wait() //nolint:errcheck // it only removes files
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	return p, nil
}

// kill ends QEMU, waits for it and for the janitor. os.Process signals through
// a pidfd, so that a reused PID is safe.
func (p *process) kill() error {
	err := p.proc.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-p.done
	p.janitor.Wait() //nolint:errcheck // it only removes files
	return err
}

// closeFiles closes this side of QEMU's files.
func (p *process) closeFiles() {
	for _, c := range []io.Closer{p.stdin, p.stdout} {
		if f, ok := c.(*os.File); ok && f != nil {
			f.Close()
		}
	}
	if p.monitor != nil {
		p.monitor.Close()
	}
}

// socketPair returns a connected pair of sockets: ours and one to inherit.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor")
	conn, err := net.FileConn(ours) // makes a copy
	ours.Close()
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return conn, theirs, nil
}

// limitedBuffer keeps the first max bytes that are written to it.
type limitedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
	max int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p[:min(len(p), b.max-b.buf.Len())])
	return len(p), nil
}

func (b *limitedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// findQEMU returns the path of qemu-system-x86_64.
func findQEMU() (string, error) {
	p, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return "", &MissingError{What: "qemu-system-x86_64", Package: "qemu-system-x86"}
	}
	return p, nil
}
