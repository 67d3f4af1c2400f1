package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
)

func (a *app) vmsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "vms",
		Short: "List the VMs of this host",
		Long: `List the VMs of this host, whoever started them and with whatever options.
What is listed was read from outside; nothing is opened or changed. Memory
files are not listed: name them by path.

JSON fields: name uri driver state memory_bytes vcpus pid.`,
		Example: `  vantage vms
  vantage vms --json | jq -r 'select(.memory_bytes > 4e9).uri'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := a.node()
			if err != nil {
				return err
			}
			vms, listErr := n.List(cmd.Context())
			if err := a.printVMs(vms); err != nil {
				return err
			}
			switch {
			case listErr == nil:
				return nil
			case len(vms) == 0:
				return listErr
			}
			return &exitError{code: exitIncomplete, err: listErr}
		},
	}
}

func (a *app) printVMs(vms []hypervisor.Info) error {
	if a.json {
		for _, v := range vms {
			if err := a.printJSON(v); err != nil {
				return err
			}
		}
		return nil
	}
	if len(vms) == 0 {
		fmt.Fprintln(a.stderr, "no VMs are running on this host (memory files are named by path)")
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "NAME", Flex: true}, term.Column{Title: "URI"}, term.Column{Title: "STATE"},
		term.Column{Title: "MEMORY", Right: true}, term.Column{Title: "VCPUS", Right: true}, term.Column{Title: "PID", Right: true},
	)
	for _, v := range vms {
		t.Row(v.Name, v.URI, string(v.State), bytesText(v.MemoryBytes), countText(v.VCPUs), countText(v.PID))
	}
	return t.Print(a.stdout)
}

// countText writes n, or "-" where zero means not known.
func countText(n int) string {
	if n == 0 {
		return "-"
	}
	return strconv.Itoa(n)
}

// completeVMs offers the names of the running VMs to the shell.
func (a *app) completeVMs(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	n, err := a.node()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	vms, err := n.List(cmd.Context())
	if err != nil && len(vms) == 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	names := make([]string, 0, len(vms))
	for _, v := range vms {
		names = append(names, term.Escape(v.Name)+"\t"+term.Escape(v.URI))
	}
	return names, cobra.ShellCompDirectiveDefault // files too: memory images
}

// oneVM is cobra.ExactArgs(1) with an error that says what is wanted.
func oneVM(_ *cobra.Command, args []string) error {
	switch len(args) {
	case 1:
		return nil
	case 0:
		return errors.New("no VM named: 'vantage vms' lists them")
	}
	return fmt.Errorf("want one VM, got %d", len(args))
}
