package linux

import (
	"encoding/json"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// HookKind is a way in which the kernel can be made to run other code.
type HookKind string

// Kinds of hooks.
const (
	HookKprobe     HookKind = "kprobe"     // at an instruction of the kernel
	HookUprobe     HookKind = "uprobe"     // at an instruction of a program or library
	HookFtrace     HookKind = "ftrace"     // at the entry of the kernel's functions
	HookNetfilter  HookKind = "netfilter"  // on a packet's way
	HookTracepoint HookKind = "tracepoint" // at a place that the kernel marks for it
)

// HookKinds returns all kinds of hooks that Hooks looks for.
func HookKinds() []HookKind {
	return []HookKind{HookKprobe, HookUprobe, HookFtrace, HookNetfilter, HookTracepoint}
}

// Hook is one function that the kernel calls where it would not by itself.
type Hook struct {
	Kind HookKind `json:"kind"`
	// Target is what is hooked: symbol+offset, path+offset, a hook point such
	// as "ip prerouting", the name of a tracepoint. Of an ftrace user it is the
	// first of its functions; see Functions.
	Target string `json:"target"`
	// Address is that of the hooked instruction; 0 where there is no one.
	Address hypervisor.VirtAddr `json:"address,omitempty"`
	// Function is what is called, and whose it is.
	Function Code `json:"function"`
	// Flags are as the kernel names them: return, optimized, ftrace, disabled,
	// gone; save_regs, ipmodify, pid, permanent, direct; nf_tables, bpf; and
	// replaced: what is called is not what was registered.
	Flags []string `json:"flags"`
	// Functions are those that an ftrace user follows, sorted, at most 64 of
	// them; FunctionCount is how many there are, 0 for all of the kernel's.
	Functions     []string `json:"functions,omitempty"`
	FunctionCount uint64   `json:"function_count,omitempty"`
	// Priority orders the hooks of a netfilter hook point: the least is first.
	Priority int `json:"priority,omitempty"`
	// Net is the number of the network namespace, Interface the network
	// interface of a netfilter hook.
	Net       uint32 `json:"net,omitempty"`
	Interface string `json:"interface,omitempty"`
	// Path and Offset are the file, and the place in it in bytes, of a uprobe.
	Path   string `json:"path,omitempty"`
	Offset uint64 `json:"offset,omitempty"`
	// KernelAddress is where the kernel's record of the hook lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
	// Suspicious: Function belongs to nothing that is known to be code, or is
	// not what was registered.
	Suspicious bool `json:"suspicious"`
}

// MarshalJSON writes h with its strings made valid: see the package comment.
func (h Hook) MarshalJSON() ([]byte, error) {
	type plain Hook
	q := plain(h)
	q.Target, q.Interface, q.Path = jsonText(h.Target), jsonText(h.Interface), jsonText(h.Path)
	q.Functions, q.Flags = jsonTexts(h.Functions), jsonTexts(h.Flags)
	return json.Marshal(q)
}

// HookOptions say what Hooks lists.
type HookOptions struct {
	Kinds []HookKind // all when empty
}

// HookList is what Hooks found, sorted by kind, then by network namespace,
// target, priority and kernel address.
type HookList struct {
	Hooks []Hook
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
