package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/node"
)

// switching is a command that does something to one VM and prints what it did.
func (a *app) switching(cmd *cobra.Command, do func(context.Context, hypervisor.VM) (string, error)) *cobra.Command {
	cmd.Args = oneVM
	cmd.ValidArgsFunction = a.completeVMs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.withVM(cmd.Context(), args[0], func(_ *node.Node, vm hypervisor.VM) error {
			done, err := do(cmd.Context(), vm)
			if err != nil {
				return fmt.Errorf("%s %s: %w", cmd.Name(), args[0], err)
			}
			if a.json {
				return a.printJSON(struct {
					VM     string `json:"vm"`
					Action string `json:"action"`
					Result string `json:"result"`
				}{vm.Info().URI, cmd.Name(), done})
			}
			fmt.Fprintf(a.stdout, "%s: %s\n", escapeLines(vm.Info().Name), done)
			return nil
		})
	}
	return cmd
}

func (a *app) stopCommand() *cobra.Command {
	var force bool
	var grace time.Duration
	cmd := a.switching(&cobra.Command{
		Use:   "stop VM",
		Short: "Power a virtual machine off",
		Long: `Ask the guest to power off, by its power button, and return when it has. A guest
that does not listen, or has not powered off after --grace, is an error; with
--force it is stopped where it stands, as by pulling the plug.`,
		Example: `  vantage stop web
  vantage stop web --force`,
	}, func(ctx context.Context, vm hypervisor.VM) (string, error) {
		s, err := hypervisor.As[hypervisor.Switch](vm)
		if err != nil {
			return "", err
		}
		if force {
			return "stopped", s.Stop(ctx)
		}
		n, err := hypervisor.As[hypervisor.Notifier](vm)
		if err != nil {
			return "", err
		}
		ctx, cancel := context.WithTimeoutCause(ctx, grace, fmt.Errorf("the guest has not powered off after %v: stop it with --force", grace))
		defer cancel()
		// The guest may be quick: events are awaited before the button is pressed.
		ended := make(chan error, 1)
		go func() { ended <- n.Events(ctx, func(hypervisor.MachineEvent) {}) }()
		if err := s.PowerButton(ctx); err != nil && !errors.Is(err, hypervisor.ErrGone) {
			cancel()
			if eerr := <-ended; !errors.Is(eerr, context.Canceled) {
				err = errors.Join(err, eerr)
			}
			return "", err
		}
		if err := <-ended; !errors.Is(err, hypervisor.ErrGone) {
			return "", err
		}
		// It has ended by itself: this waits for its process.
		return "powered off", s.Stop(ctx)
	})
	cmd.Flags().BoolVar(&force, "force", false, "do not ask the guest")
	cmd.Flags().DurationVar(&grace, "grace", time.Minute, "how long the guest may take")
	return cmd
}

func (a *app) resetCommand() *cobra.Command {
	return a.switching(&cobra.Command{
		Use:   "reset VM",
		Short: "Reset a virtual machine",
		Long: `Reset the machine as its reset button does: the guest is not asked, and its kernel
boots anew.`,
		Example: `  vantage reset web`,
	}, func(ctx context.Context, vm hypervisor.VM) (string, error) {
		s, err := hypervisor.As[hypervisor.Switch](vm)
		if err != nil {
			return "", err
		}
		return "reset", s.Reset(ctx)
	})
}

func (a *app) pauseCommand() *cobra.Command {
	return a.switching(&cobra.Command{
		Use:   "pause VM",
		Short: "Pause a virtual machine",
		Long: `Stop the VM's vCPUs. It stays paused when this command has ended: 'vantage resume'
lets it go on.`,
		Example: `  vantage pause web`,
	}, func(ctx context.Context, vm hypervisor.VM) (string, error) {
		p, err := hypervisor.As[hypervisor.Pauser](vm)
		if err != nil {
			return "", err
		}
		return "paused", p.Pause(ctx)
	})
}

func (a *app) resumeCommand() *cobra.Command {
	return a.switching(&cobra.Command{
		Use:     "resume VM",
		Short:   "Let a paused virtual machine go on",
		Long:    `Let the VM's vCPUs run. It is no error when they do already.`,
		Example: `  vantage resume web`,
	}, func(ctx context.Context, vm hypervisor.VM) (string, error) {
		p, err := hypervisor.As[hypervisor.Pauser](vm)
		if err != nil {
			return "", err
		}
		return "running", p.Resume(ctx)
	})
}

// bytesBar is a progress bar of bytes, where someone watches; nil else.
func (a *app) bytesBar(what string) func(done, total uint64) {
	if a.quiet || term.Width(a.stderr) == 0 {
		return nil
	}
	bar := progressbar.NewOptions64(-1,
		progressbar.OptionSetWriter(a.stderr),
		progressbar.OptionSetDescription(what),
		progressbar.OptionShowBytes(true),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
	return func(done, total uint64) {
		bar.ChangeMax64(int64(max(done, total)))
		_ = bar.Set64(int64(done)) // a bar that cannot be drawn is no error
	}
}

func (a *app) saveCommand() *cobra.Command {
	var parent string
	var dir string
	cmd := a.switching(&cobra.Command{
		Use:   "save VM",
		Short: "Save a virtual machine's whole state",
		Long: `Save memory, processors and devices of a machine of our own core into a new folder,
from which 'vantage run --restore' goes on, in the same machine's place or as a
clone. The machine stands still while it is saved, and runs on afterwards. Disks
are not part of it: copy them while the machine is paused.

With --parent, the folder of the last state that was saved of this machine, only
what has changed since is saved. Both folders are needed to restore it, and must
lie beside each other.`,
		Example: `  vantage save web --to /var/lib/vantage/web-clean
  vantage save web --to /var/lib/vantage/web-1 --parent /var/lib/vantage/web-clean`,
	}, func(ctx context.Context, vm hypervisor.VM) (string, error) {
		if dir == "" {
			return "", errors.New("no folder named: want --to FOLDER")
		}
		s, err := hypervisor.As[hypervisor.Saver](vm)
		if err != nil {
			return "", err
		}
		return "saved in " + dir, s.Save(ctx, dir, parent, a.bytesBar("save"))
	})
	cmd.Flags().StringVar(&dir, "to", "", "the folder to make")
	cmd.Flags().StringVar(&parent, "parent", "", "the folder of the state that this one stands on")
	_ = cmd.MarkFlagDirname("to")
	_ = cmd.MarkFlagDirname("parent")
	return cmd
}
