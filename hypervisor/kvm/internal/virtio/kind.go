package virtio

import (
	"encoding/json"
	"log/slog"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// Kind is what a device does, behind a Device that speaks to the guest. Its
// methods other than Serve are called by the Device one at a time.
type Kind interface {
	// ID is the type of device, TypeBlock and so on; Class is the PCI class code.
	ID() uint16
	Class() uint32
	// Features are those offered, without the transport's.
	Features() uint64
	// Queues returns the largest size of each queue: a power of two.
	Queues() []uint16
	// Config fills p with the device's configuration, of which it returns the
	// length; what p has behind that it leaves as it is. It may be called while
	// Serve runs.
	Config(p []byte) int
	// WriteConfig is told what the guest writes to the configuration. off+len(p)
	// is inside it. It may be called while Serve runs.
	WriteConfig(off int, p []byte)
	// Start is called when the guest's driver is ready, with the features that
	// were agreed on and the queues; one that the driver does not use is nil.
	// After an error the driver is told that the device needs a reset.
	Start(features uint64, queues []*Queue) error
	// Serve handles q until q.Wait returns false; then what it began is done, and
	// it returns. Each queue has a goroutine that calls it, unless Start has taken
	// the queue (Queue.Take).
	Serve(q *Queue)
	// Stop is called when all calls of Serve have returned. Start may follow.
	Stop()
	// Reset puts it back to how it was made. It is called after Stop.
	Reset()
}

// Stater is a Kind with a state of its own, beyond queues and features.
type Stater interface {
	// State is called while the device is quiet.
	State() (json.RawMessage, error)
	// SetState is called after Reset and before Start. It trusts nothing in it.
	SetState(json.RawMessage) error
}

// Pausing is a Kind that works on something other than queues that Serve
// handles.
type Pausing interface {
	// Pause returns when it touches no guest memory; Continue lets it go on. Both
	// are called between Start and Stop only.
	Pause()
	Continue()
}

// Resources are what a Device needs of its machine.
type Resources struct {
	Memory    bus.Memory
	Doorbells bus.Doorbells
	Logger    *slog.Logger // nil: nothing is logged
}
