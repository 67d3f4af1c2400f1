// Package balloon is the traditional memory balloon device (virtio 1.2, 5.5): the
// guest gives pages back to the host when it is asked for them, and with free
// page reporting whenever it has some.
//
// It must not import anything of Vantage but packages hypervisor, virtio and ring.
package balloon

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
)

// Memory takes pages back.
type Memory interface {
	// Discard gives size bytes at gpa, whole pages, back to the host; they read as
	// zeros afterwards. It may leave out those that must keep what they have (a
	// trap is set there), and what is not RAM. It tells those who track dirty
	// pages.
	Discard(gpa hypervisor.PhysAddr, size uint64) error
}

const (
	queueSize = 128
	// Queues by their order; those of features that the driver does not take are
	// left out, and the ones behind move up.
	queueInflate = 0
	queueDeflate = 1
)

// Device is a virtio.Kind.
type Device struct {
	mem Memory
	max uint32 // pages of the guest

	mu      sync.Mutex
	dev     *virtio.Device // from the first Start on
	roles   []role         // of the queues
	pages   uint32         // that the guest is to give up
	actual  uint32         // that it says it has given up
	stats   Stats
	asked   bool          // someone waits for statistics
	fresh   chan struct{} // closed when statistics come
	running bool

	wanted *virtio.Event // asked
}

type role int

const (
	roleInflate role = iota
	roleDeflate
	roleStats
	roleReporting
)

// Stats is what the guest says of its memory; what it does not say is zero.
type Stats struct {
	SwapIn      uint64 `json:"swap_in"` // bytes
	SwapOut     uint64 `json:"swap_out"`
	MajorFaults uint64 `json:"major_faults"`
	MinorFaults uint64 `json:"minor_faults"`
	Free        uint64 `json:"free"` // bytes
	Total       uint64 `json:"total"`
	Available   uint64 `json:"available"`
	Caches      uint64 `json:"caches"`
}

// New returns a balloon for a guest with size bytes of memory.
func New(mem Memory, size uint64) (*Device, error) {
	wanted, err := virtio.NewEvent()
	if err != nil {
		return nil, err
	}
	return &Device{mem: mem, max: uint32(min(size>>pfnShift, 1<<32-1)), wanted: wanted, fresh: make(chan struct{})}, nil
}

// Close comes after that of the virtio.Device.
func (d *Device) Close() error { return d.wanted.Close() }

// SetTarget asks the guest to give up size bytes in all, in whole pages. It may
// do so or not; Actual tells.
func (d *Device) SetTarget(size uint64) error {
	pages := size >> pfnShift
	d.mu.Lock()
	dev := d.dev
	if pages > uint64(d.max) {
		d.mu.Unlock()
		return fmt.Errorf("balloon of %d bytes: the guest has %d", size, uint64(d.max)<<pfnShift)
	}
	d.pages = uint32(pages)
	d.mu.Unlock()
	if dev != nil {
		dev.ConfigChanged()
	}
	return nil
}

// Actual returns how many bytes the guest says it has given up.
func (d *Device) Actual() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return uint64(d.actual) << pfnShift
}

// Stats asks the guest for its statistics and returns them when it answers. It
// returns an error that wraps hypervisor.ErrNotSupported when no driver runs.
func (d *Device) Stats(ctx context.Context) (Stats, error) {
	d.mu.Lock()
	if !d.running {
		d.mu.Unlock()
		return Stats{}, &hypervisor.NotSupportedError{What: "memory statistics", Driver: "kvm", Remedy: "the guest's virtio_balloon driver is not loaded"}
	}
	d.asked = true
	fresh := d.fresh
	d.wanted.Set()
	d.mu.Unlock()
	select {
	case <-fresh:
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.stats, nil
	case <-ctx.Done():
		return Stats{}, fmt.Errorf("the guest does not answer with its memory statistics: %w", context.Cause(ctx))
	}
}

// ID is virtio.Kind's.
func (d *Device) ID() uint16 { return virtio.TypeBalloon }

// Class is virtio.Kind's: unclassified.
func (d *Device) Class() uint32 { return 0xff0000 }

// Features is virtio.Kind's.
func (d *Device) Features() uint64 { return featureStats | featureOOM | featureReporting }

// Queues is virtio.Kind's.
func (d *Device) Queues() []uint16 { return []uint16{queueSize, queueSize, queueSize, queueSize} }

// Config is virtio.Kind's.
func (d *Device) Config(p []byte) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	var c [configLen]byte
	le.PutUint32(c[configPages:], d.pages)
	le.PutUint32(c[configActual:], d.actual)
	return copy(p, c[:])
}

// WriteConfig is virtio.Kind's.
func (d *Device) WriteConfig(off int, p []byte) {
	if off == configActual && len(p) == 4 {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.actual = le.Uint32(p)
	}
}

// Start is virtio.Kind's.
func (d *Device) Start(features uint64, queues []*virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.roles = []role{queueInflate: roleInflate, queueDeflate: roleDeflate}
	if features&featureStats != 0 {
		d.roles = append(d.roles, roleStats)
		d.running = queues[len(d.roles)-1] != nil
	}
	if features&featureReporting != 0 {
		d.roles = append(d.roles, roleReporting)
	}
	for _, q := range queues {
		if q != nil {
			d.dev = q.Device()
		}
	}
	return nil
}

// Stop is virtio.Kind's.
func (d *Device) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.running = false
}

// Reset is virtio.Kind's.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.actual = 0
}

type state struct {
	Pages  uint32 `json:"pages"`
	Actual uint32 `json:"actual"`
}

// State is virtio.Stater's.
func (d *Device) State() (json.RawMessage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return json.Marshal(state{d.pages, d.actual})
}

// SetState is virtio.Stater's.
func (d *Device) SetState(raw json.RawMessage) error {
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("balloon: %w", err)
	}
	if s.Pages > d.max {
		return fmt.Errorf("balloon of %d pages: the guest has %d", s.Pages, d.max)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.pages, d.actual = s.Pages, s.Actual
	return nil
}
