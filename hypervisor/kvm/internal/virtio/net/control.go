package net

import (
	"errors"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

var errCommand = errors.New("a network command without header or status")

// control handles the queue of commands.
func (d *Device) control(q *virtio.Queue) {
	var c ring.Chain
	for q.Wait() {
		for q.Pop(&c) {
			var header [ctrlHeaderLen]byte
			status := c.LastIn()
			if status == nil || c.ReadOut(header[:]) < len(header) {
				q.Device().Break(errCommand)
				break
			}
			status[0] = ctrlErr
			if d.command(&c, header[0], header[1]) {
				status[0] = ctrlOK
			}
			q.Push(&c, 1)
			q.Flush()
		}
	}
}

// command does one, and reports whether it could.
func (d *Device) command(c *ring.Chain, class, cmd byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := &d.filter
	switch {
	case class == ctrlRX && d.back == nil:
		flags := [...]*bool{
			ctrlPromisc: &f.Promiscuous, ctrlAllMulti: &f.AllMulticast, ctrlAllUni: &f.AllUnicast,
			ctrlNoMulti: &f.NoMulticast, ctrlNoUni: &f.NoUnicast, ctrlNoBcast: &f.NoBroadcast,
		}
		var on [1]byte
		if int(cmd) >= len(flags) || c.ReadOut(on[:]) < 1 {
			return false
		}
		*flags[cmd] = on[0] != 0
		return true
	case class == ctrlMAC && cmd == ctrlMACTable && d.back == nil:
		uni, many, ok := table(c)
		multi, manyMulti, ok2 := table(c)
		if !ok || !ok2 {
			return false
		}
		f.Unicast, f.TooManyUnicast, f.Multicast, f.TooManyMulticast = uni, many, multi, manyMulti
		return true
	case class == ctrlMAC && cmd == ctrlMACAddr:
		var mac [macLen]byte
		if c.ReadOut(mac[:]) < macLen {
			return false
		}
		d.mac = mac
		return true
	}
	return false
}

// table reads a list of addresses. Of one that is too long nothing is kept but
// that it is.
func table(c *ring.Chain) (list [][macLen]byte, tooMany, ok bool) {
	var count [4]byte
	if c.ReadOut(count[:]) < len(count) {
		return nil, false, false
	}
	n := uint64(le.Uint32(count[:]))
	if n > maxListed || n*macLen > c.OutLen() {
		return nil, false, false
	}
	for range n {
		var mac [macLen]byte
		c.ReadOut(mac[:])
		if !tooMany {
			list = append(list, mac)
		}
		if len(list) > maxTable {
			list, tooMany = nil, true
		}
	}
	return list, tooMany, true
}
