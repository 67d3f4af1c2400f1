package net

import (
	"errors"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

var errBuffer = errors.New("a network buffer of the wrong kind, or too small for a header")

// transmit sends the guest's packets. What their headers say of checksums and
// segments the tap checks.
func (d *Device) transmit(q *virtio.Queue) {
	var c ring.Chain
	for q.Wait() {
		for n := 1; q.Pop(&c); n++ {
			if len(c.In) != 0 || c.OutLen() < headerLen {
				q.Device().Break(errBuffer)
				break
			}
			if !d.down.Load() && c.OutLen() <= maxPacket {
				d.tap.write(c.Out)
			}
			q.Push(&c, 0)
			if n%(burst/4) == 0 {
				q.Flush() // the guest may be out of descriptors
			}
		}
		q.Flush()
	}
}
