package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/node"
)

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info VM",
		Short: "Tell what a VM is and what runs in it",
		Long: `Tell what a VM is (driver, state, memory) and what runs in it: kernel version,
boot time, command line, where KASLR put the kernel. Of a guest that is not
understood the first part is told, and the status is 2.`,
		Example: `  vantage info web-1
  vantage info web-1.lime --json`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), args[0], func(n *node.Node, vm hypervisor.VM) error {
				out := vmInfo{VM: vm.Info(), Ranges: vm.Ranges()}
				out.StateUnknown = whyUnknown(cmd.Context(), vm, out.VM.State)
				g, lookErr := n.Linux(cmd.Context(), vm)
				if lookErr != nil {
					if err := a.printInfo(out); err != nil {
						return err
					}
					return fmt.Errorf("look into %s: %w", args[0], lookErr)
				}
				return a.still(cmd.Context(), args[0], vm, func() error {
					g.Flush() // what was translated before the pause
					info, err := g.Info(cmd.Context())
					if err != nil {
						return fmt.Errorf("read facts of %s: %w", args[0], err)
					}
					out.Guest = &info
					if err := a.printInfo(out); err != nil {
						return err
					}
					return a.incomplete(info.Coverage)
				})
			})
		},
	}
}

// vmInfo is what `vantage info` prints.
type vmInfo struct {
	VM hypervisor.Info `json:"vm"`
	// StateUnknown says why the state is not known: a monitor that another
	// client holds, or none.
	StateUnknown string             `json:"state_unknown,omitempty"`
	Ranges       []hypervisor.Range `json:"memory_ranges"`
	Guest        *linux.Info        `json:"guest,omitempty"`
}

// whyUnknown asks a VM whose state is not known for the reason.
func whyUnknown(ctx context.Context, vm hypervisor.VM, state hypervisor.State) string {
	if state != hypervisor.StateUnknown {
		return ""
	}
	p, err := hypervisor.As[hypervisor.Pauser](vm)
	if err == nil {
		_, err = p.State(ctx)
	}
	if err == nil {
		return "" // it can be asked by now
	}
	return err.Error()
}

func (a *app) printInfo(i vmInfo) error {
	if a.json {
		return a.printJSON(i)
	}
	state := string(i.VM.State)
	if i.StateUnknown != "" {
		state += ": " + i.StateUnknown
	}
	lines := [][2]string{
		{"VM", i.VM.Name + " (" + i.VM.URI + ")"},
		{"State", state},
		{"Memory", bytesText(i.VM.MemoryBytes)},
		{"vCPUs", countText(i.VM.VCPUs)},
		{"Host PID", countText(i.VM.PID)},
	}
	if g := i.Guest; g != nil {
		kaslr := "off"
		if g.KASLROffset != 0 {
			kaslr = fmt.Sprintf("moved by %#x", g.KASLROffset)
		}
		boot := timeText(g.BootTime)
		if !g.BootTime.IsZero() {
			boot += " UTC"
		}
		lines = append(lines, [][2]string{
			{"Kernel", g.OS + " " + g.Release + " " + g.Arch},
			{"Version", g.Version},
			{"Build ID", g.BuildID},
			{"Hostname", g.Hostname},
			{"Booted", boot},
			{"CPUs online", countText(g.CPUs)},
			{"Command line", g.CommandLine},
			{"Kernel base", fmt.Sprintf("%v virtual, %v physical", g.VirtBase, g.PhysBase)},
			{"KASLR", kaslr},
			{"Page tables", fmt.Sprintf("%d levels", g.PageTableLevels)},
		}...)
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(a.stdout, "%-13s %s\n", l[0]+":", term.Escape(l[1])); err != nil {
			return err
		}
	}
	return nil
}
