package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info VM",
		Short: "Tell what a VM is and what runs in it",
		Long: `Tell what a VM is (driver, memory, registers in reach) and what runs in it:
kernel version, boot time, command line, where KASLR put the kernel.`,
		Example: `  vantage info web-1
  vantage info web-1.lime --json`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGuest(cmd.Context(), args[0], func(g *guest) error {
				info, err := g.linux.Info(cmd.Context())
				if err != nil {
					return fmt.Errorf("read facts of %s: %w", args[0], err)
				}
				if err := a.printInfo(g.vm, info); err != nil {
					return err
				}
				return a.incomplete(info.Coverage)
			})
		},
	}
}

func (a *app) printInfo(vm hypervisor.VM, i linux.Info) error {
	v := vm.Info()
	if a.json {
		return a.printJSON(struct {
			VM     hypervisor.Info    `json:"vm"`
			Ranges []hypervisor.Range `json:"memory_ranges"`
			Guest  linux.Info         `json:"guest"`
		}{v, vm.Ranges(), i})
	}
	kaslr := "off"
	if i.KASLROffset != 0 {
		kaslr = fmt.Sprintf("moved by %#x", i.KASLROffset)
	}
	boot := timeText(i.BootTime)
	if !i.BootTime.IsZero() {
		boot += " UTC"
	}
	for _, line := range [][2]string{
		{"VM", v.Name + " (" + v.URI + ")"},
		{"State", string(v.State)},
		{"Memory", bytesText(v.MemoryBytes)},
		{"vCPUs", countText(v.VCPUs)},
		{"Host PID", countText(v.PID)},
		{"Kernel", i.OS + " " + i.Release + " " + i.Arch},
		{"Version", i.Version},
		{"Build ID", i.BuildID},
		{"Hostname", i.Hostname},
		{"Booted", boot},
		{"CPUs online", countText(i.CPUs)},
		{"Command line", i.CommandLine},
		{"Kernel base", fmt.Sprintf("%v virtual, %v physical", i.VirtBase, i.PhysBase)},
		{"KASLR", kaslr},
		{"Page tables", fmt.Sprintf("%d levels", i.PageTableLevels)},
	} {
		if _, err := fmt.Fprintf(a.stdout, "%-13s %s\n", line[0]+":", term.Escape(line[1])); err != nil {
			return err
		}
	}
	return nil
}
