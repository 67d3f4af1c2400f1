// Package console is the virtio console (virtio 1.2, 5.3) with one port: what
// the guest writes goes to a writer, and what is typed to the guest.
//
// It must not import anything of Vantage but packages virtio and ring.
package console

import (
	"io"
	"slices"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

const (
	queueSize   = 64
	queueInput  = 0
	queueOutput = 1
	// typedMax and heldMax bound what waits for the guest and for the writer.
	typedMax = 64 << 10
	heldMax  = 64 << 10
)

// Device is a virtio.Kind.
type Device struct {
	out io.Writer

	mu      sync.Mutex
	typed   []byte
	held    []byte    // is written when the writer takes it
	more    sync.Cond // there is something in held, or closed is set
	closed  bool
	pumping sync.WaitGroup

	input, room *virtio.Event // typed has something; held has room again
}

// New returns a console. Output goes to out from one goroutine; it may block:
// the guest then waits with what it writes. nil: it is dropped.
func New(out io.Writer) (*Device, error) {
	if out == nil {
		out = io.Discard
	}
	d := &Device{out: out}
	d.more.L = &d.mu
	var err error
	if d.input, err = virtio.NewEvent(); err != nil {
		return nil, err
	}
	if d.room, err = virtio.NewEvent(); err != nil {
		_ = d.input.Close()
		return nil, err
	}
	d.pumping.Go(d.pump)
	return d, nil
}

// Close writes what is left and returns: a writer that blocks must be closed
// first. It comes after that of the virtio.Device.
func (d *Device) Close() error {
	d.mu.Lock()
	was := d.closed
	d.closed = true
	d.more.Broadcast()
	d.mu.Unlock()
	if was {
		return nil
	}
	d.pumping.Wait()
	err := d.input.Close()
	if e := d.room.Close(); err == nil {
		err = e
	}
	return err
}

// pump writes what the guest wrote.
func (d *Device) pump() {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b []byte
	for {
		for len(d.held) == 0 {
			if d.closed {
				return
			}
			d.more.Wait()
		}
		b, d.held = d.held, b[:0]
		d.mu.Unlock()
		// A writer that fails loses what it was given: the guest goes on.
		_, _ = d.out.Write(b)
		d.room.Set()
		d.mu.Lock()
	}
}

// Type gives the guest bytes to read, and returns how many were taken: a guest
// that does not read has no more than 64 KiB waiting.
func (d *Device) Type(p []byte) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0
	}
	n := min(len(p), typedMax-len(d.typed))
	d.typed = append(d.typed, p[:n]...)
	if n > 0 {
		d.input.Set()
	}
	return n
}

// ID is virtio.Kind's.
func (d *Device) ID() uint16 { return virtio.TypeConsole }

// Class is virtio.Kind's: simple communication controller, other.
func (d *Device) Class() uint32 { return 0x078000 }

// Features is virtio.Kind's.
func (d *Device) Features() uint64 { return 0 }

// Queues is virtio.Kind's.
func (d *Device) Queues() []uint16 { return []uint16{queueSize, queueSize} }

// Config is virtio.Kind's: struct virtio_console_config, of which no feature
// makes anything valid.
func (d *Device) Config([]byte) int { return 12 }

// WriteConfig is virtio.Kind's.
func (d *Device) WriteConfig(int, []byte) {}

// Start is virtio.Kind's.
func (d *Device) Start(uint64, []*virtio.Queue) error { return nil }

// Stop is virtio.Kind's.
func (d *Device) Stop() {}

// Reset is virtio.Kind's.
func (d *Device) Reset() {}

// Serve is virtio.Kind's.
func (d *Device) Serve(q *virtio.Queue) {
	if q.Index() == queueInput {
		d.serveInput(q)
	} else {
		d.serveOutput(q)
	}
}

func (d *Device) serveInput(q *virtio.Queue) {
	var c ring.Chain
	for ok := q.Wait(); ok; {
		d.input.Clear()
		d.mu.Lock()
		waiting := len(d.typed) > 0
		d.mu.Unlock()
		switch {
		case !waiting:
			ok = q.WaitRead(d.input.FD())
		case q.Pop(&c):
			d.mu.Lock()
			n := c.WriteIn(d.typed)
			d.typed = d.typed[:copy(d.typed, d.typed[n:])]
			d.mu.Unlock()
			q.Push(&c, uint32(n))
			q.Flush()
		default:
			ok = q.Wait()
		}
	}
}

func (d *Device) serveOutput(q *virtio.Queue) {
	var c ring.Chain
	for ok := q.Wait(); ok; {
		switch {
		case !q.Pop(&c):
			q.Flush()
			ok = q.Wait()
		case d.hold(&c):
			q.Push(&c, 0)
		default: // until there is room it is as if it had not been looked at
			q.Unpop(1)
			q.Flush()
			ok = q.WaitRead(d.room.FD())
		}
	}
}

// hold takes what c has for the writer. It returns false when there is no room.
// Of a chain that alone has more than there is room for the rest is dropped:
// Linux writes at most a page at a time.
func (d *Device) hold(c *ring.Chain) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room.Clear()
	n, held := int(min(c.OutLen(), heldMax)), len(d.held)
	if held > 0 && held+n > heldMax {
		return false
	}
	d.held = slices.Grow(d.held, n)[:held+n]
	d.held = d.held[:held+c.ReadOut(d.held[held:])]
	d.more.Signal()
	return true
}
