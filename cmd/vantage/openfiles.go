package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) filesCommand() *cobra.Command {
	var opts linux.FileOptions
	var cached bool
	cmd := &cobra.Command{
		Use:   "files VM",
		Short: "List the open files of a guest's processes",
		Long: `List the files that the processes of a Linux guest have open, and the programs
that they run (exe), read from its memory.

Paths are those of the file's own mount namespace; pipes, sockets, memfds and
the like have the names that readlink prints of /proc/PID/fd/N in the guest. What
runs or is open though it was deleted is marked DELETED.

JSON fields: pid comm role fd path type flags pos inode dev rdev deleted links
uid gid mode size mtime ctime atime mnt_ns kernel_address. role is fd, or exe
(with fd -1); type is reg, dir, chr, blk, fifo, sock, link, or the kernel's word
for an anonymous inode (eventfd, eventpoll, inotify, …); flags are the O_ flags of
open(2) in base 8, dev and rdev are MAJOR:MINOR.
` + cachedFilesHelp,
		Example: `  vantage files web-1
  vantage files web-1 --pid 812
  vantage files web-1 --cached
  vantage files web-1.lime --json | jq -r 'select(.deleted and .type == "reg").path'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.PID < 0 {
				return fmt.Errorf("--pid %d: want the number of a process", opts.PID)
			}
			if cached {
				if opts.PID != 0 {
					return errors.New("--cached lists what belongs to no process: no --pid")
				}
				return a.cachedFiles(cmd.Context(), args[0])
			}
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.Files(cmd.Context(), opts)
				if err != nil {
					return fmt.Errorf("files of %s: %w", args[0], err)
				}
				if err := a.printFiles(list.Files); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
	cmd.Flags().IntVarP(&opts.PID, "pid", "p", 0, "only the files of this process")
	cmd.Flags().BoolVar(&cached, "cached", false, "list what the page cache holds")
	completeFlag(cmd, "pid")
	return cmd
}

func (a *app) printFiles(fs []linux.File) error {
	if a.json {
		for i := range fs {
			if err := a.printJSON(&fs[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "PID", Right: true}, term.Column{Title: "COMM"}, term.Column{Title: "FD", Right: true},
		term.Column{Title: "TYPE"}, term.Column{Title: "FLAGS"}, term.Column{Title: "POS", Right: true},
		term.Column{Title: "INODE", Right: true}, term.Column{Title: ""}, term.Column{Title: "PATH", Flex: true},
	)
	for i := range fs {
		f := &fs[i]
		fd, flags, mark := string(f.Role), "", ""
		if f.Role == linux.RoleOpen {
			fd, flags = strconv.Itoa(f.FD), f.Flags.String()
		}
		if f.Deleted {
			mark = "DELETED"
		}
		t.Row(strconv.Itoa(f.PID), f.Comm, fd, string(f.Type), flags, strconv.FormatInt(f.Pos, 10),
			strconv.FormatUint(f.Inode, 10), mark, f.Path)
		if f.Deleted && f.Role == linux.RoleProgram {
			t.Highlight()
		}
	}
	return t.Print(a.stdout)
}
