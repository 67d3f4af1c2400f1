package control

import (
	"context"
	"os"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Machine is what a server serves. All methods are safe for concurrent use; after
// the machine's end they return an error that wraps hypervisor.ErrGone.
type Machine interface {
	hypervisor.Pauser // of the machine's own state, which outlives every client
	hypervisor.RegisterReader
	hypervisor.RegisterWriter
	hypervisor.Trapper
	hypervisor.DirtyTracker
	hypervisor.Writer

	Info() hypervisor.Info
	// Ranges returns the RAM: sorted, merged. MemoryFile is a file in
	// the host's memory, in which they lie one behind the other.
	Ranges() []hypervisor.Range
	MemoryFile() *os.File

	// Hold stops the vCPUs, beside what Pause and other holds do, until release
	// is called; it returns when none runs. release may be called several times.
	Hold(ctx context.Context) (release func(), err error)

	// PowerButton presses the power button: a guest that listens shuts down.
	PowerButton() error
	// Reset resets the machine without asking the guest.
	Reset(ctx context.Context) error
	// Stop ends the machine where it stands. It need not wait for the end.
	Stop()
	// SetBalloon asks the guest to give back RAM until it holds no more than size
	// bytes. An error that wraps hypervisor.ErrNotSupported: no such device.
	SetBalloon(ctx context.Context, size uint64) error

	// Save writes the machine's whole state into the files of to; with a parent,
	// only what has changed since that state was saved. The machine is paused
	// while it is needed, and afterwards is what it was. progress may be nil.
	Save(ctx context.Context, to, parent Folder, progress func(SaveProgress)) error
}

// Folder is where a saved machine lies. The process of a machine may open no file
// by itself: who asks for a save does.
type Folder interface {
	// Create makes a file that is not there yet, for writing and reading. name is
	// a plain file name.
	Create(name string) (*os.File, error)
	// Open opens a file for reading.
	Open(name string) (*os.File, error)
}

// SaveProgress is how far a save is.
type SaveProgress struct {
	Done  uint64 `json:"done"`  // bytes of RAM looked at
	Total uint64 `json:"total"` // bytes of RAM
}
