package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/jail"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/wire"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/vmm"
)

// process is the machine's process.
type process struct {
	spec   spec
	log    *slog.Logger
	tells  sync.Mutex
	status *os.File
	server *control.Server
	m      *vmm.Machine
}

// Main is the machine's process: it returns its exit status when the machine has
// ended.
func Main() int {
	p := &process{status: os.NewFile(fdStatus, "status")}
	if err := p.run(); err != nil {
		p.tell(status{Failed: err.Error()})
		return 2
	}
	return 0
}

// tell writes a line of status; whoever started the machine may be gone.
func (p *process) tell(s status) {
	b, err := json.Marshal(s)
	if err != nil {
		return
	}
	p.tells.Lock()
	defer p.tells.Unlock()
	_, _ = p.status.Write(append(b, '\n'))
}

// run makes the machine, serves it, and returns when it has ended; an error says
// that it could not be started.
func (p *process) run() (err error) {
	if err := jail.Enter(); err != nil { // in a sandbox it does not return: see there
		return fmt.Errorf("%w: or do without it (--sandbox=off)", err)
	}
	b, err := io.ReadAll(os.NewFile(fdSpec, "spec"))
	if err == nil {
		err = json.Unmarshal(b, &p.spec)
	}
	if err != nil {
		return fmt.Errorf("the machine's process is not told what to run: %w", err)
	}
	for fd := fdStatus; fd < fdFirst+p.spec.Files+3*len(p.spec.Saved); fd++ {
		unix.CloseOnExec(fd)
	}
	level := slog.LevelWarn
	if p.spec.LogLevel != "" {
		if err := level.UnmarshalText([]byte(p.spec.LogLevel)); err != nil {
			return err
		}
	}
	p.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	fds := make([]uintptr, p.spec.Files)
	for i := range fds {
		fds[i] = uintptr(fdFirst + i)
	}
	res, err := vmm.ResourcesFrom(p.spec.Handover, fds)
	if err != nil {
		return err
	}
	p.m, err = vmm.New(p.spec.Config, res, vmm.Options{
		Logger: p.log, Console: os.NewFile(fdConsole, "console"), Events: p.event, NoReboot: p.spec.NoReboot,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.m.Close()) }()
	memory := os.NewFile(fdMemory, "guest memory, to read")
	if p.server, err = control.New(p.m, control.Options{Logger: p.log, Memory: memory}); err != nil {
		return err
	}
	defer p.server.Close(hypervisor.ErrGone)
	ln, err := control.Listen(os.NewFile(fdSocket, p.spec.Config.Name))
	if err != nil {
		return err
	}
	if jail.Inside() {
		err = jail.Seal()
	}
	if err == nil {
		err = p.start()
	}
	if err != nil {
		ln.Close()
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.server.Serve(ln); err != nil {
			p.log.Error("the control socket is lost: the machine runs on", "error", err)
		}
	})
	defer wg.Wait()
	defer p.server.Close(hypervisor.ErrGone)
	go p.input() // ends with its file or this process
	p.tell(status{Ready: true})
	p.supervise()
	out := p.m.Wait()
	s := status{Outcome: string(out.Kind)}
	if out.Err != nil {
		s.Error = out.Err.Error()
	}
	p.tell(s)
	if p.spec.Socket != "" && !jail.Inside() {
		_ = os.Remove(p.spec.Socket) // from a sandbox the next one that looks there does
	}
	return nil
}

// start boots the machine, or puts it where it was saved.
func (p *process) start() error {
	if len(p.spec.Saved) == 0 {
		return p.m.Start()
	}
	fd := uintptr(fdFirst + p.spec.Files)
	var folders []control.Folder
	for _, names := range p.spec.Saved {
		h := handed{}
		for _, n := range names {
			h[n] = os.NewFile(fd, n)
			fd++
		}
		folders = append(folders, h)
	}
	if err := p.m.Restore(context.Background(), folders, nil); err != nil {
		return err
	}
	return p.m.Resume(context.Background())
}

// event tells clients and whoever started the machine.
func (p *process) event(e vmm.Event) {
	p.tell(status{Event: &e})
	if p.server != nil {
		p.server.Tell(wire.Event{Kind: string(e.Kind), Time: e.Time, Detail: e.Detail})
	}
}

// input types what comes on the input.
func (p *process) input() {
	var b [256]byte
	for {
		n, err := os.Stdin.Read(b[:])
		p.m.Type(b[:n])
		if err != nil {
			return
		}
	}
}

// supervise lets the guest power off when it is asked to by a signal, or when
// whoever holds the machine has ended; it returns when the machine has.
func (p *process) supervise() {
	asked := make(chan os.Signal, 4)
	signal.Notify(asked, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(asked)
	if !p.spec.Detached {
		leash := os.NewFile(fdLeash, "leash")
		go func() {
			_, _ = leash.Read(make([]byte, 1)) // no one writes
			select {
			case asked <- syscall.SIGTERM:
			default:
			}
		}()
	}
	var late <-chan time.Time
	for {
		select {
		case <-p.m.Done():
			return
		case <-asked:
			if late != nil { // asked again
				p.m.Stop()
				continue
			}
			late = time.After(p.spec.Grace)
			// A guest that is paused could not listen.
			if err := p.m.Resume(context.Background()); err != nil && !errors.Is(err, hypervisor.ErrGone) {
				p.log.Warn("a paused guest cannot be asked to power off", "error", err)
			}
			if err := p.m.PowerButton(); err != nil {
				p.log.Warn("the guest cannot be asked to power off", "error", err)
			}
		case <-late:
			p.m.Stop()
		}
	}
}

// dup returns another descriptor of a file, which reads from its beginning on.
func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	_, err = unix.Seek(fd, 0, io.SeekStart)
	return os.NewFile(uintptr(fd), f.Name()), err
}
