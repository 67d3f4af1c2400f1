package linux

import (
	"encoding/json"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// VMA is one mapping of a process: a line of /proc/PID/maps.
type VMA struct {
	Start  hypervisor.VirtAddr `json:"start"`
	End    hypervisor.VirtAddr `json:"end"` // one past the last byte
	Perms  string              `json:"perms"`
	Offset uint64              `json:"offset"` // in the file, bytes
	// Path is the file that is mapped, or a name in brackets as the kernel
	// gives it ([heap], [stack], [vdso], [anon:…]); empty for anonymous memory.
	Path string `json:"path"`
	Anon bool   `json:"anon"` // no file is behind it

	file, ops hypervisor.VirtAddr // vm_file and vm_ops
}

// Size returns the mapping's length in bytes.
func (v VMA) Size() uint64 { return uint64(v.End - v.Start) }

// Contains reports whether va lies in v.
func (v VMA) Contains(va hypervisor.VirtAddr) bool { return va >= v.Start && va < v.End }

// MarshalJSON writes v with its strings made valid: see the package comment.
func (v VMA) MarshalJSON() ([]byte, error) {
	type plain VMA
	q := plain(v)
	q.Path = jsonText(v.Path)
	return json.Marshal(q)
}
