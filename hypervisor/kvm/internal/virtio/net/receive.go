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
// write into them, and gives back those that were used.
type receiver struct {
	d *Device
	q *virtio.Queue

	mergeable bool
	held      []*ring.Chain // in the guest's order
	spare     []*ring.Chain
	room      uint64 // bytes in held
	iov       [][]byte
	empty     int // reads in a row that brought nothing
	lost      bool
}

// serve is the queue's Serve.
func (r *receiver) serve() {
	r.mergeable = r.d.features&featureMergeable != 0
	for ok := r.q.Wait(); ok; {
		if !r.fill() || r.lost {
			r.q.Keep(len(r.held))
			ok = r.q.Wait()
			continue
		}
		n, more := 0, true
		for ; n < burst && more && r.fill(); n++ {
			more = r.packet()
		}
		r.q.Flush()
		r.q.Keep(len(r.held))
		switch {
		case more:
			ok = r.q.Yield()
		case n > 1:
			r.empty = 0
			ok = r.q.WaitRead(r.d.tap.fd)
		default:
			// A tap that is there and gives nothing, as one being deleted may be,
			// must not keep a processor busy.
			if r.empty++; r.empty > burst {
				r.empty = 0
				ok = r.q.Sleep(10 * time.Millisecond)
			} else {
				ok = r.q.WaitRead(r.d.tap.fd)
			}
		}
	}
}

// fill takes buffers in hand. It returns false when there is no room for a packet.
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
			// A guest whose whole queue is shorter than that gets what fits.
			return len(r.held) == r.q.Size()
		}
		if c.InLen() < headerLen || len(c.Out) != 0 {
			r.q.Device().Break(errBuffer)
			return false
		}
		r.held = append(r.held, c)
		r.room += c.InLen()
	}
	return true
}

// packet brings one packet. It returns false when there is none.
func (r *receiver) packet() bool {
	r.iov = r.iov[:0]
	for _, c := range r.held {
		r.iov = append(r.iov, c.In...)
	}
	n, err := r.d.tap.read(r.iov)
	if err != nil {
		if !r.d.failed.Swap(true) {
			r.d.log.Warn("tap interface is lost", "error", err)
		}
		r.lost = true
		return false
	}
	if n == 0 {
		return false
	}
	if n < headerLen+macLen || !r.wanted() {
		return true // the next one goes over it
	}
	used := 0
	for left := uint64(n); left > 0 && used < len(r.held); used++ {
		left -= min(left, r.held[used].InLen())
	}
	var count [2]byte
	le.PutUint16(count[:], uint16(used))
	store(r.iov, headerBuffers, count[:])
	left := uint64(n)
	for _, c := range r.held[:used] {
		k := min(left, c.InLen())
		r.q.Push(c, uint32(k))
		left -= k
		r.room -= c.InLen()
	}
	r.spare = append(r.spare, r.held[:used]...)
	r.held = r.held[:copy(r.held, r.held[used:])]
	return true
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
