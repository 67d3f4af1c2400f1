package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) timersCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "timers VM",
		Short: "List the timers that are armed in a guest's kernel",
		Long: `List the timers that are armed in a Linux guest's kernel, read from its memory: those
of the timer wheel and the high-resolution ones, with what they call, whose code that
is, and the process that waits. One that calls nothing known is marked.

Expiry is in nanoseconds on the timer's clock; in jiffies for the timer wheel.

JSON fields: kind cpu clock expires left function work pid kernel_address suspicious;
of function and work: address kind owner symbol offset.`,
		Example: `  vantage timers web-1
  vantage timers web-1.lime --json | jq 'select(.function.kind != "kernel")'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.Timers(cmd.Context())
				if err != nil {
					return fmt.Errorf("list timers of %s: %w", args[0], err)
				}
				if err := a.printTimers(list.Timers); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
}

func (a *app) printTimers(ts []linux.Timer) error {
	if a.json {
		for i := range ts {
			if err := a.printJSON(&ts[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "CPU", Right: true}, term.Column{Title: "KIND"}, term.Column{Title: "CLOCK"}, term.Column{Title: "EXPIRES", Right: true},
		term.Column{Title: "PID", Right: true}, term.Column{Title: "CALLS", Flex: true}, term.Column{Title: ""},
	)
	for i := range ts {
		x := &ts[i]
		expires := fmt.Sprintf("%+d", x.Left)
		if x.Kind == linux.TimerHigh {
			expires = time.Duration(x.Expires).String()
		}
		calls := x.Function.String()
		if x.Work != nil {
			calls += " -> " + x.Work.String()
		}
		pid, mark := "", ""
		if x.PID != 0 {
			pid = fmt.Sprint(x.PID)
		}
		if x.Suspicious {
			mark = "SUSPICIOUS"
		}
		t.Row(fmt.Sprint(x.CPU), x.Kind, x.Clock, expires, pid, calls, mark)
		if x.Suspicious {
			t.Highlight()
		}
	}
	return t.Print(a.stdout)
}
