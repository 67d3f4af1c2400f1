// Package bus routes a guest's accesses to ports and to memory-mapped registers
// to the devices behind them, and names what a device gets from the machine:
// guest memory, interrupts and doorbells.
//
// It must not import anything but package hypervisor: devices stand on it, and
// so does the machine that holds them.
package bus

import (
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Handler is what answers at a range of addresses. Its methods are called by the
// vCPUs' threads, several at a time: a device locks for itself. offset is that
// in the handler's range; len(p) is 1, 2, 4 or 8, and offset+len(p) is inside
// the range. They must not block: the guest's vCPU stands still meanwhile.
type Handler interface {
	// Read fills p. What a device does not know reads as all ones.
	Read(offset uint64, p []byte)
	Write(offset uint64, p []byte)
}

// Bus maps addresses to handlers. Look-ups are lock-free; Add and Remove may be
// called while vCPUs run (a guest moves a PCI BAR).
type Bus struct {
	table atomic.Pointer[[]entry] // sorted by base
}

type entry struct {
	base, size uint64
	handler    Handler
}

// Add puts h at [base, base+size). It returns an error when that overlaps.
func (b *Bus) Add(base, size uint64, h Handler) error {
	if size == 0 || base+size < base {
		return fmt.Errorf("bus range %#x+%#x: empty or wraps around", base, size)
	}
	for {
		old := b.table.Load()
		var es []entry
		if old != nil {
			es = slices.Clone(*old)
		}
		for _, e := range es {
			if base < e.base+e.size && e.base < base+size {
				return fmt.Errorf("bus range %#x+%#x overlaps %#x+%#x", base, size, e.base, e.size)
			}
		}
		es = append(es, entry{base, size, h})
		slices.SortFunc(es, func(x, y entry) int {
			if x.base < y.base {
				return -1
			}
			return 1
		})
		if b.table.CompareAndSwap(old, &es) {
			return nil
		}
	}
}

// Remove takes away the handler that was added at base; none there is no error.
func (b *Bus) Remove(base uint64) {
	for {
		old := b.table.Load()
		if old == nil {
			return
		}
		es := slices.DeleteFunc(slices.Clone(*old), func(e entry) bool { return e.base == base })
		if b.table.CompareAndSwap(old, &es) {
			return
		}
	}
}

func (b *Bus) find(addr uint64, size int) (entry, bool) {
	t := b.table.Load()
	if t == nil {
		return entry{}, false
	}
	es := *t
	lo, hi := 0, len(es)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if es[mid].base+es[mid].size <= addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(es) || addr < es[lo].base || addr-es[lo].base+uint64(size) > es[lo].size {
		return entry{}, false
	}
	return es[lo], true
}

// Read lets the handler at addr fill p; without one p is all ones, as on a bus
// where no one answers.
func (b *Bus) Read(addr uint64, p []byte) bool {
	e, ok := b.find(addr, len(p))
	if !ok {
		for i := range p {
			p[i] = 0xff
		}
		return false
	}
	e.handler.Read(addr-e.base, p)
	return true
}

// Write gives p to the handler at addr; without one it is dropped.
func (b *Bus) Write(addr uint64, p []byte) bool {
	e, ok := b.find(addr, len(p))
	if !ok {
		return false
	}
	e.handler.Write(addr-e.base, p)
	return true
}

// Line is a level-triggered or edge-triggered interrupt line (a GSI).
type Line interface {
	// Set raises or lowers it. An edge is a raise and a lower.
	Set(level bool)
}

// MSI sends message-signalled interrupts.
type MSI interface {
	// NewVector returns a vector that carries no message yet. A machine has a few
	// hundred of them; an error says that none is left.
	NewVector() (Vector, error)
}

// Vector is one message of a device's MSI-X table (PCI 3.0, 6.8.2).
type Vector interface {
	// Route sets address and data; masked vectors keep what Signal sends pending.
	Route(addr uint64, data uint32, masked bool) error
	// Signal sends the message. It does not block, and may be called from any
	// goroutine.
	Signal()
	// EventFD returns the eventfd whose writes send the message (an irqfd), for a
	// backend in the kernel (vhost).
	EventFD() int
	Close() error
}

// Doorbells turn a guest's write to an address into a wake-up (ioeventfd) that
// does not stop the vCPU.
type Doorbells interface {
	// NewDoorbell makes writes of size bytes (0: of any size) to the mmio address
	// addr end in the returned doorbell. Several may be at one address when match
	// tells them apart by value.
	NewDoorbell(addr uint64, size int, match *uint64) (Doorbell, error)
}

// Doorbell is rung by a guest.
type Doorbell interface {
	// FD is the eventfd.
	FD() int
	// Wait returns when it was rung since the last Wait, or false when it is
	// closed.
	Wait() bool
	// Ring does what the guest's write does: for a write that reached the bus.
	Ring()
	Close() error
}

// Memory is guest RAM as devices see it: hostile, and changing while it is read.
type Memory interface {
	// View returns size bytes at gpa, which all lie in one piece of RAM; else an
	// error that wraps hypervisor.ErrNotRAM. The view is valid until the machine
	// ends. Who writes through it calls Dirtied.
	View(gpa hypervisor.PhysAddr, size uint64) ([]byte, error)
	// Dirtied says that a device wrote there.
	Dirtied(gpa hypervisor.PhysAddr, size uint64)
}

// Saved is a device whose state is part of a saved VM. SaveState is called while
// no vCPU runs and after Quiesce.
type Saved interface {
	// SaveState returns the state as JSON of a struct that has a version.
	SaveState() ([]byte, error)
	// RestoreState sets it, on a device that was made with the same configuration
	// and has not run. It trusts nothing in it: a saved VM may be damaged.
	RestoreState(state []byte) error
}

// Quiescer is a device that works on its own (queues, backends).
type Quiescer interface {
	// Quiesce returns when the device touches neither guest memory nor its
	// backend any more; what was in flight is done.
	Quiesce()
	// Resume lets it go on.
	Resume()
}
