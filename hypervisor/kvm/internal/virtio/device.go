package virtio

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/pci"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
)

// Device is a virtio device in a slot of the PCI bus. It is safe for concurrent
// use.
type Device struct {
	kind      Kind
	res       Resources
	log       *slog.Logger
	fn        *pci.Function
	gate      *gate
	stop      *Event // set while workers are to end
	offered   uint64
	configLen int

	// What workers touch: they never take mu, since who holds it waits for them.
	status       atomic.Uint32
	generation   atomic.Uint32
	configVector atomic.Uint32
	warned       atomic.Bool
	isr          struct {
		sync.Mutex
		bits uint8
	}

	mu           sync.Mutex
	access       pci.Access
	deviceSelect uint32
	driverSelect uint32
	features     uint64 // that the driver accepts
	queueSelect  uint16
	queues       []queueConfig
	running      []*Queue // nil: stopped; nil elements: not enabled
	quiet        bool
	workers      sync.WaitGroup
}

// queueConfig is what the guest says of a queue.
type queueConfig struct {
	max, size         uint16
	enabled           bool
	vector            atomic.Uint32
	desc, avail, used hypervisor.PhysAddr
	next, done        uint16 // positions, while it is stopped
}

// New puts a device of a kind into the next slot of host. It is quiet: see
// Resume.
func New(host *pci.Host, res Resources, kind Kind) (*Device, error) {
	d := &Device{kind: kind, res: res, log: res.Logger, gate: newGate(), quiet: true}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.offered = kind.Features() | transportFeatures
	sizes := kind.Queues()
	if len(sizes) > MaxQueues {
		return nil, fmt.Errorf("virtio device with %d queues: at most %d", len(sizes), MaxQueues)
	}
	d.queues = make([]queueConfig, len(sizes))
	for i, n := range sizes {
		if n == 0 || n > ring.MaxSize || n&(n-1) != 0 {
			return nil, fmt.Errorf("virtio queue of %d descriptors: want a power of two up to %d", n, ring.MaxSize)
		}
		d.queues[i].max = n
	}
	d.configLen = kind.Config(make([]byte, pageSize))
	d.clear()
	var err error
	if d.stop, err = NewEvent(); err != nil {
		return nil, fmt.Errorf("virtio device: %w", err)
	}
	d.fn, err = host.Add(pci.Spec{
		Vendor: pci.VendorVirtio, Device: pciDeviceBase + kind.ID(),
		SubVendor: pci.VendorVirtio, SubDevice: pciDeviceBase + kind.ID(),
		Class: kind.Class(), Revision: pciRevision,
		BARs:         []pci.BAR{{Size: barSize, Handler: (*registers)(d)}},
		Capabilities: d.capabilities(),
		Vectors:      len(sizes) + 1, Pin: true,
		Changed: d.accessChanged,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("virtio device: %w", err), d.stop.Close())
	}
	d.log = d.log.With("virtio_type", kind.ID(), "slot", d.fn.Slot())
	return d, nil
}

// Slot returns the device's number on the PCI bus.
func (d *Device) Slot() int { return d.fn.Slot() }

// Close ends the device's work. No vCPU may run any more.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halt()
	return d.stop.Close()
}

// clear sets the registers to what they are after a reset.
func (d *Device) clear() {
	d.status.Store(0)
	d.deviceSelect, d.driverSelect, d.features, d.queueSelect = 0, 0, 0, 0
	d.configVector.Store(noVector)
	for i := range d.queues {
		q := &d.queues[i]
		q.size, q.enabled, q.next, q.done = q.max, false, 0, 0
		q.desc, q.avail, q.used = 0, 0, 0
		q.vector.Store(noVector)
	}
}

// reset is the device's reset. Called with mu held.
func (d *Device) reset() {
	d.halt()
	d.clear()
	d.kind.Reset()
	d.readISR()
}

// accessChanged is told by the function that the guest has moved or switched it.
func (d *Device) accessChanged(a pci.Access) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.access.Bases) != 0 && d.access.Bases[0] != a.Bases[0] {
		d.halt() // the doorbells are elsewhere
	}
	d.access = a
	d.settle()
}

// settle starts or stops work, as status and access have it. Called with mu held.
func (d *Device) settle() {
	on := d.status.Load()&statusDriverOK != 0 && d.access.Master && d.access.Bases[0] != 0
	if on && d.running == nil && !d.broken() {
		if err := d.start(); err != nil {
			d.Break(err)
		}
	} else if !on {
		d.halt()
	}
}

// start makes the queues and lets workers go. Called with mu held.
func (d *Device) start() error {
	queues := make([]*Queue, len(d.queues))
	fail := func(err error) error {
		d.closeBells(queues)
		return err
	}
	for i := range d.queues {
		c := &d.queues[i]
		if !c.enabled {
			continue
		}
		r, err := ring.New(d.res.Memory, ring.Config{
			Size: c.size, Desc: c.desc, Avail: c.avail, Used: c.used,
			EventIndex: d.features&FeatureEventIndex != 0, Indirect: d.features&FeatureIndirect != 0,
		})
		if err != nil {
			return fail(err)
		}
		r.SetPosition(c.next, c.done)
		bell, err := d.res.Doorbells.NewDoorbell(d.access.Bases[0]+offNotify+uint64(i)*notifyMultiplier, 0, nil)
		if err != nil {
			return fail(err)
		}
		queues[i] = &Queue{dev: d, index: i, ring: r, bell: bell}
	}
	if err := d.kind.Start(d.features, queues); err != nil {
		return fail(err)
	}
	d.running = queues
	d.gate.end(false)
	for i, q := range queues {
		if q == nil || q.taken {
			continue
		}
		d.workers.Go(func() {
			d.kind.Serve(q)
			q.leave()
		})
		if d.queues[i].done != 0 {
			// An interrupt may have been lost while it was stopped; one too many
			// does no harm.
			d.interrupt(d.queues[i].vector.Load(), isrQueue)
		}
	}
	if p, ok := d.kind.(Pausing); ok && !d.quiet {
		p.Continue()
	}
	return nil
}

// halt ends work; what was begun is finished. Called with mu held.
func (d *Device) halt() {
	if d.running == nil {
		return
	}
	if p, ok := d.kind.(Pausing); ok && !d.quiet {
		p.Pause()
	}
	d.gate.end(true)
	d.stop.Set()
	for _, q := range d.running {
		if q != nil {
			q.bell.Ring()
		}
	}
	d.workers.Wait()
	d.stop.Clear()
	d.kind.Stop()
	for i, q := range d.running {
		if q != nil {
			d.queues[i].next, d.queues[i].done = q.ring.Position()
		}
	}
	d.closeBells(d.running)
	d.running = nil
}

func (d *Device) closeBells(queues []*Queue) {
	for _, q := range queues {
		if q != nil {
			if err := q.bell.Close(); err != nil {
				d.log.Warn("doorbell cannot be closed", "error", err)
			}
		}
	}
}

// Quiesce is bus.Quiescer's.
func (d *Device) Quiesce() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.quiet {
		return
	}
	d.quiet = true
	if p, ok := d.kind.(Pausing); ok && d.running != nil {
		p.Pause()
	}
	d.gate.close()
}

// Resume is bus.Quiescer's.
func (d *Device) Resume() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.quiet {
		return
	}
	d.quiet = false
	d.gate.open()
	if p, ok := d.kind.(Pausing); ok && d.running != nil {
		p.Continue()
	}
}
