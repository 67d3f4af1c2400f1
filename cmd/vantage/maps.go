package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) mapsCommand() *cobra.Command {
	var pid int
	cmd := &cobra.Command{
		Use:   "maps VM --pid N",
		Short: "List the memory areas of a guest's process",
		Long: `List the memory areas of a process of a Linux guest, read from its memory, with how
many of their pages are in RAM, swapped out, dirty, and changed.

A private mapping of a file whose pages are not what the file's page cache holds
was written to. Where it is executable it is marked MODIFIED: injected code does
that, and so do debuggers' breakpoints and uprobes.

JSON fields: pid start end perms offset path inode dev deleted anon flags
resident swapped dirty anonymous modified modified_exec. flags are the letters
of VmFlags in /proc/PID/smaps; counts are of pages of 4 KiB.`,
		Example: `  vantage maps web-1 --pid 812
  vantage maps web-1.lime --pid 812 --json | jq 'select(.modified_exec > 0)'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if pid <= 0 {
				return errors.New("--pid: want the number of a process")
			}
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				ps, err := g.Processes(cmd.Context(), linux.ProcessOptions{})
				if err != nil {
					return fmt.Errorf("list processes of %s: %w", args[0], err)
				}
				for _, p := range ps.Processes {
					if p.PID != pid {
						continue
					}
					list, err := g.Maps(cmd.Context(), p, linux.MapOptions{})
					if err != nil {
						return fmt.Errorf("maps of %s: %w", args[0], err)
					}
					if err := a.printMaps(list.Areas); err != nil {
						return err
					}
					return a.incomplete(list.Coverage)
				}
				return fmt.Errorf("maps of %s: there is no process %d", args[0], pid)
			})
		},
	}
	cmd.Flags().IntVarP(&pid, "pid", "p", 0, "the process")
	completeFlag(cmd, "pid")
	return cmd
}

func (a *app) printMaps(areas []linux.Area) error {
	if a.json {
		for i := range areas {
			if err := a.printJSON(&areas[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "AREA"}, term.Column{Title: "PERMS"}, term.Column{Title: "SIZE", Right: true},
		term.Column{Title: "IN RAM", Right: true}, term.Column{Title: "SWAP", Right: true}, term.Column{Title: "DIRTY", Right: true},
		term.Column{Title: "CHANGED", Right: true}, term.Column{Title: "OFFSET", Right: true}, term.Column{Title: ""},
		term.Column{Title: "PATH", Flex: true},
	)
	pages := func(n uint64) string {
		if n == 0 {
			return "-"
		}
		return bytesText(n << hypervisor.PageShift)
	}
	for i := range areas {
		m := &areas[i]
		var marks []string
		if m.ModifiedExec > 0 {
			marks = append(marks, "MODIFIED")
		}
		if m.Deleted && m.Perms[2] == 'x' {
			marks = append(marks, "DELETED")
		}
		t.Row(fmt.Sprintf("%012x-%012x", uint64(m.Start), uint64(m.End)), m.Perms, bytesText(m.Size()),
			pages(m.Resident), pages(m.Swapped), pages(m.Dirty), pages(m.Modified),
			strconv.FormatUint(m.Offset, 16), strings.Join(marks, " "), m.Path)
		if m.ModifiedExec > 0 {
			t.Highlight()
		}
	}
	return t.Print(a.stdout)
}
