package linux

import (
	"encoding/json"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Module is a loaded kernel module.
type Module struct {
	Name string              `json:"name"`
	Base hypervisor.VirtAddr `json:"base"` // of its code
	Size uint64              `json:"size"` // bytes, as /proc/modules counts them
	// State is what /proc/modules prints: Live, Loading, Unloading; Unformed
	// is not printed there.
	State         string              `json:"state"`
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"` // of the struct module
	// Hidden: it is missing from a view that should have it and that could be
	// walked to its end. SeenIn names the views that have it.
	Hidden bool   `json:"hidden"`
	SeenIn []View `json:"seen_in"`
}

// MarshalJSON writes m with its strings made valid: see the package comment.
func (m Module) MarshalJSON() ([]byte, error) {
	type plain Module
	q := plain(m)
	q.Name = jsonText(m.Name)
	return json.Marshal(q)
}

// ModuleList is what Modules found, sorted by name and address.
type ModuleList struct {
	Modules []Module
	// UnknownCode is the code that belongs to no module that any view has, nor
	// to anything else that the kernel keeps among modules, sorted.
	UnknownCode []CodeRange
	Coverage    *introspect.Coverage
}
