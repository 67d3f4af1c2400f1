package virtio

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/pci"
)

const stateVersion = 1

type state struct {
	Version      int               `json:"version"`
	Type         uint16            `json:"type"`
	Function     pci.FunctionState `json:"function"`
	Status       uint32            `json:"status"`
	DeviceSelect uint32            `json:"device_select"`
	DriverSelect uint32            `json:"driver_select"`
	Features     uint64            `json:"features"`
	ConfigVector uint32            `json:"config_vector"`
	Generation   uint32            `json:"generation"`
	ISR          uint8             `json:"isr"`
	QueueSelect  uint16            `json:"queue_select"`
	Queues       []queueState      `json:"queues"`
	Kind         json.RawMessage   `json:"kind,omitempty"`
}

type queueState struct {
	Size    uint16              `json:"size"`
	Enabled bool                `json:"enabled"`
	Vector  uint32              `json:"vector"`
	Desc    hypervisor.PhysAddr `json:"desc"`
	Avail   hypervisor.PhysAddr `json:"avail"`
	Used    hypervisor.PhysAddr `json:"used"`
	Next    uint16              `json:"next"` // index of the next chain
	Done    uint16              `json:"done"` // index behind the last one in the used ring
}

// SaveState is bus.Saved's.
func (d *Device) SaveState() ([]byte, error) {
	function := d.fn.State() // which locks what comes before mu
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.quiet {
		return nil, errors.New("save a virtio device: it is not quiet")
	}
	d.isr.Lock()
	isr := d.isr.bits
	d.isr.Unlock()
	s := state{
		Version: stateVersion, Type: d.kind.ID(), Function: function, Status: d.status.Load(),
		DeviceSelect: d.deviceSelect, DriverSelect: d.driverSelect, Features: d.features,
		ConfigVector: d.configVector.Load(), Generation: d.generation.Load(), ISR: isr,
		QueueSelect: d.queueSelect,
	}
	for i := range d.queues {
		q := &d.queues[i]
		if d.running != nil && d.running[i] != nil {
			q.next, q.done = d.running[i].ring.Position()
		}
		s.Queues = append(s.Queues, queueState{q.size, q.enabled, q.vector.Load(), q.desc, q.avail, q.used, q.next, q.done})
	}
	if k, ok := d.kind.(Stater); ok {
		var err error
		if s.Kind, err = k.State(); err != nil {
			return nil, fmt.Errorf("save a virtio device: %w", err)
		}
	}
	return json.Marshal(s)
}

// RestoreState is bus.Saved's.
func (d *Device) RestoreState(raw []byte) error {
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("virtio device state: %w", err)
	}
	if err := d.begin(&s); err != nil {
		return fmt.Errorf("virtio device state: %w", err)
	}
	if err := d.fn.SetState(s.Function); err != nil {
		return fmt.Errorf("virtio device state: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deviceSelect, d.driverSelect, d.features = s.DeviceSelect, s.DriverSelect, s.Features
	d.configVector.Store(d.vector(uint64(s.ConfigVector)))
	d.generation.Store(s.Generation)
	d.queueSelect = s.QueueSelect
	for i, q := range s.Queues {
		c := &d.queues[i]
		c.size, c.enabled, c.desc, c.avail, c.used = q.Size, q.Enabled, q.Desc, q.Avail, q.Used
		c.next, c.done = q.Next, q.Done
		c.vector.Store(d.vector(uint64(q.Vector)))
	}
	if k, ok := d.kind.(Stater); ok && s.Kind != nil {
		if err := k.SetState(s.Kind); err != nil {
			return fmt.Errorf("virtio device state: %w", err)
		}
	}
	d.isr.Lock()
	d.isr.bits = s.ISR & (isrQueue | isrConfig)
	d.fn.SetINTx(d.isr.bits != 0)
	d.isr.Unlock()
	d.status.Store(s.Status)
	d.settle()
	return nil
}

// begin checks s and resets the device.
func (d *Device) begin(s *state) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.quiet {
		return errors.New("the device is not quiet")
	}
	switch {
	case s.Version != stateVersion:
		return fmt.Errorf("version %d: want %d", s.Version, stateVersion)
	case s.Type != d.kind.ID():
		return fmt.Errorf("of a device of type %d: this is one of type %d", s.Type, d.kind.ID())
	case s.Status&^(statusOfDriver|statusNeedsReset) != 0:
		return fmt.Errorf("status %#x", s.Status)
	case s.Status&statusFeaturesOK != 0 && s.Features&^d.offered != 0:
		return fmt.Errorf("features %#x that this device does not have: it was made with another configuration", s.Features&^d.offered)
	case s.Status&statusDriverOK != 0 && s.Status&statusFeaturesOK == 0:
		return fmt.Errorf("status %#x", s.Status)
	case len(s.Queues) != len(d.queues):
		return fmt.Errorf("%d queues: this device has %d", len(s.Queues), len(d.queues))
	}
	for i, q := range s.Queues {
		if q.Size == 0 || q.Size > d.queues[i].max || q.Size&(q.Size-1) != 0 {
			return fmt.Errorf("queue of %d descriptors: want a power of two up to %d", q.Size, d.queues[i].max)
		}
	}
	d.reset()
	return nil
}
