package virtio

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

// Queue is a virtqueue at work, from a Kind's Start to its Stop. Wait, WaitRead,
// Pop and Unpop are for the goroutine that serves it; Push and Flush are safe
// for concurrent use.
type Queue struct {
	dev    *Device
	index  int
	ring   *ring.Ring
	bell   bus.Doorbell
	taken  bool
	inside bool // the gate
	budget int
}

// Index returns which of Kind.Queues it is.
func (q *Queue) Index() int { return q.index }

// Size returns the number of its descriptors.
func (q *Queue) Size() int { return q.ring.Size() }

// Device returns the device that it is a queue of.
func (q *Queue) Device() *Device { return q.dev }

// Wait returns true when there may be something to Pop, and false when Serve is
// to return. Between two calls the device is not quiet: what is done meanwhile
// should not take long, and Pop gives at most a queue full.
func (q *Queue) Wait() bool {
	if q.inside && !q.listen() {
		q.leave()
		if !q.bell.Wait() {
			return false
		}
	}
	return q.enter()
}

// WaitRead returns true when fd may have something to read, and false when Serve
// is to return. The guest is not asked to tell of new chains meanwhile.
func (q *Queue) WaitRead(fd int) bool { return q.poll(fd, -1) }

// Yield is Wait without a wait, for a Serve that has been busy for long.
func (q *Queue) Yield() bool { return q.enter() }

// Sleep returns true after some time, and false when Serve is to return.
func (q *Queue) Sleep(d time.Duration) bool { return q.poll(-1, int(d.Milliseconds())+1) }

// poll looks at no fd when that is negative: poll(2) leaves it out.
func (q *Queue) poll(fd, timeout int) bool {
	q.leave()
	fds := [2]unix.PollFd{{Fd: int32(q.dev.stop.FD()), Events: unix.POLLIN}, {Fd: int32(fd), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds[:], timeout)
		if err == nil || !errors.Is(err, unix.EINTR) {
			return q.enter()
		}
	}
}

// listen reports whether there is something to Pop, and asks the guest to ring
// when there is not.
func (q *Queue) listen() bool {
	if q.dev.broken() {
		return false
	}
	waiting, err := q.ring.Listen()
	if err != nil {
		q.dev.Break(err)
	}
	return waiting
}

func (q *Queue) enter() bool {
	q.leave() // who never leaves would keep the device from being quiet
	if !q.dev.gate.enter() {
		return false
	}
	q.inside = true
	q.ring.Quiet()
	q.budget = q.ring.Size()
	return true
}

func (q *Queue) leave() {
	if q.inside {
		q.inside = false
		q.dev.gate.leave()
	}
}

// Pop takes the next chain. It returns false when there is none, and when the
// guest has broken the device.
func (q *Queue) Pop(c *ring.Chain) bool {
	if q.budget == 0 || q.dev.broken() {
		return false
	}
	ok, err := q.ring.Pop(c)
	if err != nil {
		q.dev.Break(err)
		return false
	}
	if ok {
		q.budget--
	}
	return ok
}

// Waiting reports whether there is another chain to Pop.
func (q *Queue) Waiting() bool {
	n, err := q.ring.Waiting()
	return n > 0 && err == nil && q.budget > 0 && !q.dev.broken()
}

// Unpop puts the last n chains back that were popped and not pushed.
func (q *Queue) Unpop(n int) { q.ring.Unpop(uint16(n)) }

// Keep says that n of the chains that were popped last are only kept in hand
// while Serve waits: a device that is saved meanwhile has not popped them.
func (q *Queue) Keep(n int) { q.ring.Keep(uint16(n)) }

// Push gives c back to the guest, with n bytes written to the beginning of its In
// buffers. The guest sees it after Flush.
func (q *Queue) Push(c *ring.Chain, n uint32) {
	// A broken queue stays as it is for who looks for the reason.
	if !q.dev.broken() {
		q.ring.Push(c, n)
	}
}

// Flush shows the guest what was pushed and interrupts it if it wants that.
func (q *Queue) Flush() {
	if q.ring.Publish() {
		q.dev.interrupt(q.dev.queues[q.index].vector.Load(), isrQueue)
	}
}

// Hold keeps the device from being quiet until the function that it returns is
// called: for what goes on when Serve waits again. Serve calls it between two
// calls of Wait.
func (q *Queue) Hold() (release func()) {
	q.dev.gate.hold()
	return q.dev.gate.leave
}

// Rings are the addresses of a queue's parts, for a backend in the kernel.
type Rings struct {
	Size              int
	Desc, Avail, Used hypervisor.PhysAddr
	Next              uint16 // index of the next chain
	Kick              int    // eventfd
}

// Take gives the queue to a backend in the kernel: Serve is not called. It is
// for Kind.Start; the backend must begin at Pausing's Continue and tell by
// Returned how far it got.
func (q *Queue) Take() Rings {
	q.taken = true
	c := &q.dev.queues[q.index]
	next, _ := q.ring.Position()
	return Rings{Size: q.ring.Size(), Desc: c.desc, Avail: c.avail, Used: c.used, Next: next, Kick: q.bell.FD()}
}

// Returned says that a backend has stopped in front of chain next, with all
// before it done.
func (q *Queue) Returned(next uint16) { q.ring.SetPosition(next, next) }

// Call returns the eventfd that interrupts the guest for this queue, and gives
// it to a backend until Release. It returns false when the guest has no vector
// for the queue.
func (q *Queue) Call() (fd int, release func(), ok bool) {
	v := q.dev.queues[q.index].vector.Load()
	m := q.dev.fn.MSIX()
	if v == noVector || !m.Enabled() {
		return -1, nil, false
	}
	fd, err := m.External(int(v), true)
	if err != nil {
		return -1, nil, false
	}
	return fd, func() { _, _ = m.External(int(v), false) }, true
}
