package linux

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// The guest's own lists of probes, followers and chains are those that are found
// in its memory, and every function has the name that the guest has for it.
func TestHooksOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			guest, _ := bootHooks(t, kind)
			run := func(script string) string {
				out, err := guest.Run(t.Context(), script)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			probes := run("cat /sys/kernel/debug/kprobes/list")
			functions := run("cat /sys/kernel/tracing/enabled_functions")
			l := func() HookList {
				g := pausedHooks(t, guest)
				l, err := g.Hooks(t.Context(), HookOptions{})
				if err != nil {
					t.Fatal(err)
				}
				return l
			}()
			for _, p := range l.Coverage.Problems() {
				t.Errorf("not covered: %v", p)
			}
			count := map[HookKind]int{}
			for _, h := range l.Hooks {
				count[h.Kind]++
				if h.Suspicious || h.Function.Unknown() {
					t.Errorf("suspicious: %+v", h)
				}
			}
			t.Log(count)
			compareKprobes(t, l, probes)
			compareUprobes(t, l)
			compareFtrace(t, l, functions)
			compareNetfilter(t, l)
			if err := guest.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
			compareFunctions(t, l, run)
			if err := guest.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// kprobeLine is a line of /sys/kernel/debug/kprobes/list.
var kprobeLine = regexp.MustCompile(`^([0-9a-f]+) +([kr]) +(\S+?)(?:\+0x0)? +(.*)$`)

func compareKprobes(t *testing.T, l HookList, list string) {
	t.Helper()
	var got, want []string
	for _, h := range l.Hooks {
		if h.Kind != HookKprobe {
			continue
		}
		kind, flags := "k", ""
		if slices.Contains(h.Flags, "return") {
			kind = "r"
		}
		for _, f := range []string{"gone", "disabled", "optimized", "ftrace"} {
			if slices.Contains(h.Flags, f) {
				flags += "[" + strings.ToUpper(f) + "]"
			}
		}
		got = append(got, fmt.Sprintf("%x %s %s %s", uint64(h.Address), kind, h.Target, flags))
		if want := map[string]string{"k": "kprobe_dispatcher", "r": "kretprobe_dispatcher"}[kind]; h.Function.Symbol != want {
			t.Errorf("kprobe at %s calls %v", h.Target, h.Function)
		}
	}
	for line := range strings.Lines(list) {
		m := kprobeLine.FindStringSubmatch(strings.TrimSpace(line) + " ")
		if m == nil {
			t.Errorf("kprobes/list: %q", line)
			continue
		}
		want = append(want, fmt.Sprintf("%s %s %s %s", strings.TrimLeft(m[1], "0"), m[2], m[3], strings.ReplaceAll(strings.TrimSpace(m[4]), " ", "")))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || len(want) < 4 {
		t.Errorf("kprobes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func compareUprobes(t *testing.T, l HookList) {
	t.Helper()
	var got []string
	bpf := 0
	for _, h := range l.Hooks {
		switch {
		case h.Kind != HookUprobe:
		case h.Path == "/hooks":
			bpf++ // set by eBPF
		default:
			got = append(got, fmt.Sprint(h.Target, h.Function, h.Flags))
		}
	}
	want := []string{"/tmp/probed+0x1234uprobe_dispatcher []", "/tmp/probed+0x2345uprobe_dispatcher [return]"}
	if !slices.Equal(got, want) || bpf == 0 {
		t.Errorf("uprobes %q, want %q; %d of eBPF", got, want, bpf)
	}
}

// compareFtrace compares the functions that are followed with the guest's list of
// them: "do_exit (1)", with more behind it.
func compareFtrace(t *testing.T, l HookList, enabled string) {
	t.Helper()
	got, want := map[string]bool{}, map[string]bool{}
	tracer := false
	for _, h := range l.Hooks {
		if h.Kind != HookFtrace {
			continue
		}
		for _, f := range h.Functions {
			got[f] = true
		}
		if slices.Equal(h.Functions, []string{"do_exit", "vfs_truncate"}) && h.FunctionCount == 2 {
			tracer = h.Function.Symbol == "function_trace_call"
		}
		if h.FunctionCount == 0 && h.Target != "every function" {
			t.Errorf("%+v", h)
		}
	}
	for line := range strings.Lines(enabled) {
		if name, _, ok := strings.Cut(line, " ("); ok && !strings.HasPrefix(name, "\t") && name == strings.TrimSpace(name) {
			want[name] = true
		}
	}
	if !tracer {
		t.Errorf("the function tracer is not among the followers")
	}
	for f := range want {
		if !got[f] {
			t.Errorf("%s is followed, but was not found", f)
		}
	}
	for f := range got {
		if !want[f] {
			t.Errorf("%s is said to be followed", f)
		}
	}
	if len(want) < 3 {
		t.Errorf("only %d functions are followed: %q", len(want), enabled)
	}
}

func compareNetfilter(t *testing.T, l HookList) {
	t.Helper()
	var got []string
	for _, h := range l.Hooks {
		if h.Kind == HookNetfilter && h.Function.Owner == "nf_tables" {
			got = append(got, fmt.Sprint(h.Target, " ", h.Priority, " ", h.Interface, " ", h.Function.Symbol, " ", h.Net != 0))
			if len(h.Flags) > 0 && h.Flags[0] != "nf_tables" {
				t.Errorf("%+v", h)
			}
		}
	}
	want := []string{
		"ip forward 7  nft_do_chain_inet true", "ip input -5  nft_do_chain_ipv4 true",
		"ip6 forward 7  nft_do_chain_inet true", "ip6 postrouting 110  nft_do_chain_ipv6 true",
		"netdev ingress 33 lo nft_do_chain_netdev true",
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("chains %q, want %q", got, want)
	}
}

// compareFunctions asks the guest for the names of all functions that are called.
func compareFunctions(t *testing.T, l HookList, run func(string) string) {
	t.Helper()
	names := map[hypervisor.VirtAddr]string{}
	for _, h := range l.Hooks {
		c := h.Function
		if c.Kind == CodeKernel || c.Kind == CodeModule {
			names[c.Address] = c.String()
		}
	}
	var ask strings.Builder
	ask.WriteString("/hooks symbols")
	asked := 0
	for a := range names {
		if ask.Len() < 2800 {
			fmt.Fprintf(&ask, " %016x", uint64(a))
			asked++
		}
	}
	found := map[hypervisor.VirtAddr][]string{}
	for line := range strings.Lines(run(ask.String())) {
		var a uint64
		var kind, name, module string
		if n, _ := fmt.Sscanf(line, "%x %s %s %s", &a, &kind, &name, &module); n >= 3 {
			found[hypervisor.VirtAddr(a)] = append(found[hypervisor.VirtAddr(a)], strings.TrimSpace(name+" "+module))
		}
	}
	if len(found) < asked || asked < 8 {
		t.Errorf("the guest knows %d of %d functions", len(found), asked)
	}
	for a, all := range found {
		if !slices.Contains(all, names[a]) {
			t.Errorf("the function at %v is %q, want one of %q", a, names[a], all)
		}
	}
}
