package virtio

import "github.com/vantage-vmi/vantage/hypervisor/kvm/internal/pci"

// capabilities say where the structures are (virtio 1.2, 4.1.4).
func (d *Device) capabilities() []pci.Capability {
	caps := []pci.Capability{
		structure(capCommon, capLen, offCommon, commonLen),
		structure(capNotify, capNotifyLen, offNotify, uint32(max(len(d.queues), 1)*notifyMultiplier)),
		structure(capISR, capLen, offISR, isrLen),
	}
	le.PutUint32(caps[1].Data[capLen-2:], notifyMultiplier)
	if d.configLen != 0 {
		caps = append(caps, structure(capDevice, capLen, offDevice, uint32(d.configLen)))
	}
	return append(caps, d.window())
}

// structure returns struct virtio_pci_cap, in front of n-16 more bytes.
func structure(kind uint8, n int, offset, length uint32) pci.Capability {
	data := make([]byte, n-2)
	data[0], data[1] = byte(n), kind
	le.PutUint32(data[6:], offset)
	le.PutUint32(data[10:], length)
	return pci.Capability{ID: capVendor, Data: data}
}

// window is the capability by which the BAR is accessed through configuration
// space (virtio 1.2, 4.1.4.9).
func (d *Device) window() pci.Capability {
	const at, end = capLen - 2, capConfigLen - 2 // pci_cfg_data
	c := structure(capConfig, capConfigLen, 0, 0)
	c.Mask = make([]byte, len(c.Data))
	c.Mask[2] = 0xff
	for i := 6; i < end; i++ {
		c.Mask[i] = 0xff
	}
	through := func(off, n int, data []byte, access func(uint64, []byte)) {
		if off >= end || off+n <= at || data[2] != 0 {
			return
		}
		offset, length := le.Uint32(data[6:]), le.Uint32(data[10:])
		switch length {
		case 1, 2, 4:
		default:
			return
		}
		if offset%length == 0 && offset <= barSize-length {
			access(uint64(offset), data[at:at+length])
		}
	}
	c.Read = func(off, n int, data []byte) { through(off, n, data, (*registers)(d).Read) }
	c.Write = func(off, n int, data []byte) { through(off, n, data, (*registers)(d).Write) }
	return c
}
