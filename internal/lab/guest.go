package lab

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Guest is a running guest. Its methods are safe for concurrent use.
type Guest struct {
	cfg     Config
	proc    *process
	dir     string // the guest's runtime files; the janitor removes it
	console *console
	monitor *monitor
	reader  sync.WaitGroup

	runMu sync.Mutex // one command at a time
	runID int

	truthOnce sync.Once
	truth     *Truth
	truthErr  error

	closeOnce sync.Once
	closeErr  error
}

// Boot starts a guest and returns when it has printed its marker. ctx bounds
// the boot only. When the guest does not come up the error is a *GuestError
// with the console's tail, and nothing is left running; when this machine lacks
// something it wraps ErrMissing.
func Boot(ctx context.Context, cfg Config) (*Guest, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	qemu, err := findQEMU()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(cfg.Kernel.Image); err != nil {
		return nil, fmt.Errorf("kernel: %w", err)
	}
	dir, err := os.MkdirTemp("", "vantage-lab-")
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", cfg.Name, err)
	}
	g := &Guest{cfg: cfg, dir: dir, console: newConsole()}
	if err := g.start(ctx, qemu); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	if err := g.waitUp(ctx); err != nil {
		err = g.failure(err)
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

func (g *Guest) start(ctx context.Context, qemu string) error {
	initrd := g.cfg.Initrd
	if initrd == "" {
		fs, err := buildInitramfs(ctx, g.cfg)
		if err != nil {
			return err
		}
		initrd = filepath.Join(g.dir, "initramfs")
		f, err := os.Create(initrd)
		if err != nil {
			return fmt.Errorf("guest %s: %w", g.cfg.Name, err)
		}
		_, err = fs.WriteTo(f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("guest %s: %w", g.cfg.Name, err)
		}
	}
	garbage := []string{g.dir}
	if g.cfg.RAMPath != "" {
		garbage = append(garbage, g.cfg.RAMPath)
	}
	p, err := startProcess(qemu, g.cfg.qemuArgs(monitorFD, initrd, g.QMPSocket()), garbage, g.cfg.Detach)
	if err != nil {
		return err
	}
	g.proc = p
	g.monitor = newMonitor(p.monitor)
	g.reader.Go(func() { g.console.readFrom(p.stdout) })
	return nil
}

// waitUp waits for the guest's marker.
func (g *Guest) waitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, g.cfg.Timeout,
		fmt.Errorf("not up after %v", g.cfg.Timeout))
	defer cancel()
	if g.cfg.RAMPath != "" && !g.cfg.KeepRAMPath {
		// QEMU answers its monitor after it has opened and mapped its memory.
		if _, err := g.Monitor(ctx, "query-status", nil); err != nil {
			return err
		}
		if err := os.Remove(g.cfg.RAMPath); err != nil {
			return err
		}
	}
	if g.cfg.Ready == "-" {
		_, err := g.Monitor(ctx, "query-status", nil)
		return err
	}
	return g.console.wait(ctx, 0, func(text string) bool { return hasLine(text, g.cfg.Ready) })
}

// failure makes err a *GuestError.
func (g *Guest) failure(err error) error {
	if errors.Is(err, errConsoleEnd) {
		<-g.proc.done // the console ends because QEMU does
		if g.proc.waitErr != nil {
			err = fmt.Errorf("%w: %w", err, g.proc.waitErr)
		}
	}
	// A kernel panic alone is some 50 lines.
	return &GuestError{Name: g.cfg.Name, Err: err,
		Console: tail(g.Console(), 100), Stderr: tail(g.proc.stderr.String(), 10)}
}

// Name returns the guest's name.
func (g *Guest) Name() string { return g.cfg.Name }

// Config returns what the guest was booted with, defaults filled in.
func (g *Guest) Config() Config { return g.cfg }

// PID returns QEMU's process ID.
func (g *Guest) PID() int { return g.proc.pid }

// Done is closed when QEMU has ended.
func (g *Guest) Done() <-chan struct{} { return g.proc.done }

// Console returns what the guest has printed so far, without carriage returns,
// as the guest printed it: it may hold terminal control bytes.
func (g *Guest) Console() string { return g.console.String() }

// ConsoleTail returns the last n lines of the console, control bytes escaped.
func (g *Guest) ConsoleTail(n int) string { return tail(g.Console(), n) }

// QMPSocket returns the path of the guest's QMP socket, "" without Config.QMP.
// The lab itself never connects to it.
func (g *Guest) QMPSocket() string {
	if !g.cfg.QMP {
		return ""
	}
	return filepath.Join(g.dir, "qmp.sock")
}

// RAMFile returns a path at which the guest's memory can be opened while QEMU
// runs: one of QEMU's own file descriptors in /proc. The error wraps
// os.ErrNotExist when the memory is private.
func (g *Guest) RAMFile() (string, error) {
	fds := fmt.Sprintf("/proc/%d/fd", g.PID())
	entries, err := os.ReadDir(fds)
	if err != nil {
		return "", fmt.Errorf("guest %s: memory: %w", g.cfg.Name, err)
	}
	for _, e := range entries {
		path := filepath.Join(fds, e.Name())
		st, err := os.Stat(path)
		if err == nil && st.Mode().IsRegular() && uint64(st.Size()) == g.cfg.Memory {
			return path, nil
		}
	}
	return "", fmt.Errorf("guest %s: memory is no file: %w", g.cfg.Name, os.ErrNotExist)
}

// WaitLine waits until the guest has printed line (a complete line), now or at
// any time before.
func (g *Guest) WaitLine(ctx context.Context, line string) error {
	err := g.console.wait(ctx, 0, func(text string) bool { return hasLine(text, line) })
	if err != nil {
		return g.failure(fmt.Errorf("wait for line %q: %w", line, err))
	}
	return nil
}

