package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) keysCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keys VM",
		Short: "List the keys that a guest's kernel keeps",
		Long: `List the keys and keyrings that a Linux guest's kernel keeps, read from its memory:
what they are called and whose they are. What a key holds is never read.

JSON fields: serial type description uid gid perm flags expiry usage keys
kernel_address.`,
		Example: `  vantage keys web-1
  vantage keys web-1.lime --json | jq 'select(.type == "asymmetric") | .description'`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGuest(cmd.Context(), args[0], func(g *linux.Guest) error {
				list, err := g.Keys(cmd.Context())
				if err != nil {
					return fmt.Errorf("list keys of %s: %w", args[0], err)
				}
				if err := a.printKeys(list.Keys); err != nil {
					return err
				}
				return a.incomplete(list.Coverage)
			})
		},
	}
}

func (a *app) printKeys(ks []linux.Key) error {
	if a.json {
		for i := range ks {
			if err := a.printJSON(&ks[i]); err != nil {
				return err
			}
		}
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "SERIAL", Right: true}, term.Column{Title: "TYPE"}, term.Column{Title: "UID", Right: true}, term.Column{Title: "GID", Right: true},
		term.Column{Title: "PERM"}, term.Column{Title: "EXPIRY"}, term.Column{Title: "FLAGS"}, term.Column{Title: "DESCRIPTION", Flex: true},
	)
	for i := range ks {
		k := &ks[i]
		expiry := ""
		if !k.Expiry.IsZero() {
			expiry = k.Expiry.Format(time.RFC3339)
		}
		t.Row(fmt.Sprintf("%08x", uint32(k.Serial)), k.Type, fmt.Sprint(k.UID), fmt.Sprint(k.GID), fmt.Sprintf("%08x", k.Perm), expiry,
			strings.Join(k.Flags, ","), k.Description)
	}
	return t.Print(a.stdout)
}
