package scanner

import (
	"github.com/vantage-vmi/vantage/hypervisor"
)

// Limits of what a finding carries.
const (
	// MaxData is how many matching bytes a String shows.
	MaxData = 64
	// MaxStrings is how many matches a Finding lists unless Options say
	// otherwise, the first in order of address.
	MaxStrings = 64
)

// Finding is one rule that matched in one extent. All its strings are guest or
// rule data; those from the guest are escaped where it says so and must be
// treated as hostile elsewhere (Comm, Where).
type Finding struct {
	VM        string         `json:"vm"`
	Rule      string         `json:"rule"`
	Namespace string         `json:"namespace"` // the rule's file
	Tags      []string       `json:"tags"`
	Meta      map[string]any `json:"meta"` // string, int or bool; a list of these for a key given twice
	PID       int            `json:"pid"`  // 0: not in a process
	Comm      string         `json:"comm"`
	// Where names the area: a mapping's path, "[heap]", "[anon]", "[vmalloc]",
	// "[physical]"; in the kernel followed by the symbol when it has one.
	Where string `json:"where"`
	// Offset is that of the first match from the start of the area, in bytes.
	Offset uint64 `json:"offset"`
	// VirtAddr is nil in physical memory.
	VirtAddr *hypervisor.VirtAddr `json:"virt_addr"`
	PhysAddr hypervisor.PhysAddr  `json:"phys_addr"`
	// Strings are the matches in order of address, at most Options.MaxStrings. It is
	// empty for a rule whose condition needs none; the addresses above are then
	// those of the extent.
	Strings []String `json:"strings"`
	// StringsTruncated says that there are, or may be, more.
	StringsTruncated bool `json:"strings_truncated,omitempty"`
}

// String is one place where a string of a rule matched.
type String struct {
	Name      string               `json:"name"`   // "$a"
	Offset    uint64               `json:"offset"` // from the start of the area, in bytes
	VirtAddr  *hypervisor.VirtAddr `json:"virt_addr"`
	PhysAddr  hypervisor.PhysAddr  `json:"phys_addr"`
	Data      string               `json:"data"`                // the matching bytes as Escape writes them, at most MaxData
	Length    int                  `json:"length"`              // of the whole match, in bytes
	Truncated bool                 `json:"truncated,omitempty"` // Data is not all of it
}
