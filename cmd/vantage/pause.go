package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
)

// resumeWithin is how long letting a VM run again may take.
const resumeWithin = 30 * time.Second

// pauseHelp is the part of a looking command's help that --pause stands for.
const pauseHelp = `
With --pause the guest stands still while it is looked at, so that the answer is
of one moment; how long it did is said on stderr (JSON: vm paused_seconds). It
runs again afterwards, also after an error or Ctrl-C, and a second process sees
to it when this one is killed (kill -9): only when both are killed it stays
paused, until 'cont' is sent to its monitor. A machine of our own core is held, and
let go whatever ends us. A guest that was paused already stays so. A memory file
stands still anyway. QEMU's guests need a free QMP socket.`

// looking adds to commands that look into one guest what they have in common.
func (a *app) looking(cmds ...*cobra.Command) []*cobra.Command {
	for _, c := range cmds {
		c.Flags().BoolVar(&a.pause, "pause", false, "let the guest stand still while it is looked at")
		c.Long += "\n" + pauseHelp
	}
	return cmds
}

// still does do, under --pause while the VM stands still.
//
// What do prints is kept until the VM runs again: a guest must not wait for
// whoever reads our output.
func (a *app) still(ctx context.Context, name string, vm hypervisor.VM, do func() error) (err error) {
	if !a.pause {
		return do()
	}
	if !hypervisor.IsLive(vm) {
		if err := do(); err != nil {
			return err
		}
		return a.printStill(name, 0, "it is a memory file and never moves")
	}
	p, err := hypervisor.As[hypervisor.Pauser](vm)
	if err != nil {
		return fmt.Errorf("pause %s: %w", name, err)
	}
	state, err := p.State(ctx)
	if err != nil {
		return fmt.Errorf("pause %s: %w", name, err)
	}
	if state == hypervisor.StatePaused {
		if err := do(); err != nil {
			return err
		}
		return a.printStill(name, 0, "it was paused before, and stays so")
	}
	halt, goOn, err := standstill(ctx, name, vm, p)
	if err != nil {
		return fmt.Errorf("pause %s: %w", name, err)
	}
	out, errs := a.stdout, a.stderr
	var kept, keptErrs bytes.Buffer
	a.stdout, a.stderr = &kept, &keptErrs
	var start, end time.Time
	resume := func() error {
		a.stdout, a.stderr = out, errs
		err := goOn()
		end = time.Now()
		return err
	}
	done := false
	defer func() {
		if !done { // a panic
			_ = resume()
		}
	}()
	start = time.Now()
	if err = halt(ctx); err == nil {
		err = do()
	} else {
		err = fmt.Errorf("pause %s: %w", name, err)
	}
	rerr := resume()
	done = true
	_, werr := out.Write(kept.Bytes())
	_, serr := errs.Write(keptErrs.Bytes())
	rerr = errors.Join(rerr, werr, serr, a.printStill(name, end.Sub(start), ""))
	if rerr == nil {
		return err // of its own kind: it has the exit status
	}
	return errors.Join(err, rerr)
}

// standstill returns what pauses a VM and what lets it run on, which is called in
// any case. Where the driver cannot hold a VM for as long as we live, a guard
// watches over us.
func standstill(ctx context.Context, name string, vm hypervisor.VM, p hypervisor.Pauser) (halt func(context.Context) error, goOn func() error, err error) {
	if h, err := hypervisor.As[hypervisor.Holder](vm); err == nil {
		release := func() error { return nil }
		return func(ctx context.Context) error {
				r, err := h.Hold(ctx)
				if err == nil {
					release = r
				}
				return err
			}, func() error {
				if err := release(); err != nil {
					return fmt.Errorf("let %s run on: %w", name, err)
				}
				return nil
			}, nil
	}
	guard, err := startGuard(ctx, vm.Info().URI)
	if err != nil {
		return nil, nil, err
	}
	return p.Pause, func() error {
		// Not under ctx: Ctrl-C must not keep the guest from running on.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), resumeWithin)
		defer cancel()
		err := p.Resume(ctx)
		if errors.Is(err, hypervisor.ErrGone) {
			err = nil // the look itself has said so
		}
		if err != nil {
			guard.abandon() // it goes on trying
			return fmt.Errorf("%s may still be paused, send 'cont' to its monitor: %w", name, err)
		}
		return guard.dismiss()
	}, nil
}

// printStill tells how long a guest stood still for us, at most.
func (a *app) printStill(name string, d time.Duration, why string) error {
	if a.json {
		return a.printJSONErr(struct {
			VM      string  `json:"vm"`
			Seconds float64 `json:"paused_seconds"`
			Why     string  `json:"why,omitempty"`
		}{name, d.Seconds(), why})
	}
	text := fmt.Sprintf("%s stood still for %s", name, d.Round(10*time.Microsecond))
	if why != "" {
		text = fmt.Sprintf("%s was not paused: %s", name, why)
	}
	_, err := fmt.Fprintf(a.stderr, "vantage: %s\n", term.Escape(text))
	return err
}
