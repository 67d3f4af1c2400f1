package net

import (
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

// burst is how many packets go by before others get a turn.
const burst = 64

// receiver brings packets from the tap into the guest's buffers. It has buffers
// of the guest in hand that take the longest packet there is, so that the tap can
// write into them, and gives back those that were used. When the guest has given
// fewer, what does not fit goes to memory of ours, and waits there for more.
type receiver struct {
	d *Device
	q *virtio.Queue

	mergeable bool
	held      []*ring.Chain // in the guest's order
	spare     []*ring.Chain
	room      uint64 // bytes in held
	iov       [][]byte
	over      []byte // what does not fit
	waiting   []byte // a packet that waits for buffers
	empty     int    // reads in a row that brought nothing
	lost      bool
}

// serve is the queue's Serve.
func (r *receiver) serve() {
	r.mergeable = r.d.features&featureMergeable != 0
	for ok := r.q.Wait(); ok; {
		n, more := 0, true
		for n < burst && more && r.fill() {
			if more = r.packet(); more {
				n++
			}
		}
		r.q.Flush()
		r.q.Keep(len(r.held))
		switch {
		case n == burst:
			ok = r.q.Yield()
		case more || r.lost: // there is no room
			ok = r.q.Wait()
		default:
			// A tap that is there and gives nothing, as one being deleted may be,
			// must not keep a processor busy.
			if r.empty++; n > 0 {
				r.empty = 0
			}
			if r.empty > burst {
				ok = r.q.Sleep(10 * time.Millisecond)
			} else {
				ok = r.q.WaitRead(r.d.tap.fd)
			}
		}
	}
}

// fill takes buffers in hand. It returns false when there are none for a packet.
func (r *receiver) fill() bool {
	for r.room < maxPacket && (r.mergeable || len(r.held) == 0) {
		var c *ring.Chain
		if i := len(r.spare) - 1; i >= 0 {
			c, r.spare = r.spare[i], r.spare[:i]
		} else {
			c = new(ring.Chain)
		}
		if !r.q.Pop(c) {
			r.spare = append(r.spare, c)
			break
		}
		if c.InLen() < headerLen || len(c.Out) != 0 {
			r.q.Device().Break(errBuffer)
			return false
		}
		r.held = append(r.held, c)
		r.room += c.InLen()
	}
	if len(r.held) == r.q.Size() && r.room < uint64(len(r.waiting)) {
		r.waiting = r.waiting[:0] // it will never fit
		r.d.dropped.Add(1)
	}
	return r.room > 0 && r.room >= uint64(len(r.waiting))
}

// packet brings one packet. It returns false when there is none.
func (r *receiver) packet() bool {
	if r.lost {
		return false
	}
	r.iov = r.iov[:0]
	for _, c := range r.held {
		r.iov = append(r.iov, c.In...)
	}
	if n := len(r.waiting); n > 0 {
		store(r.iov, 0, r.waiting)
		r.waiting = r.waiting[:0]
		r.deliver(uint64(n))
		return true
	}
	guest := len(r.iov)
	if r.room < maxPacket {
		if r.over == nil {
			r.over = make([]byte, maxPacket)
		}
		r.iov = append(r.iov, r.over)
	}
	n, err := r.d.tap.read(r.iov)
	r.iov = r.iov[:guest]
	if err != nil {
		if !r.d.failed.Swap(true) {
			r.d.log.Warn("tap interface is lost", "error", err)
		}
		r.lost = true
		return false
	}
	switch size := uint64(n); {
	case n == 0:
		return false
	case n < headerLen+macLen || !r.wanted() || size > r.room && !r.mergeable:
		r.d.dropped.Add(1) // the next one goes over it
	case size > r.room:
		r.waiting = append(r.waiting, make([]byte, r.room)...)
		load(r.iov, 0, r.waiting)
		r.waiting = append(r.waiting, r.over[:size-r.room]...)
	default:
		r.deliver(size)
	}
	return true
}

// deliver gives the guest the n bytes that are in the buffers in hand.
func (r *receiver) deliver(n uint64) {
	used := 0
	for left := n; left > 0 && used < len(r.held); used++ {
		left -= min(left, r.held[used].InLen())
	}
	var count [2]byte
	le.PutUint16(count[:], uint16(used))
	store(r.iov, headerBuffers, count[:])
	for _, c := range r.held[:used] {
		k := min(n, c.InLen())
		r.q.Push(c, uint32(k))
		n -= k
		r.room -= c.InLen()
	}
	r.spare = append(r.spare, r.held[:used]...)
	r.held = r.held[:copy(r.held, r.held[used:])]
}

// wanted reports whether the packet in hand is for the guest.
func (r *receiver) wanted() bool {
	if r.d.down.Load() {
		return false
	}
	var to [macLen]byte
	load(r.iov, headerLen, to[:])
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	return r.d.filter.wants(to, r.d.mac)
}

// store and load access bytes at an offset of iov.
func store(iov [][]byte, off int, p []byte) {
	across(iov, off, p, func(b, p []byte) int { return copy(b, p) })
}

func load(iov [][]byte, off int, p []byte) {
	across(iov, off, p, func(b, p []byte) int { return copy(p, b) })
}

func across(iov [][]byte, off int, p []byte, f func(b, p []byte) int) {
	for _, b := range iov {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		if p = p[f(b[off:], p):]; len(p) == 0 {
			return
		}
		off = 0
	}
}
