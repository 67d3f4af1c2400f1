package virtio

import "github.com/vantage-vmi/vantage/hypervisor"

// registers are the structures in BAR 0.
type registers Device

// Read is bus.Handler's.
func (r *registers) Read(offset uint64, p []byte) {
	clear(p)
	d := (*Device)(r)
	in := offset % pageSize
	switch offset - in {
	case offCommon:
		d.readCommon(in, p)
	case offISR:
		if in == 0 {
			p[0] = d.readISR()
		}
	case offDevice:
		if in+uint64(len(p)) <= uint64(d.configLen) {
			var raw [pageSize]byte
			d.kind.Config(raw[:])
			copy(p, raw[in:])
		}
	}
}

// Write is bus.Handler's.
func (r *registers) Write(offset uint64, p []byte) {
	d := (*Device)(r)
	in := offset % pageSize
	switch offset - in {
	case offCommon:
		d.writeCommon(in, p)
	case offDevice:
		if in+uint64(len(p)) <= uint64(d.configLen) {
			d.kind.WriteConfig(int(in), p)
		}
	case offNotify:
		d.mu.Lock()
		defer d.mu.Unlock()
		if i := in / notifyMultiplier; i < uint64(len(d.running)) && d.running[i] != nil {
			d.running[i].bell.Ring()
		}
	}
}

// A field is accessed by its own width, one of 64 bits also by halves (virtio
// 1.2, 4.1.3.1). What does not fit reads as zeros and is not written.
func (d *Device) readCommon(off uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var v uint64
	width := 2
	q := d.selected()
	switch off {
	case commonDeviceSelect:
		v, width = uint64(d.deviceSelect), 4
	case commonDevice:
		v, width = half(d.offered, d.deviceSelect), 4
	case commonDriverSelect:
		v, width = uint64(d.driverSelect), 4
	case commonDriver:
		v, width = half(d.features, d.driverSelect), 4
	case commonVector:
		v = uint64(d.configVector.Load())
	case commonQueues:
		v = uint64(len(d.queues))
	case commonStatus:
		v, width = uint64(d.status.Load()), 1
	case commonGeneration:
		v, width = uint64(uint8(d.generation.Load())), 1
	case commonSelect:
		v = uint64(d.queueSelect)
	default:
		if q == nil {
			return // a queue size of zero says that there is none
		}
		switch off {
		case commonQueueSize:
			v = uint64(q.size)
		case commonQueueVector:
			v = uint64(q.vector.Load())
		case commonQueueEnable:
			if q.enabled {
				v = 1
			}
		case commonQueueNotify:
			v = uint64(d.queueSelect)
		default:
			addr, shift := q.address(off)
			if addr == nil {
				return
			}
			v, width = uint64(*addr)>>shift, 8-int(shift/8)
			if len(p) == 4 {
				v, width = v&0xffff_ffff, 4
			}
		}
	}
	if len(p) == width {
		put(p, v)
	}
}

func (d *Device) writeCommon(off uint64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	v := get(p)
	switch {
	case off == commonStatus && len(p) == 1:
		d.writeStatus(uint32(v))
	case off == commonDeviceSelect && len(p) == 4:
		d.deviceSelect = uint32(v)
	case off == commonDriverSelect && len(p) == 4:
		d.driverSelect = uint32(v)
	case off == commonDriver && len(p) == 4 && d.driverSelect < 2:
		if d.status.Load()&statusFeaturesOK == 0 {
			shift := 32 * d.driverSelect
			d.features = d.features&^(0xffff_ffff<<shift) | v<<shift
		}
	case off == commonVector && len(p) == 2:
		d.configVector.Store(d.vector(v))
	case off == commonSelect && len(p) == 2:
		d.queueSelect = uint16(v)
	default:
		if q := d.selected(); q != nil {
			d.writeQueue(q, off, p, v)
		}
	}
}

// writeQueue writes a field of a queue. A queue that is enabled stays as it is
// until the device is reset, but for its vector.
func (d *Device) writeQueue(q *queueConfig, off uint64, p []byte, v uint64) {
	if off == commonQueueVector && len(p) == 2 {
		q.vector.Store(d.vector(v))
		return
	}
	if q.enabled || d.status.Load()&statusDriverOK != 0 {
		return
	}
	switch {
	case off == commonQueueSize && len(p) == 2:
		if n := uint16(v); n != 0 && n <= q.max && n&(n-1) == 0 {
			q.size = n
		}
	case off == commonQueueEnable && len(p) == 2:
		q.enabled = v == 1
	case len(p) == 4 || len(p) == 8:
		addr, shift := q.address(off)
		switch {
		case addr == nil || shift != 0 && len(p) == 8:
		case len(p) == 8:
			*addr = hypervisor.PhysAddr(v)
		default:
			*addr = *addr&^(0xffff_ffff<<shift) | hypervisor.PhysAddr(v<<shift)
		}
	}
}

// selected returns the queue that the guest has selected, or nil.
func (d *Device) selected() *queueConfig {
	if int(d.queueSelect) >= len(d.queues) {
		return nil
	}
	return &d.queues[d.queueSelect]
}

// vector returns v, or noVector when there is no such vector.
func (d *Device) vector(v uint64) uint32 {
	if v >= uint64(d.fn.MSIX().Len()) {
		return noVector
	}
	return uint32(v)
}

// address returns the address field at off, and by how many bits off is in it.
func (q *queueConfig) address(off uint64) (field *hypervisor.PhysAddr, shift uint) {
	if off%4 != 0 {
		return nil, 0
	}
	shift = uint(off%8) * 8
	switch off &^ 7 {
	case commonQueueDesc:
		return &q.desc, shift
	case commonQueueAvail:
		return &q.avail, shift
	case commonQueueUsed:
		return &q.used, shift
	}
	return nil, 0
}

// writeStatus is the driver's way through initialisation (virtio 1.2, 3.1.1).
func (d *Device) writeStatus(v uint32) {
	if v == 0 {
		d.reset()
		return
	}
	old := d.status.Load()
	add := v & statusOfDriver &^ old // bits are never taken back but by a reset
	if add&statusFeaturesOK != 0 && (d.features&^d.offered != 0 || d.features&FeatureVersion1 == 0) {
		add &^= statusFeaturesOK // the driver reads it back
	}
	if add&statusDriverOK != 0 && (old|add)&statusFeaturesOK == 0 {
		add &^= statusDriverOK
	}
	d.status.Or(add)
	d.settle()
}

func half(v uint64, which uint32) uint64 {
	if which > 1 {
		return 0
	}
	return v >> (32 * which) & 0xffff_ffff
}

func put(p []byte, v uint64) {
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
}

func get(p []byte) (v uint64) {
	for i, b := range p {
		v |= uint64(b) << (8 * i)
	}
	return v
}
