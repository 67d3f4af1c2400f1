package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) modulesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "modules VM",
		Short: "List the kernel modules of a guest",
		Long: `List the kernel modules that are loaded in a Linux guest, read from its memory.

The kernel's list of modules, its tree of them and /sys/module are compared: a
module that one of them lacks was hidden by someone and is marked HIDDEN. So is
code in the modules' part of the kernel's memory that belongs to no module and to
nothing else that the kernel knows; it has no name and no kernel address.

JSON fields: name base size state kernel_address hidden seen_in.`,
		Example: `  vantage modules web-1
  vantage modules web-1.lime --json | jq -r .name`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.Modules(cmd.Context())
				if err != nil {
					return fmt.Errorf("list modules of %s: %w", args[0], err)
				}
				if err := a.printModules(withUnknownCode(list)); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
}

// withUnknownCode returns the modules, and behind them a nameless one for each
// piece of code that belongs to none.
func withUnknownCode(l linux.ModuleList) []linux.Module {
	ms := slices.Clone(l.Modules)
	for _, c := range l.UnknownCode {
		ms = append(ms, linux.Module{Base: c.Start, Size: c.Size, Hidden: true, SeenIn: []linux.View{linux.ViewCode}})
	}
	return ms
}

func (a *app) printModules(ms []linux.Module) error {
	if a.json {
		for i := range ms {
			if err := a.printJSON(&ms[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "NAME", Flex: true}, term.Column{Title: "BASE"}, term.Column{Title: "SIZE", Right: true},
		term.Column{Title: "KERNEL ADDRESS"}, term.Column{Title: ""},
	)
	for i := range ms {
		m := &ms[i]
		mark := ""
		if m.Hidden {
			mark = "HIDDEN"
		}
		t.Row(m.Name, m.Base.String(), fmt.Sprint(m.Size), m.KernelAddress.String(), mark)
		if m.Hidden {
			t.Highlight()
		}
	}
	return t.Print(a.stdout)
}
