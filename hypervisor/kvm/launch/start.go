package launch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/jail"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/socketdir"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/vmm"
)

// Options say what Start starts.
type Options struct {
	Config vmm.Config
	// Restore is the folder of a saved machine to go on from; its parents are
	// sought beside it. Config is then what SavedConfig gave, changed at most in
	// its name and paths.
	Restore string
	// Command is the program and arguments that call Main: the program itself and
	// a command of its own.
	Command []string
	// Input is what is typed on the guest's console, Console where it prints, and
	// Log where the process logs; nil: nothing, nowhere.
	Input, Console, Log *os.File
	// Detach lets the machine run on when the caller ends. Else it is then asked
	// to power off, as by Stop.
	Detach bool
	// NoSandbox leaves the machine's process all rights of its caller.
	NoSandbox bool
	NoReboot  bool // end the machine where the guest would reset it
	// Grace is how long a guest that is asked to power off may take. 0: DefaultGrace.
	Grace    time.Duration
	LogLevel string // of package slog; empty: warn
	// Events is told what happens to the machine, by a goroutine; nil: no one.
	Events func(vmm.Event)
}

// DefaultGrace is how long a guest may take to power off before it is stopped.
const DefaultGrace = 30 * time.Second

// Process is a machine that runs in a process of its own.
type Process struct {
	cmd    *exec.Cmd
	leash  *os.File
	events func(vmm.Event)
	lines  *bufio.Scanner
	status *os.File
	claim  *socketdir.Claim // nil: the process's

	reader  sync.WaitGroup
	outcome vmm.Outcome
}

// SavedConfig returns what the machine that is saved in a folder is made of.
func SavedConfig(dir string) (*vmm.Config, error) {
	return vmm.SavedConfig(savedFolder(dir))
}

// Start starts a machine and returns when its guest runs. After an error nothing
// is left of it.
func Start(ctx context.Context, o Options) (_ *Process, err error) {
	if err := o.Config.Check(); err != nil {
		return nil, err
	}
	dir, err := socketdir.Default()
	if err != nil {
		return nil, err
	}
	claim, err := dir.Claim(o.Config.Name)
	if err != nil {
		return nil, err
	}
	defer func() {
		switch {
		case err != nil:
			claim.Release()
		case o.Detach: // the process has them, and removes the files
			claim.Lock().Close()
			claim.Socket().Close()
		}
	}()
	res, err := vmm.Open(&o.Config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, res.Close()) }()
	p, err := o.spawn(res, claim)
	if err != nil {
		return nil, err
	}
	if err := p.await(ctx); err != nil {
		p.leash.Close()
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		p.status.Close()
		return nil, err
	}
	if !o.Detach {
		p.claim = claim
	}
	p.reader.Go(p.read)
	return p, nil
}

// spawn starts the process and gives it its spec and files.
func (o *Options) spawn(res *vmm.Resources, claim *socketdir.Claim) (*Process, error) {
	files, text, err := res.Files()
	if err != nil {
		return nil, err
	}
	s := spec{Config: o.Config, Handover: text, Files: len(files), NoReboot: o.NoReboot, Detached: o.Detach, Grace: o.Grace, LogLevel: o.LogLevel}
	if s.Grace == 0 {
		s.Grace = DefaultGrace
	}
	if o.Detach {
		s.Socket = claim.Path()
	}
	saved, err := o.savedFiles(&s)
	defer closeAll(saved)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	// Three pipes: the process's ends are closed here once it has them.
	var ours, theirs [3]*os.File
	for i, write := range []bool{true, false, true} {
		r, w, err := os.Pipe()
		if err != nil {
			closeAll(append(ours[:], theirs[:]...))
			return nil, fmt.Errorf("start the machine's process: %w", err)
		}
		if write {
			ours[i], theirs[i] = w, r
		} else {
			ours[i], theirs[i] = r, w
		}
	}
	defer closeAll(theirs[:])
	cmd := exec.Command(o.Command[0], o.Command[1:]...) //nolint:noctx // it outlives the context of Start; the leash ends it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Input, o.Console, o.Log
	if o.Input == nil {
		cmd.Stdin = nil // a nil *os.File is no nil io.Reader
	}
	if o.Console == nil {
		cmd.Stdout = nil
	}
	if o.Log == nil {
		cmd.Stderr = nil
	}
	memory, err := control.Readable(res.Memory, nil)
	if err != nil {
		closeAll(ours[:])
		return nil, fmt.Errorf("start the machine's process: %w", err)
	}
	defer memory.Close()
	cmd.ExtraFiles = append([]*os.File{theirs[0], theirs[1], theirs[2], claim.Lock(), claim.Socket(), memory}, append(files, saved...)...)
	// Of a session of its own: Ctrl-C is for who started it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if !o.NoSandbox {
		if err := jail.Prepare(cmd, o.Config.Name); err != nil {
			closeAll(ours[:])
			return nil, fmt.Errorf("start the machine's process: %w", err)
		}
	}
	if err := cmd.Start(); err != nil {
		closeAll(ours[:])
		return nil, fmt.Errorf("start the machine's process: %w", jail.Explain(err))
	}
	p := &Process{cmd: cmd, leash: ours[2], status: ours[1], lines: bufio.NewScanner(ours[1]), events: o.Events}
	_, err = ours[0].Write(b)
	if err = errors.Join(err, ours[0].Close()); err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		closeAll(ours[1:])
		return nil, fmt.Errorf("start the machine's process: %w", err)
	}
	return p, nil
}

// await returns when the guest runs.
func (p *Process) await(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	defer stop()
	for p.lines.Scan() {
		var s status
		if err := json.Unmarshal(p.lines.Bytes(), &s); err != nil {
			return fmt.Errorf("the machine's process speaks another language: %w", err)
		}
		switch {
		case s.Ready:
			return nil
		case s.Failed != "":
			return errors.New(s.Failed)
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return errors.New("the machine's process has died at its start: its log says more")
}

// read follows the process to its end.
func (p *Process) read() {
	p.outcome = vmm.Outcome{Kind: vmm.EventFailed, Err: errors.New("the machine's process has died")}
	for p.lines.Scan() {
		var s status
		if json.Unmarshal(p.lines.Bytes(), &s) != nil {
			continue
		}
		if s.Event != nil && p.events != nil {
			p.events(*s.Event)
		}
		if s.Outcome != "" {
			p.outcome = vmm.Outcome{Kind: vmm.EventKind(s.Outcome)}
			if s.Error != "" {
				p.outcome.Err = errors.New(s.Error)
			}
		}
	}
	p.status.Close()
}

// PID returns the process's ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Wait returns how the machine ended, when it has.
func (p *Process) Wait() vmm.Outcome {
	p.reader.Wait()
	_ = p.cmd.Wait()
	p.leash.Close()
	if p.claim != nil {
		p.claim.Release()
		p.claim = nil
	}
	return p.outcome
}

// Release lets go of a detached machine, which runs on.
func (p *Process) Release() {
	p.leash.Close()
	p.status.Close()
	p.reader.Wait()
	_ = p.cmd.Process.Release()
}

// PowerOff asks the guest to power off, and stops it when it has not after its
// grace. A second call stops it at once.
func (p *Process) PowerOff() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
