package hypervisor

import (
	"context"
	"time"
)

// Holder pauses a VM for as long as someone holds it.
type Holder interface {
	// Hold returns when no vCPU runs any more. The VM stands until release is
	// called, whatever Resume does, and no longer than this process lives: the
	// pause ends with the holder, kill -9 included. Several holds are counted.
	Hold(ctx context.Context) (release func() error, err error)
}

// Switch is a VM's power button, reset button and plug.
type Switch interface {
	// PowerButton asks the guest to shut down (ACPI). It returns at once: the
	// guest may take its time, or not listen.
	PowerButton(ctx context.Context) error
	// Reset resets the VM without asking the guest.
	Reset(ctx context.Context) error
	// Stop ends the VM where it stands, and returns when it has ended.
	Stop(ctx context.Context) error
}

// Saver writes a VM's whole state into files.
type Saver interface {
	// Save writes the state into dir, which must not be there yet, or be empty.
	// With a parent, the folder of an older state of this VM, only what has
	// changed since is written. The VM is paused while it is needed, and is what
	// it was afterwards. After an error, dir is as it was. progress, which may
	// be nil, is told how many bytes of RAM of how many were dealt with.
	Save(ctx context.Context, dir, parent string, progress func(done, total uint64)) error
}

// Ballooner asks a guest for memory back.
type Ballooner interface {
	// SetBalloon asks the guest to hold no more than size bytes of RAM. It
	// returns when the guest is told, not when it has done so.
	SetBalloon(ctx context.Context, size uint64) error
}

// MachineEvent is one thing that happened to a VM.
type MachineEvent struct {
	Kind   MachineEventKind `json:"kind"`
	Time   time.Time        `json:"time"`
	Detail string           `json:"detail,omitempty"`
	// Dropped is how many events were not told since the last.
	Dropped uint64 `json:"dropped,omitempty"`
}

// MachineEventKind is what happened.
type MachineEventKind string

// Kinds of machine events.
const (
	MachinePaused      MachineEventKind = "paused"
	MachineResumed     MachineEventKind = "resumed"
	MachineReset       MachineEventKind = "reset"
	MachineTripleFault MachineEventKind = "triple-fault" // and the reset that follows
	MachinePanicked    MachineEventKind = "panicked"     // the guest's kernel says so (pvpanic)
	MachinePowerOff    MachineEventKind = "power-off"    // the guest has switched itself off
	MachineStopped     MachineEventKind = "stopped"      // by its owner
	MachineFailed      MachineEventKind = "failed"       // Detail says why
)

// Notifier tells what happens to a VM.
type Notifier interface {
	// Events calls f with each event from now on, one after the other, until ctx
	// ends (its cause is returned) or the VM does (an error that wraps ErrGone).
	Events(ctx context.Context, f func(MachineEvent)) error
}
