package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) hooksCommand() *cobra.Command {
	var names []string
	all := make([]string, 0, len(linux.HookKinds()))
	for _, k := range linux.HookKinds() {
		all = append(all, string(k))
	}
	cmd := &cobra.Command{
		Use:   "hooks VM",
		Short: "List what is hooked in a guest's kernel",
		Long: `List what makes a Linux guest's kernel run other code than its own, read from its
memory: kprobes, uprobes, followers of functions (ftrace), hooks of netfilter and
functions at tracepoints, each with the function that is called and whose it is.
One that belongs to nothing known is marked.

JSON fields: kind target address function flags functions function_count priority
net interface path offset kernel_address suspicious; of function: address kind owner
symbol offset.`,
		Example: `  vantage hooks web-1
  vantage hooks web-1 --kind kprobe,ftrace
  vantage hooks web-1.lime --json | jq 'select(.suspicious)'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			var opt linux.HookOptions
			for _, k := range names {
				if !slices.Contains(all, k) {
					return fmt.Errorf("--kind %q: want %s", k, strings.Join(all, ", "))
				}
				opt.Kinds = append(opt.Kinds, linux.HookKind(k))
			}
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.Hooks(cmd.Context(), opt)
				if err != nil {
					return fmt.Errorf("list hooks of %s: %w", args[0], err)
				}
				if err := a.printHooks(list.Hooks); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
	cmd.Flags().StringSliceVar(&names, "kind", nil, "only these: "+strings.Join(all, ", "))
	completeFlag(cmd, "kind", all...)
	return cmd
}

func (a *app) printHooks(hs []linux.Hook) error {
	if a.json {
		for i := range hs {
			if err := a.printJSON(&hs[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "KIND"}, term.Column{Title: "TARGET", Flex: true}, term.Column{Title: "CALLS", Flex: true},
		term.Column{Title: "FLAGS"}, term.Column{Title: ""},
	)
	for i := range hs {
		h := &hs[i]
		target := h.Target
		if h.Interface != "" {
			target += " " + h.Interface
		}
		if h.FunctionCount > 1 {
			target += fmt.Sprintf(" and %d more", h.FunctionCount-1)
		}
		flags := slices.Clone(h.Flags)
		if h.Kind == linux.HookNetfilter {
			flags = append(flags, fmt.Sprintf("priority=%d", h.Priority), fmt.Sprintf("net:[%d]", h.Net))
		}
		mark := ""
		if h.Suspicious {
			mark = "SUSPICIOUS"
		}
		t.Row(string(h.Kind), target, h.Function.String(), strings.Join(flags, ","), mark)
		if h.Suspicious {
			t.Highlight()
		}
	}
	return t.Print(a.stdout)
}
