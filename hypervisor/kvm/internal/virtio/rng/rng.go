// Package rng is the virtio entropy device (virtio 1.2, 5.4), in front of the
// host's random numbers.
//
// It must not import anything of Vantage but packages virtio and ring.
package rng

import (
	"crypto/rand"
	"io"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

const (
	queueSize = 64
	// maxBytes is what one request gets at most; its driver asks again. Linux asks
	// for 64.
	maxBytes = 4096
	// DefaultRate is in bytes a second, a hundred times what a booting kernel asks
	// for: a guest that wants more has a generator of its own, and is not to keep
	// a processor of the host busy.
	DefaultRate = 1 << 20
)

// Options are how a device is made.
type Options struct {
	Source io.Reader // nil: the host's getrandom
	Rate   int       // bytes a second; 0: DefaultRate
}

// Device is a virtio.Kind.
type Device struct {
	source io.Reader
	rate   int
}

// New returns an entropy device.
func New(o Options) *Device {
	d := &Device{o.Source, o.Rate}
	if d.source == nil {
		d.source = rand.Reader
	}
	if d.rate <= 0 {
		d.rate = DefaultRate
	}
	return d
}

// ID is virtio.Kind's.
func (d *Device) ID() uint16 { return virtio.TypeRNG }

// Class is virtio.Kind's: unclassified.
func (d *Device) Class() uint32 { return 0xff0000 }

// Features is virtio.Kind's.
func (d *Device) Features() uint64 { return 0 }

// Queues is virtio.Kind's.
func (d *Device) Queues() []uint16 { return []uint16{queueSize} }

// Config is virtio.Kind's: there is none.
func (d *Device) Config([]byte) int { return 0 }

// WriteConfig is virtio.Kind's.
func (d *Device) WriteConfig(int, []byte) {}

// Start is virtio.Kind's.
func (d *Device) Start(uint64, []*virtio.Queue) error { return nil }

// Serve is virtio.Kind's.
func (d *Device) Serve(q *virtio.Queue) {
	var c ring.Chain
	buf := make([]byte, maxBytes)
	last, owed := time.Now(), 0 // bytes that were given before their time
	for q.Wait() {
		for q.Pop(&c) {
			n := int(min(c.InLen(), maxBytes))
			if _, err := io.ReadFull(d.source, buf[:n]); err != nil {
				q.Device().Break(err)
				break
			}
			c.WriteIn(buf[:n])
			q.Push(&c, uint32(n))
			q.Flush()
			now := time.Now()
			owed = max(owed-int(now.Sub(last)*time.Duration(d.rate)/time.Second), 0) + n
			if last = now; owed <= maxBytes {
				continue
			}
			if !q.Sleep(time.Duration(owed) * time.Second / time.Duration(d.rate)) {
				return
			}
		}
	}
}

// Stop is virtio.Kind's.
func (d *Device) Stop() {}

// Reset is virtio.Kind's.
func (d *Device) Reset() {}
