package main

import (
	"fmt"
	"strconv"

	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

func (a *app) printSwaps(ss []linux.Swap) error {
	if len(ss) == 0 {
		return nil
	}
	t := term.NewTable(
		term.Column{Title: "SWAP", Flex: true}, term.Column{Title: "SIZE", Right: true}, term.Column{Title: "USED", Right: true},
		term.Column{Title: "PRIORITY", Right: true}, term.Column{Title: ""},
	)
	for i := range ss {
		s := &ss[i]
		mark := ""
		if s.Compressed {
			mark = "in memory, compressed"
		}
		t.Row(s.Name, bytesText(s.Size), bytesText(s.Used), strconv.Itoa(s.Priority), mark)
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	return t.Print(a.stdout)
}
