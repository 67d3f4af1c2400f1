package main

import (
	"fmt"
	"net"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) socketsCommand() *cobra.Command {
	var opts linux.SocketOptions
	cmd := &cobra.Command{
		Use:   "sockets VM",
		Short: "List the sockets of a guest",
		Long: `List the sockets of a Linux guest, of all its network namespaces, read from its
memory: TCP, UDP, raw, ping, UNIX, netlink, packet and others, each with its
state as ss(8) names it and the process that has it open. A socket that several
processes have open has a line for each of them.

The tables in which the kernel finds sockets are compared with the open files of
all processes: a socket that a process has open but that is not in its table was
hidden by someone and is marked HIDDEN.

JSON fields: family type proto local_addr local_port remote_addr remote_port
state pid comm fd uid inode peer_inode netns ifindex kernel_address hidden
seen_in. The pid is 0 for a socket that no process has: in TIME-WAIT, the
kernel's own, one that waits to be accepted.`,
		Example: `  vantage sockets web-1 --listening
  vantage sockets qemu:4242 --pid 812
  vantage sockets web-1.lime --json | jq -r 'select(.state == "ESTAB").remote_addr'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if opts.PID < 0 {
				return fmt.Errorf("--pid %d: want a number above 0", opts.PID)
			}
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.Sockets(cmd.Context(), opts)
				if err != nil {
					return fmt.Errorf("list sockets of %s: %w", args[0], err)
				}
				if err := a.printSockets(list.Sockets); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
	cmd.Flags().BoolVarP(&opts.Listening, "listening", "l", false, "list only sockets that wait for others to call")
	cmd.Flags().IntVarP(&opts.PID, "pid", "p", 0, "list only the sockets of this process")
	completeFlag(cmd, "pid")
	return cmd
}

func (a *app) printSockets(list []linux.Socket) error {
	if a.json {
		for i := range list {
			if err := a.printJSON(&list[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "FAMILY"}, term.Column{Title: "TYPE"}, term.Column{Title: "PROTO"}, term.Column{Title: "STATE"},
		term.Column{Title: "LOCAL"}, term.Column{Title: "REMOTE"},
		term.Column{Title: "NETNS", Right: true}, term.Column{Title: "PID", Right: true}, term.Column{Title: "COMM", Flex: true},
	)
	for i := range list {
		s := &list[i]
		pid := ""
		if s.PID != 0 {
			pid = strconv.Itoa(s.PID)
		}
		comm := s.Comm
		if s.Hidden {
			comm = "HIDDEN " + comm
		}
		t.Row(s.Family, s.Type, s.Proto, s.State, socketEnd(s, s.LocalAddr, s.LocalPort), socketEnd(s, s.RemoteAddr, s.RemotePort),
			strconv.FormatUint(uint64(s.NetNS), 10), pid, comm)
		if s.Hidden {
			t.Highlight()
		}
	}
	return t.Print(a.stdout)
}

// socketEnd is one end of a socket as the table shows it.
func socketEnd(s *linux.Socket, addr string, port uint32) string {
	switch {
	case s.Family == "netlink":
		return strconv.FormatUint(uint64(port), 10)
	case s.Family == "vsock" && addr != "", s.Family == "inet" && s.Type != "raw", s.Family == "inet6" && s.Type != "raw":
		p := strconv.FormatUint(uint64(port), 10)
		if port == 0 || port == 1<<32-1 {
			p = "*"
		}
		return net.JoinHostPort(addr, p)
	}
	return addr
}
