package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/node"
)

// Words between a process that pauses a VM and its guard.
const (
	guardReady = "ready\n"
	guardDone  = "done\n"
)

// Bounds of the guard: how long it may take to start, and how often and how far
// apart it tries to let the VM run.
const (
	guardStart = 20 * time.Second
	guardTries = 60
	guardPause = time.Second
)

// guard is a process of our own program that outlives us. It lets a VM run when
// we end without having said that we did so ourselves.
type guard struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// startGuard starts the guard of the VM that uri names, and returns when it is
// ready. The VM must not be paused before.
func startGuard(ctx context.Context, uri string) (*guard, error) {
	// Not of ctx: it has to outlive what ends us. /proc/self/exe is this very
	// program, even when its file was replaced.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/proc/self/exe")
	cmd.Args = []string{"vantage", "pause-guard", "--", uri}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of reach of the terminal's signals
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("guard of the pause: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("guard of the pause: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("guard of the pause: %w", err)
	}
	g := &guard{cmd: cmd, in: in}
	said := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n') // no line is no word
		said <- line
	}()
	late := time.NewTimer(guardStart)
	defer late.Stop()
	word := ""
	select {
	case word = <-said:
	case <-late.C:
	case <-ctx.Done():
	}
	if word == guardReady {
		return g, nil
	}
	_ = g.cmd.Process.Kill()
	err = errors.Join(g.dismiss(), ctx.Err())
	if word == "" {
		<-said
	}
	return nil, fmt.Errorf("guard of the pause is not ready: %w", err)
}

// dismiss ends the guard: the VM runs.
func (g *guard) dismiss() error {
	_, _ = io.WriteString(g.in, guardDone) // one that has ended needs no word
	_ = g.in.Close()
	if err := g.cmd.Wait(); err != nil {
		return fmt.Errorf("guard of the pause: %w", err)
	}
	return nil
}

// abandon leaves it to the guard to let the VM run.
func (g *guard) abandon() {
	_ = g.in.Close()
	_ = g.cmd.Process.Release()
}

func (a *app) pauseGuardCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "pause-guard VM",
		Hidden: true,
		Short:  "Let a VM run when the process that paused it has ended",
		Long: `Let a VM run when the process that paused it has ended.

Commands with --pause start it by themselves. It opens the VM, prints "ready" and
waits for the end of its input. When the last line was not "done" it lets the VM
run, as often as it takes (for a minute).`,
		Example: `  vantage pause-guard qemu:4242 </dev/null`,
		Args:    oneVM,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), args[0], func(_ *node.Node, vm hypervisor.VM) error {
				p, err := hypervisor.As[hypervisor.Pauser](vm)
				if err != nil {
					return fmt.Errorf("guard %s: %w", args[0], err)
				}
				if _, err := io.WriteString(a.stdout, guardReady); err != nil {
					return err
				}
				line, _ := bufio.NewReader(a.stdin).ReadString('\n') // an error is an end too
				if line == guardDone {
					return nil
				}
				return letRun(cmd.Context(), args[0], p)
			})
		},
	}
}

// letRun resumes p until it worked: the monitor may still be held by the
// process that has just ended. No signal that asks us to end keeps it from that.
func letRun(ctx context.Context, name string, p hypervisor.Pauser) error {
	ctx = context.WithoutCancel(ctx)
	again := time.NewTicker(guardPause)
	defer again.Stop()
	var err error
	for range guardTries {
		if err = p.Resume(ctx); err == nil || errors.Is(err, hypervisor.ErrGone) {
			return nil
		}
		<-again.C
	}
	return fmt.Errorf("let %s run: %w", name, err)
}
