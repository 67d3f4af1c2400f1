// Package launch runs a machine in a process of its own, which has the machine's
// name and socket, and no more rights than it needs.
//
// Start is for who wants a machine: it takes the name, opens what the machine is
// made of with the caller's rights, starts the process and hands all of that over.
// Main is that process. Between the two goes a spec, files by number, and lines of
// status on a pipe.
//
// It must not import anything of Vantage but package hypervisor and what is below
// hypervisor/kvm; a program that uses it calls Main when it is started as Command
// says.
package launch

import (
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/vmm"
)

// spec is what the machine's process is told, as JSON.
type spec struct {
	Config   vmm.Config    `json:"config"`
	Handover string        `json:"handover"` // vmm.ResourcesFrom's
	Files    int           `json:"files"`    // how many files of that
	Saved    [][]string    `json:"saved"`    // names of the files of saved states, the newest first
	NoReboot bool          `json:"no_reboot"`
	Detached bool          `json:"detached"` // no one holds it
	Socket   string        `json:"socket"`   // of a detached machine: removed at its end
	Grace    time.Duration `json:"grace"`
	LogLevel string        `json:"log_level"`
}

// Numbers of the process's files; those of the machine and of saved states follow.
const (
	fdInput   = 0 // what is typed
	fdConsole = 1
	fdSpec    = 3
	fdStatus  = 4
	fdLeash   = 5 // ends when who holds the machine does
	fdLock    = 6
	fdSocket  = 7
	fdMemory  = 8 // the guest's, for clients: to be read alone
	fdFirst   = 9
)

// status is one line of what the process tells.
type status struct {
	Ready   bool       `json:"ready,omitempty"`
	Failed  string     `json:"failed,omitempty"` // it could not be started: why
	Event   *vmm.Event `json:"event,omitempty"`
	Outcome string     `json:"outcome,omitempty"` // it has ended: a vmm.EventKind
	Error   string     `json:"error,omitempty"`   // of vmm.EventFailed
}
