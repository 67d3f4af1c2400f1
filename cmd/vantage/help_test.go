package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// Every command tells what it does, shows how it is used, and says what its exit
// statuses mean.
func TestHelpOfEveryCommand(t *testing.T) {
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Name() != "help" && sub.Name() != "completion" { // cobra's own
				visit(sub)
			}
		}
		var out bytes.Buffer
		c.SetOut(&out)
		if err := c.Help(); err != nil {
			t.Fatal(err)
		}
		text := out.String()
		for _, want := range []string{"Usage:", "Examples:\n  vantage", exitHelp, "--json"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s --help: no %q:\n%s", c.CommandPath(), want, text)
			}
		}
		for line := range strings.Lines(text) {
			if len(strings.TrimRight(line, "\n")) > 120 {
				t.Errorf("%s --help: a line of %d columns: %s", c.CommandPath(), len(line), line)
			}
		}
		if c.Short == "" || c.HasParent() && strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: short %q", c.CommandPath(), c.Short)
		}
	}
	visit((&app{}).root())
}

// The shell is offered commands, flags, flags' values and the VMs that are there.
func TestCompletion(t *testing.T) {
	run := func(args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, version: "test"}
		if status := a.run(t.Context(), args); status != exitOK {
			t.Errorf("%v: status %d: %s", args, status, errs.String())
		}
		return out.String()
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if out := run("completion", shell); !strings.Contains(out, "vantage") {
			t.Errorf("%s: %s", shell, out)
		}
	}
	for _, c := range []struct{ words, want string }{
		{"s", "scan\t"},
		{"policy r", "replay\t"},
		{"scan --phy", "--physical"},
		{"scan --fail-mode p", "pause"},
		{"policy eval --fail-mode i", "ignore"},
		{"scan --event-format o", "ocsf"},
		{"vms --log-level d", "debug"},
	} {
		if out := run(append([]string{"__complete"}, strings.Fields(c.words)...)...); !strings.Contains(out, c.want) {
			t.Errorf("%q: %q is not offered: %s", c.words, c.want, out)
		}
	}
}

func TestCompletionOfVMs(t *testing.T) {
	g := infected(t, lab.PC, true, true)
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, version: "test"}
	if status := a.run(t.Context(), []string{"__complete", "ps", ""}); status != exitOK || !strings.Contains(out.String(), g.Name()+"\t") {
		t.Errorf("status %d: %s%s", status, out.String(), errs.String())
	}
}
