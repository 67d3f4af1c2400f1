package linux

import (
	"encoding/json"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// CodeKind says what kind of code the kernel's code at an address is.
type CodeKind string

// Kinds of code that the kernel runs.
const (
	CodeKernel CodeKind = "kernel" // the kernel's own
	CodeModule CodeKind = "module" // a loaded module's
	CodeBPF    CodeKind = "bpf"    // what the compiler of eBPF made: a program, a trampoline
	CodeFtrace CodeKind = "ftrace" // a trampoline that ftrace made
	CodeKprobe CodeKind = "kprobe" // instructions that kprobes have moved
	// CodeUnknown is an address that belongs to nothing that may be run: it is
	// suspicious, unless the look at the guest was incomplete.
	CodeUnknown CodeKind = "unknown"
)

// Code is what an address of the kernel's code lies in.
type Code struct {
	Address hypervisor.VirtAddr `json:"address"`
	Kind    CodeKind            `json:"kind"`
	// Owner is the module's name, or the eBPF program's as /proc/kallsyms has
	// it; empty for the kernel's own code.
	Owner string `json:"owner"`
	// Symbol is the function that the address lies in, empty where it is not
	// known; Offset is counted from it, or else from the beginning of the
	// owner's code, in bytes.
	Symbol string `json:"symbol"`
	Offset uint64 `json:"offset"`
}

// Unknown reports whether the address belongs to no code that is known.
func (c Code) Unknown() bool { return c.Kind == CodeUnknown }

// String returns c as /proc/kallsyms and the kernel's traces write it:
// symbol+0x12, symbol+0x12 [module]. It is a guest string: escape it.
func (c Code) String() string {
	at := c.Symbol
	switch {
	case c.Kind == CodeUnknown && at == "":
		return fmt.Sprintf("%#x", uint64(c.Address))
	case at == "" && c.Owner == "":
		at = string(c.Kind)
	case at == "":
		at = c.Owner
	}
	if c.Offset != 0 {
		at = fmt.Sprintf("%s+%#x", at, c.Offset)
	}
	switch {
	case c.Kind == CodeModule && c.Symbol != "":
		return at + " [" + c.Owner + "]"
	case c.Kind == CodeBPF:
		return at + " [bpf]"
	}
	return at
}

// MarshalJSON writes c with its strings made valid: see the package comment.
func (c Code) MarshalJSON() ([]byte, error) {
	type plain Code
	q := plain(c)
	q.Owner, q.Symbol = jsonText(c.Owner), jsonText(c.Symbol)
	return json.Marshal(q)
}
