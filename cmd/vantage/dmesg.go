package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) dmesgCommand() *cobra.Command {
	var levels []string
	var human bool
	cmd := &cobra.Command{
		Use:   "dmesg VM",
		Short: "Print the kernel's log of a guest",
		Long: `Print what is left in the log of a Linux guest's kernel, read from its memory:
what dmesg(1) shows in the guest, whoever may read it there.

Levels, the gravest first: emerg alert crit err warn notice info debug. A level
with a plus sign stands for itself and all graver ones.

JSON fields: seq time since_boot_ns level facility caller comm subsystem device
continues open text. The time is that of the guest's clock; caller is a thread
(T812) or a CPU (C3); open records may still be added to.`,
		Example: `  vantage dmesg web-1 -T
  vantage dmesg web-1 --level warn+
  vantage dmesg web-1.lime --json | jq -r 'select(.subsystem == "pci").text'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			wanted, err := parseLevels(levels)
			if err != nil {
				return err
			}
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				log, err := g.KernelLog(cmd.Context())
				if err != nil {
					return fmt.Errorf("read the log of %s: %w", args[0], err)
				}
				for i := range log.Records {
					r := &log.Records[i]
					if !wanted[r.Level&7] {
						continue
					}
					if err := a.printLogRecord(r, human); err != nil {
						return err
					}
				}
				return a.incomplete(log.Coverage)
			})
		},
	}
	cmd.Flags().StringSliceVarP(&levels, "level", "l", nil, "only records of these levels (err,warn or warn+)")
	cmd.Flags().BoolVarP(&human, "ctime", "T", false, "print the time of day, in UTC, instead of seconds since boot")
	completeFlag(cmd, "level", "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
	return cmd
}

// parseLevels returns which levels are meant; all of them by no name.
func parseLevels(names []string) (wanted [8]bool, err error) {
	for _, name := range names {
		plain, graver := strings.CutSuffix(name, "+")
		l, ok := linux.ParseLogLevel(plain)
		if !ok {
			return wanted, fmt.Errorf("--level %q: want emerg, alert, crit, err, warn, notice, info or debug", name)
		}
		for i := range wanted {
			if linux.LogLevel(i) == l || graver && linux.LogLevel(i) < l {
				wanted[i] = true
			}
		}
	}
	if !slices.Contains(wanted[:], true) {
		for i := range wanted {
			wanted[i] = true
		}
	}
	return wanted, nil
}

// printLogRecord prints r as dmesg(1) does: lines after the first are indented.
func (a *app) printLogRecord(r *linux.LogRecord, human bool) error {
	if a.json {
		return a.printJSON(r)
	}
	stamp := fmt.Sprintf("[%5d.%06d] ", r.SinceBoot/time.Second, r.SinceBoot%time.Second/time.Microsecond)
	if human && !r.Time.IsZero() {
		stamp = "[" + timeText(r.Time) + "] "
	}
	for i, line := range strings.Split(r.Text, "\n") {
		if i > 0 {
			stamp = strings.Repeat(" ", len(stamp))
		}
		if _, err := fmt.Fprintf(a.stdout, "%s%s\n", stamp, term.Escape(line)); err != nil {
			return err
		}
	}
	return nil
}
