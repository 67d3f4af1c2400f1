package ring

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// ErrBroken is wrapped by what Pop returns when the guest breaks the rules.
var ErrBroken = errors.New("the guest's virtqueue is broken")

const (
	// MaxSize is the largest queue.
	MaxSize = 1024
	// MaxChain is the longest chain: the most buffers that a system call takes
	// (IOV_MAX). Linux makes chains of indirect descriptors that are longer than
	// the queue.
	MaxChain = 1024
)

// Layout of the rings and bits in them (linux/virtio_ring.h).
const (
	descSize  = 16
	availSize = 2
	usedSize  = 8

	descNext     = 1 // VRING_DESC_F_NEXT
	descWrite    = 2 // VRING_DESC_F_WRITE
	descIndirect = 4 // VRING_DESC_F_INDIRECT

	availNoInterrupt = 1 // VRING_AVAIL_F_NO_INTERRUPT
	usedNoNotify     = 1 // VRING_USED_F_NO_NOTIFY

	ringFlags   = 0 // of both rings
	ringIndex   = 2
	ringEntries = 4
)

// Config says where a queue is.
type Config struct {
	Size              uint16 // a power of two, at most MaxSize
	Desc, Avail, Used hypervisor.PhysAddr
	// EventIndex and Indirect are features that were agreed on.
	EventIndex, Indirect bool
}

// Ring is a queue that is switched on. Pop, Unpop, Keep, Listen and Quiet are for one
// goroutine at a time; Push and Publish are safe for concurrent use.
type Ring struct {
	mem               bus.Memory
	size              uint16
	desc, avail, used []byte
	usedAt            hypervisor.PhysAddr
	eventIndex        bool
	indirect          bool

	next uint16 // index of the chain that Pop takes next
	kept uint16

	mu        sync.Mutex
	pushed    uint16 // index behind what was pushed
	published uint16 // and behind what the guest sees
	signalled uint16 // and behind what it was last told of

	fence atomic.Uint32
}

// New looks up the rings of c in mem. An error says that they do not lie in RAM,
// or not as they must.
func New(mem bus.Memory, c Config) (*Ring, error) {
	if c.Size == 0 || c.Size > MaxSize || c.Size&(c.Size-1) != 0 {
		return nil, fmt.Errorf("virtqueue of %d descriptors: want a power of two up to %d", c.Size, MaxSize)
	}
	if c.Desc%16 != 0 || c.Avail%2 != 0 || c.Used%4 != 0 {
		return nil, fmt.Errorf("virtqueue at %#x, %#x, %#x: not aligned", uint64(c.Desc), uint64(c.Avail), uint64(c.Used))
	}
	r := &Ring{mem: mem, size: c.Size, usedAt: c.Used, eventIndex: c.EventIndex, indirect: c.Indirect}
	n := uint64(c.Size)
	var err error
	if r.desc, err = mem.View(c.Desc, n*descSize); err != nil {
		return nil, fmt.Errorf("virtqueue's descriptors: %w", err)
	}
	// Both rings have one more field at their end, for EventIndex.
	if r.avail, err = mem.View(c.Avail, ringEntries+n*availSize+2); err != nil {
		return nil, fmt.Errorf("virtqueue's available ring: %w", err)
	}
	if r.used, err = mem.View(c.Used, ringEntries+n*usedSize+2); err != nil {
		return nil, fmt.Errorf("virtqueue's used ring: %w", err)
	}
	return r, nil
}

// Size returns the number of descriptors.
func (r *Ring) Size() int { return int(r.size) }

// Position returns the indices of the chain that Pop takes next and behind the
// last one that was published: what a saved queue needs besides its Config.
func (r *Ring) Position() (next, used uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next - r.kept, r.published
}

// SetPosition sets what Position returned, on a ring that has not been used.
func (r *Ring) SetPosition(next, used uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next, r.pushed, r.published, r.signalled = next, used, used, used
}

// Waiting returns how many chains the guest has made available.
func (r *Ring) Waiting() (int, error) {
	n := load16(r.avail, ringIndex) - r.next
	if n > r.size {
		return 0, fmt.Errorf("%w: %d chains available in a queue of %d", ErrBroken, n, r.size)
	}
	return int(n), nil
}

// Pop takes the next chain, whose slices c reuses. It returns false when there
// is none.
func (r *Ring) Pop(c *Chain) (bool, error) {
	n, err := r.Waiting()
	if n == 0 || err != nil {
		return false, err
	}
	head := load16(r.avail, ringEntries+int(r.next%r.size)*availSize)
	r.next++
	return true, r.walk(c, head)
}

// Unpop puts the last n chains back that were popped and not pushed.
func (r *Ring) Unpop(n uint16) { r.next -= n }

// Keep says that n of the chains that were popped last are only kept in hand: to
// Position they count as not popped.
func (r *Ring) Keep(n uint16) { r.kept = n }

// Push gives c back, with n bytes written to the beginning of its In buffers.
// The guest sees it after Publish.
func (r *Ring) Push(c *Chain, n uint32) {
	for _, in := range c.InRanges {
		// All of it: a request that failed may have written anything.
		r.mem.Dirtied(in.Start, in.Size)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	storeUsed(r.used, ringEntries+int(r.pushed%r.size)*usedSize, uint32(c.head), n)
	r.pushed++
}

// Publish shows the guest what was pushed, and reports whether it wants an
// interrupt for it.
func (r *Ring) Publish() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pushed == r.published {
		return false
	}
	r.published = r.pushed
	store16(r.used, ringIndex, r.published)
	r.mem.Dirtied(r.usedAt, uint64(len(r.used)))
	// The guest stores what it wants and then looks at the index once more; we do
	// it the other way round. Neither may see only the other's old value.
	r.fence.Add(1)
	if !r.eventIndex {
		return load16(r.avail, ringFlags)&availNoInterrupt == 0
	}
	event := load16(r.avail, ringEntries+int(r.size)*availSize)
	old := r.signalled
	r.signalled = r.published
	return passed(event, r.published, old)
}

// passed reports whether going from index old to now has passed event, as
// virtio 1.2, 2.7.7.2 has it.
func passed(event, now, old uint16) bool { return now-event-1 < now-old }

// Quiet asks the guest not to notify: its chains are being looked at.
func (r *Ring) Quiet() {
	// With event indices the old event stays, which the guest passes once.
	if !r.eventIndex {
		store16(r.used, ringFlags, usedNoNotify)
		r.mem.Dirtied(r.usedAt, ringEntries)
	}
}

// Listen asks the guest to notify when there is another chain, and reports
// whether there is one already.
func (r *Ring) Listen() (waiting bool, err error) {
	if r.eventIndex {
		off := ringEntries + int(r.size)*usedSize
		store16(r.used, off, r.next)
		r.mem.Dirtied(r.usedAt+hypervisor.PhysAddr(off), 2)
	} else {
		store16(r.used, ringFlags, 0)
		r.mem.Dirtied(r.usedAt, ringEntries)
	}
	r.fence.Add(1) // as in Publish
	n, err := r.Waiting()
	return n > 0, err
}
