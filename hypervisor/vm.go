package hypervisor

import (
	"context"
	"fmt"
	"reflect"
)

// State is what a VM is doing.
type State string

// States of a VM.
const (
	StateRunning State = "running"
	StatePaused  State = "paused"
	StateStatic  State = "static"  // a memory file: nothing runs
	StateUnknown State = "unknown" // no way to ask
)

// Info names a VM. It is what `vantage vms` prints.
type Info struct {
	Name        string `json:"name"`
	URI         string `json:"uri"` // opens this VM again
	Driver      string `json:"driver"`
	State       State  `json:"state"`
	MemoryBytes uint64 `json:"memory_bytes"`
	VCPUs       int    `json:"vcpus"` // 0: not known
	PID         int    `json:"pid"`   // of the VMM process; 0: none
}

// VM is a handle on one virtual machine. It and its capabilities are safe for
// concurrent use. What else it can do is asked with As.
type VM interface {
	Memory
	// Info returns what is known of the VM; State is of the moment of the call
	// where the driver can tell.
	Info() Info
	// Close lets go of the VM, which runs on as it was. Views returned by
	// MapPhys are invalid afterwards.
	Close() error
}

// Driver is one way to reach VMs.
type Driver interface {
	// Name is the scheme of the driver's URIs: "qemu", "image".
	Name() string
	// List returns the VMs that this driver sees, sorted by name and PID. What
	// it could not look at is told by the error, next to what it could.
	List(ctx context.Context) ([]Info, error)
	// Open opens the VM that target names (a URI without its scheme). It
	// returns an error that wraps ErrNotFound when there is none.
	Open(ctx context.Context, target string) (VM, error)
}

// Pauser stops a VM's vCPUs and lets them run.
type Pauser interface {
	// Pause returns when no vCPU runs any more. Pausing a paused VM is no error.
	Pause(ctx context.Context) error
	// Resume lets the vCPUs run. Resuming a running VM is no error.
	Resume(ctx context.Context) error
	// State asks what the VM is doing.
	State(ctx context.Context) (State, error)
}

// RegisterReader reads vCPU registers.
type RegisterReader interface {
	// Registers returns the registers of every vCPU, in order of their index.
	// They are of one moment each, not of one moment together, unless the VM
	// is paused.
	Registers(ctx context.Context) ([]Registers, error)
}

// Live is implemented by VMs whose memory may change while it is read. A VM
// without it is taken as static.
type Live interface {
	// IsLive reports whether a guest may run in this memory now.
	IsLive() bool
}

// IsLive reports whether vm's memory may change while it is read.
func IsLive(m Memory) bool {
	l, ok := m.(Live)
	return ok && l.IsLive()
}

// Identified is implemented by memory that does not change and can be told from
// others: what was learned of it once holds for as long as it says the same.
type Identified interface {
	// Identity returns a text that only this memory with these contents has;
	// empty: not known.
	Identity() string
}

// As returns vm's capability T (an interface type such as Pauser), or a
// *NotSupportedError.
func As[T any](vm VM) (T, error) {
	if c, ok := vm.(T); ok {
		return c, nil
	}
	var zero T
	t := reflect.TypeFor[T]()
	return zero, &NotSupportedError{
		What:   fmt.Sprintf("capability %s", t.Name()),
		Driver: vm.Info().Driver,
		Remedy: "use a VM of a driver that has it (docs/ARCHITECTURE.md, “Capabilities”)",
	}
}
