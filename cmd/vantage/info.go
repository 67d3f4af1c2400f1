package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
	"github.com/vantage-vmi/vantage/node"
)

func (a *app) infoCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "info VM",
		Short: "Tell what a VM is and what runs in it",
		Long: `Tell what a VM is (driver, state, memory) and what runs in it: system, kernel
version, clock, load, use of memory, security modules, taint, command line, where
KASLR put the kernel; with --all also network interfaces, mounts and swap areas.
Of a guest that is not understood the first part is told, and the status is 2.

The system's name is that of /etc/os-release, when the guest has that file in its
page cache. Mounts are those of the first process's mount namespace.

JSON fields: vm state_unknown memory_ranges guest interfaces mounts swaps. Of a
swap area: name disk size used (bytes) priority compressed; of an
interface: name index type mac mtu up state flags addresses net_namespace
init_namespace kernel_address; of a mount: id parent_id source target fstype root
options super_options device mnt_namespace kernel_address.`,
		Example: `  vantage info web-1
  vantage info web-1 --all
  vantage info web-1.lime --json | jq -r '.interfaces[].addresses[]'`,
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
					if all || a.json {
						if err := out.addLists(cmd.Context(), g); err != nil {
							return fmt.Errorf("read facts of %s: %w", args[0], err)
						}
					}
					if err := a.printInfo(out); err != nil {
						return err
					}
					return a.incomplete(info.Coverage)
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "tell network interfaces and mounts too (--json always does)")
	return cmd
}

// vmInfo is what `vantage info` prints.
type vmInfo struct {
	VM hypervisor.Info `json:"vm"`
	// StateUnknown says why the state is not known: a monitor that another
	// client holds, or none.
	StateUnknown string             `json:"state_unknown,omitempty"`
	Ranges       []hypervisor.Range `json:"memory_ranges"`
	Guest        *linux.Info        `json:"guest,omitempty"`
	// Nil where they were not asked for.
	Interfaces []linux.Interface `json:"interfaces,omitempty"`
	Mounts     []linux.Mount     `json:"mounts,omitempty"`
	Swaps      []linux.Swap      `json:"swaps,omitempty"`
}

// addLists adds the guest's interfaces, mounts and swap areas. That a kernel has none is told
// in the coverage.
func (i *vmInfo) addLists(ctx context.Context, g *linux.Guest) error {
	interfaces, err := g.Interfaces(ctx)
	if err != nil {
		i.Guest.Coverage.Add("interfaces", 0, err)
	}
	mounts, err := g.Mounts(ctx)
	if err != nil {
		i.Guest.Coverage.Add("mounts", 0, err)
	}
	i.Guest.Coverage.Merge(interfaces.Coverage)
	i.Guest.Coverage.Merge(mounts.Coverage)
	swaps, cov, err := g.Swaps(ctx)
	if err != nil && !errors.Is(err, profile.ErrNoSymbol) && !errors.Is(err, profile.ErrNoType) { // CONFIG_SWAP
		i.Guest.Coverage.Add("swap areas", 0, err)
	}
	i.Guest.Coverage.Merge(cov)
	i.Swaps = swaps
	i.Interfaces, i.Mounts = interfaces.Interfaces, mounts.Mounts
	return ctx.Err()
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
	if i.Guest != nil {
		lines = append(lines, guestLines(i.Guest)...)
	}
	for _, l := range lines {
		if l[0] == "" {
			if _, err := fmt.Fprintln(a.stdout); err != nil {
				return err
			}
			continue
		}
		if _, err := fmt.Fprintf(a.stdout, "%-13s %s\n", l[0]+":", term.Escape(l[1])); err != nil {
			return err
		}
	}
	if err := a.printInterfaces(i.Interfaces); err != nil {
		return err
	}
	if err := a.printMounts(i.Mounts); err != nil {
		return err
	}
	return a.printSwaps(i.Swaps)
}