// Send writes one line to the guest's serial line.
func (g *Guest) Send(line string) error {
	if _, err := g.proc.stdin.WriteString(line + "\n"); err != nil {
		return fmt.Errorf("guest %s: send: %w", g.cfg.Name, err)
	}
	return nil
}

// maxScript is how long a script for Run may be, in bytes: in base64 it must
// fit a line of the guest's terminal (N_TTY_BUF_SIZE, 4096 bytes).
const maxScript = 3000

// Run runs a script in the guest's shell and returns what it printed. It needs
// a guest without Config.Program and Config.RawInit. A status other than 0 is
// an error; what was printed is returned with it.
func (g *Guest) Run(ctx context.Context, script string) (string, error) {
	if len(script) > maxScript {
		return "", fmt.Errorf("guest %s: script of %d bytes is longer than %d", g.cfg.Name, len(script), maxScript)
	}
	out, status, err := g.exchange(ctx, encodeScript(script))
	if err == nil && status != "0" {
		err = fmt.Errorf("guest %s: script ended with status %s: %s", g.cfg.Name, status, tail(out, 5))
	}
	return out, err
}

// encodeScript makes a script one word of a line: see guest/init.sh.
func encodeScript(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// Command gives the truth program a command ("fork 50", "exit PID"; see
// guest/command.c) and returns what it printed. It needs a guest with
// Config.Program. A status other than 0 is an error.
func (g *Guest) Command(ctx context.Context, command string) (string, error) {
	out, status, err := g.exchange(ctx, command)
	if err == nil && status != "0" {
		err = fmt.Errorf("guest %s: command %q ended with status %s: %s", g.cfg.Name, command, status, tail(out, 5))
	}
	return out, err
}

// exchange sends a line to what reads the guest's serial line and returns what
// it answered.
func (g *Guest) exchange(ctx context.Context, line string) (out, status string, err error) {
	g.runMu.Lock()
	defer g.runMu.Unlock()
	g.runID++
	id := strconv.Itoa(g.runID)
	from := g.console.size()
	if err := g.Send(id + " " + line); err != nil {
		return "", "", err
	}
	err = g.console.wait(ctx, from, func(text string) bool {
		var ok bool
		out, status, ok = answerIn(text, id)
		return ok
	})
	if err != nil {
		return "", "", g.failure(fmt.Errorf("await the guest's answer: %w", err))
	}
	return out, status, nil
}

// answerIn finds what was printed between the markers of command id.
func answerIn(text, id string) (out, status string, ok bool) {
	_, rest, ok := strings.Cut(text, "VANTAGE-LAB-BEGIN "+id+"\n")
	if !ok {
		return "", "", false
	}
	out, rest, ok = strings.Cut(rest, "\nVANTAGE-LAB-END "+id+" ")
	if !ok {
		return "", "", false
	}
	status, _, ok = strings.Cut(rest, "\n")
	return out, status, ok
}

// Monitor runs a QMP command over the lab's own monitor, which works with and
// without Config.QMP.
func (g *Guest) Monitor(ctx context.Context, command string, args any) (json.RawMessage, error) {
	r, err := g.monitor.do(ctx, command, args)
	if err != nil {
		return nil, fmt.Errorf("guest %s: %w", g.cfg.Name, err)
	}
	return r, nil
}

// HMP runs a command of QEMU's human monitor ("info registers -a", "info mtree
// -f") and returns its text.
func (g *Guest) HMP(ctx context.Context, command string) (string, error) {
	r, err := g.Monitor(ctx, "human-monitor-command", map[string]any{"command-line": command})
	if err != nil {
		return "", err
	}
	var s string
	if err := json.Unmarshal(r, &s); err != nil {
		return "", fmt.Errorf("guest %s: %s: %w", g.cfg.Name, command, err)
	}
	return s, nil
}

// Pause stops the guest's vCPUs.
func (g *Guest) Pause(ctx context.Context) error {
	_, err := g.Monitor(ctx, "stop", nil)
	return err
}

// Resume lets the guest's vCPUs run.
func (g *Guest) Resume(ctx context.Context) error {
	_, err := g.Monitor(ctx, "cont", nil)
	return err
}

// Status returns what QEMU says that the guest does: "running", "paused", …
func (g *Guest) Status(ctx context.Context) (string, error) {
	r, err := g.Monitor(ctx, "query-status", nil)
	if err != nil {
		return "", err
	}
	var s struct{ Status string }
	if err := json.Unmarshal(r, &s); err != nil {
		return "", fmt.Errorf("guest %s: query-status: %w", g.cfg.Name, err)
	}
	return s.Status, nil
}

// Close ends the guest and removes all its files. It returns when QEMU is gone.
// More than one call is no error.
func (g *Guest) Close() error {
	g.closeOnce.Do(func() {
		g.closeErr = g.proc.kill()
		// QEMU held the other end of the pipe, so the reader has come to its end.
		g.reader.Wait()
		g.proc.closeFiles()
		if err := os.RemoveAll(g.dir); err != nil && g.closeErr == nil {
			g.closeErr = err
		}
		if g.cfg.RAMPath != "" {
			os.Remove(g.cfg.RAMPath)
		}
	})
	return g.closeErr
}

// Wait waits until QEMU has ended by itself.
func (g *Guest) Wait(ctx context.Context) error {
	select {
	case <-g.Done():
		return nil
	case <-ctx.Done():
		return g.failure(fmt.Errorf("wait for end: %w", context.Cause(ctx)))
	}
}
