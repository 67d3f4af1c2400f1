package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) psCommand() *cobra.Command {
	var opts linux.ProcessOptions
	var userOnly bool
	cmd := &cobra.Command{
		Use:     "ps VM",
		Aliases: []string{"processes"},
		Short:   "List the processes of a guest",
		Long: `List the processes of a Linux guest, read from its memory.

The kernel's task list, its index of PIDs, the tasks of its control groups and
those that its CPUs run are compared: a process that one of them lacks, and should
have, was hidden by someone and is marked HIDDEN.

JSON fields: pid ppid tgid uid gid comm exe args start_time cgroup container
container_runtime pod namespaces kernel_address hidden seen_in. Names and
arguments are the guest's own words: bytes that a terminal would act on are
written as \xNN.`,
		Example: `  vantage ps web-1
  vantage ps qemu:4242 --user
  vantage ps qemu:4242 --threads
  vantage ps web-1.lime --json | jq -r 'select(.uid == 0).exe'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.Processes(cmd.Context(), opts)
				if err != nil {
					return fmt.Errorf("list processes of %s: %w", args[0], err)
				}
				if userOnly {
					list.Processes = slices.DeleteFunc(list.Processes, func(p linux.Process) bool { return p.Kernel })
				}
				if err := a.printProcesses(list.Processes); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
	cmd.Flags().BoolVarP(&opts.Threads, "threads", "T", false, "list threads too")
	cmd.Flags().BoolVarP(&userOnly, "user", "u", false, "leave out the kernel's own threads")
	return cmd
}

func (a *app) printProcesses(ps []linux.Process) error {
	if a.json {
		for i := range ps {
			if err := a.printJSON(&ps[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "PID", Right: true}, term.Column{Title: "PPID", Right: true}, term.Column{Title: "UID", Right: true},
		term.Column{Title: "STARTED (UTC)"}, term.Column{Title: "COMM"}, term.Column{Title: "COMMAND", Flex: true},
	)
	for i := range ps {
		p := &ps[i]
		command := strings.Join(p.Args, " ")
		if command == "" {
			command = "[" + p.Comm + "]" // as ps(1) writes kernel threads
		}
		if p.Container != "" {
			command = "{" + shortID(p.Container) + "} " + command
		}
		if p.Hidden {
			command = "HIDDEN " + command
		}
		t.Row(strconv.Itoa(p.PID), strconv.Itoa(p.PPID), strconv.FormatUint(uint64(p.UID), 10),
			timeText(p.StartTime), p.Comm, command)
		if p.Hidden {
			t.Highlight()
		}
	}
	return t.Print(a.stdout)
}

// shortID is a container ID as container tools print it.
func shortID(id string) string {
	const n = 12
	if len(id) > n {
		return id[:n]
	}
	return id
}
