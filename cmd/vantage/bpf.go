package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// Kinds of what bpf lists, as --kind takes them.
var bpfKinds = []string{"program", "map", "link"}

func (a *app) bpfCommand() *cobra.Command {
	var kinds []string
	cmd := &cobra.Command{
		Use:   "bpf VM",
		Short: "List the eBPF programs, maps and links of a guest",
		Long: `List the eBPF programs, maps and links of a Linux guest, read from its memory:
what they are attached to, where they are pinned and which processes hold them.

JSON fields, of all: kind id type pids pinned kernel_address; of programs: name tag
load_time uid jit_address jit_size instructions map_ids attachments; of maps: name
key_size value_size max_entries flags frozen; of links: program_id attachment.`,
		Example: `  vantage bpf web-1
  vantage bpf web-1 --kind program
  vantage bpf web-1.lime --json | jq 'select(.kind == "program" and .pids == [])'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, k := range kinds {
				if !slices.Contains(bpfKinds, k) {
					return fmt.Errorf("--kind %q: want %s", k, strings.Join(bpfKinds, ", "))
				}
			}
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.BPF(cmd.Context())
				if err != nil {
					return fmt.Errorf("list eBPF of %s: %w", args[0], err)
				}
				if err := a.printBPF(list, kinds); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only these: program, map, link")
	completeFlag(cmd, "kind", bpfKinds...)
	return cmd
}

func (a *app) printBPF(l linux.BPFList, kinds []string) error {
	wanted := func(kind string) bool { return len(kinds) == 0 || slices.Contains(kinds, kind) }
	t := term.NewTable(
		term.Column{Title: "KIND"}, term.Column{Title: "ID", Right: true}, term.Column{Title: "TYPE"}, term.Column{Title: "NAME"},
		term.Column{Title: "HELD BY"}, term.Column{Title: "ATTACHED TO", Flex: true},
	)
	if wanted("program") {
		for i := range l.Programs {
			p := &l.Programs[i]
			if a.json {
				if err := a.printJSON(p); err != nil {
					return err
				}
				continue
			}
			places := make([]string, len(p.Attachments))
			for i, at := range p.Attachments {
				places[i] = bpfPlace(at)
			}
			t.Row("program", fmt.Sprint(p.ID), p.Type, p.Name, bpfHolders(p.PIDs, p.Pinned), strings.Join(places, ", "))
		}
	}
	if wanted("map") {
		for i := range l.Maps {
			m := &l.Maps[i]
			if a.json {
				if err := a.printJSON(m); err != nil {
					return err
				}
				continue
			}
			t.Row("map", fmt.Sprint(m.ID), m.Type, m.Name, bpfHolders(m.PIDs, m.Pinned), "")
		}
	}
	if wanted("link") {
		for i := range l.Links {
			k := &l.Links[i]
			if a.json {
				if err := a.printJSON(k); err != nil {
					return err
				}
				continue
			}
			t.Row("link", fmt.Sprint(k.ID), k.Type, fmt.Sprintf("program %d", k.ProgramID), bpfHolders(k.PIDs, k.Pinned), bpfPlace(k.Attachment))
		}
	}
	if a.json {
		return nil
	}
	return t.Print(a.stdout)
}

// bpfHolders says what keeps an object alive: processes, and paths where it is
// pinned.
func bpfHolders(pids []int, pinned []string) string {
	parts := make([]string, 0, len(pids)+len(pinned))
	for _, p := range pids {
		parts = append(parts, fmt.Sprint(p))
	}
	return strings.Join(append(parts, pinned...), " ")
}

func bpfPlace(at linux.BPFAttachment) string {
	var parts []string
	for _, s := range []string{at.Type, at.Cgroup, at.Function, at.Interface, at.Path, at.Iterator} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if at.MapID != 0 {
		parts = append(parts, fmt.Sprintf("map %d", at.MapID))
	}
	if at.Net != 0 {
		parts = append(parts, fmt.Sprintf("net:[%d]", at.Net))
	}
	return strings.Join(parts, " ")
}
