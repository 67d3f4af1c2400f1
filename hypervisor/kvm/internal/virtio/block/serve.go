package block

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

const (
	// A request that the host has in its page cache takes less time than to wake
	// another thread for it; one that goes to the disk should not keep others
	// waiting. Which it will be the last ones tell: when they took longer than
	// quick, and the time to copy their bytes.
	quick       = 200 * time.Microsecond
	bytesPerUs  = 512
	maxInFlight = 64
	// flushAfter is how long a request that is done may wait for others.
	flushAfter = 50 * time.Microsecond
)

// Serve is virtio.Kind's.
func (d *Device) Serve(q *virtio.Queue) {
	s := server{d: d, q: q, slots: make(chan struct{}, maxInFlight)}
	defer s.others.Wait()
	c := new(ring.Chain)
	for q.Wait() {
		last := time.Now()
		for q.Pop(c) {
			if s.slow.Load() {
				s.elsewhere(c)
				c = new(ring.Chain)
				continue
			}
			s.handle(c)
			if now := time.Now(); now.Sub(last) > flushAfter {
				q.Flush()
				last = now
			}
		}
		q.Flush()
	}
}

// server is one queue's.
type server struct {
	d      *Device
	q      *virtio.Queue
	slow   atomic.Bool
	slots  chan struct{} // in flight elsewhere
	others sync.WaitGroup
}

// elsewhere handles c in a goroutine of its own.
func (s *server) elsewhere(c *ring.Chain) {
	s.slots <- struct{}{}
	release := s.q.Hold()
	s.others.Go(func() {
		s.handle(c)
		s.q.Flush()
		release()
		<-s.slots
	})
}

// handle does the request and gives it back.
func (s *server) handle(c *ring.Chain) {
	size := c.OutLen() + c.InLen()
	begin := time.Now()
	n, err := s.d.do(c)
	if err != nil {
		s.q.Device().Break(err)
		return
	}
	s.slow.Store(time.Since(begin) > quick+time.Duration(size/bytesPerUs)*time.Microsecond)
	s.q.Push(c, n)
}

var errNoHeader = errors.New("a block request without header or status")

// do does the request in c and returns how many bytes it has written there.
func (d *Device) do(c *ring.Chain) (uint32, error) {
	var header [headerLen]byte
	in := c.InLen()
	status := c.LastIn()
	if c.ReadOut(header[:]) < headerLen || status == nil {
		return 0, errNoHeader
	}
	status[0] = d.request(c, le.Uint32(header[0:]), le.Uint64(header[8:]))
	return uint32(min(in, 1<<32-1)), nil
}

func (d *Device) request(c *ring.Chain, kind uint32, at uint64) byte {
	var err error
	switch kind {
	case typeIn:
		var off uint64
		if off, err = d.place(at, c.InLen()); err == nil {
			err = d.disk.ReadV(c.In, off)
		}
	case typeOut:
		var off uint64
		if off, err = d.place(at, c.OutLen()); err == nil {
			err = d.write(func() error { return d.disk.WriteV(c.Out, off) })
		}
	case typeFlush:
		err = d.disk.Flush()
	case typeGetID:
		id := make([]byte, idLen) // zeros follow a shorter one
		copy(id, d.disk.ID())
		if c.WriteIn(id) < idLen {
			err = errGuest
		}
	case typeDiscard, typeWriteZeroes:
		return d.ranges(c, kind)
	default:
		return statusUnsupported
	}
	return d.status(err)
}

// errGuest is a request that asks for what there is not.
var errGuest = errors.New("beyond the disk, read-only or not of whole sectors")

func (d *Device) write(f func() error) error {
	if d.disk.ReadOnly() {
		return errGuest
	}
	return f()
}

// place returns the offset of n bytes at a sector.
func (d *Device) place(at, n uint64) (uint64, error) {
	size := d.disk.Size()
	if n%sector != 0 || at > size/sector || n > size-at*sector {
		return 0, errGuest
	}
	return at * sector, nil
}

// ranges does a discard or write-zeroes request.
func (d *Device) ranges(c *ring.Chain, kind uint32) byte {
	n := c.OutLen()
	if n%rangeLen != 0 || n > maxRanges*rangeLen || d.disk.ReadOnly() {
		return statusIOErr
	}
	limit := uint32(maxDiscardSectors)
	if kind == typeWriteZeroes {
		limit = maxZeroesSectors
	}
	for range n / rangeLen {
		var r [rangeLen]byte
		c.ReadOut(r[:])
		count, flags := le.Uint32(r[8:]), le.Uint32(r[12:])
		if flags&^rangeUnmap != 0 || kind == typeDiscard && flags != 0 {
			return statusUnsupported
		}
		off, err := d.place(le.Uint64(r[:]), uint64(count)*sector)
		if err != nil || count > limit {
			return statusIOErr
		}
		if kind == typeDiscard {
			err = d.disk.Discard(off, uint64(count)*sector)
		} else {
			err = d.disk.WriteZeroes(off, uint64(count)*sector, flags&rangeUnmap != 0)
		}
		if err != nil {
			return d.status(err)
		}
	}
	return statusOK
}

func (d *Device) status(err error) byte {
	if err == nil {
		return statusOK
	}
	// The guest can ask for nonsense as often as it likes, and a disk that fails
	// fails again: the first time is enough.
	if !errors.Is(err, errGuest) && !d.failed.Swap(true) {
		d.log.Warn("disk request failed", "error", err)
	}
	return statusIOErr
}
