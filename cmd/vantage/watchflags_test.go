package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/node"
)

// A trap that cannot be set is named, and those before it are gone.
func TestWatchRefused(t *testing.T) {
	run := func(vm hypervisor.VM, args ...string) result {
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, version: "test", drivers: []node.Driver{oneVMDriver{vm}}}
		status := a.run(t.Context(), append([]string{"watch", "web", "--cache-dir", ""}, args...))
		return result{out.String(), errs.String(), status}
	}
	f := pagedFake()
	r := run(f, "--write", "0x6000", "--write", "0x900000:16")
	if r.status != exitFailed || !strings.Contains(r.stderr, "--write 0x900000:16: ") || !strings.Contains(r.stderr, "no RAM") {
		t.Errorf("status %d: %s", r.status, r.stderr)
	}
	noTraps(t, f)

	f = pagedFake()
	r = run(f.VM(hypervisortest.CanLook), "--write", "0x6000")
	if r.status != exitFailed || !strings.Contains(r.stderr, "'vantage run'") || !strings.Contains(r.stderr, "not supported by driver kvm") {
		t.Errorf("a VM without traps: status %d: %s", r.status, r.stderr)
	}

	for _, c := range []struct{ args, want string }{
		{"", "nothing to watch: give --write"},
		{"--write 1000", "--write 1000: \"1000\": want an address"},
		{"--shutdown --answer drop", "want continue, skip, deny, pause"},
		{"--write 0x0 --mechanism magic", "want auto, read-only-slot, userfaultfd, no-slot"},
		{"--break 0x0 --mechanism no-slot", "give --write, --read or --exec"},
		{"--shutdown --rate -1", "--rate -1"},
		{"--shutdown --count 0", "--count 0"},
		{"--shutdown --for 0s", "--for 0s"},
		{"--write sym:jiffies_64", "no Linux kernel found"},
	} {
		if r := run(pagedFake(), strings.Fields(c.args)...); r.status != exitFailed || !strings.Contains(r.stderr, c.want) || r.stdout != "" {
			t.Errorf("%s: status %d, want %q: %s%s", c.args, r.status, c.want, r.stdout, r.stderr)
		}
	}
}

func TestWatchCompletion(t *testing.T) {
	for words, want := range map[string]string{
		"--answer d": "deny", "--mechanism u": "userfaultfd", "--msr w:LS": "w:LSTAR", "--write v": "virt:0x", "--hw r": "rw:",
	} {
		var out, errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, version: "test"}
		args := append([]string{"__complete", "watch", "web"}, strings.Fields(words)...)
		if status := a.run(t.Context(), args); status != exitOK || !strings.Contains(out.String(), want) {
			t.Errorf("%s: status %d: %s%s", words, status, out.String(), errs.String())
		}
	}
}
