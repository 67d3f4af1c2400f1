package net

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/vhost"
)

// Options are how a device is made.
type Options struct {
	// Tap is a tap interface that is attached with IFF_TAP, IFF_NO_PI and
	// IFF_VNET_HDR. It stays the caller's, who closes it after the device.
	Tap *os.File
	MAC [6]byte
	MTU int // told to the guest; 0: it is not
	// VHost, when not nil, is /dev/vhost-net, which moves the packets then. The
	// caller closes it after the device. Memory is needed for it alone.
	VHost  *os.File
	Memory vhost.Memory
	Logger *slog.Logger // nil: nothing is logged
}

// Device is a virtio.Kind.
type Device struct {
	opt      Options
	log      *slog.Logger
	tap      *tap
	back     *backend // nil: packets go through this process
	dev      atomic.Pointer[virtio.Device]
	down     atomic.Bool // the link, by its owner
	failed   atomic.Bool // and logged
	dropped  atomic.Uint64
	features uint64 // agreed on, from Start to Stop

	mu     sync.Mutex
	mac    [macLen]byte
	filter filter
}

// New returns a network device.
func New(o Options) (*Device, error) {
	d := &Device{opt: o, log: o.Logger, mac: o.MAC, filter: passAll()}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if d.tap, err = newTap(o.Tap); err != nil {
		return nil, err
	}
	if o.VHost != nil {
		if d.back, err = newBackend(o); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// SetLink cuts the cable (false) or plugs it in again. Without one no packet
// passes in either direction, whatever the guest does.
func (d *Device) SetLink(up bool) {
	if d.down.Swap(!up) == !up {
		return
	}
	if d.back != nil {
		d.back.link(up)
	}
	if dev := d.dev.Load(); dev != nil {
		dev.ConfigChanged()
	}
}

// Dropped returns how many packets to the guest were dropped, by its own filter or
// because the link is down.
func (d *Device) Dropped() uint64 { return d.dropped.Load() }

// ID is virtio.Kind's.
func (d *Device) ID() uint16 { return virtio.TypeNet }

// Class is virtio.Kind's: Ethernet controller.
func (d *Device) Class() uint32 { return 0x020000 }

// Features is virtio.Kind's.
func (d *Device) Features() uint64 {
	f := uint64(featureCsum | featureGuestCsum | featureMAC | featureMergeable | featureStatus |
		featureGuestTSO4 | featureGuestTSO6 | featureGuestECN | featureHostTSO4 | featureHostTSO6 | featureHostECN |
		featureCtrl | featureCtrlRX | featureCtrlExtra | featureCtrlMAC)
	if d.opt.MTU != 0 {
		f |= featureMTU
	}
	if d.back != nil {
		// The kernel does not filter, and must know these itself.
		f &^= featureCtrlRX | featureCtrlExtra
		f &= d.back.features | ^uint64(featureMergeable)
	}
	return f
}

// Queues is virtio.Kind's.
func (d *Device) Queues() []uint16 { return []uint16{queueSize, queueSize, queueCtrlSize} }

// Config is virtio.Kind's.
func (d *Device) Config(p []byte) int {
	var c [configLen]byte
	d.mu.Lock()
	copy(c[configMAC:], d.mac[:])
	d.mu.Unlock()
	if !d.down.Load() {
		le.PutUint16(c[configStatus:], linkUp)
	}
	le.PutUint16(c[configMTU:], uint16(d.opt.MTU))
	return copy(p, c[:])
}

// WriteConfig is virtio.Kind's: the address is set by a command.
func (d *Device) WriteConfig(int, []byte) {}

// Start is virtio.Kind's.
func (d *Device) Start(features uint64, queues []*virtio.Queue) error {
	d.features = features
	for _, q := range queues {
		if q != nil {
			d.dev.Store(q.Device())
		}
	}
	if err := d.tap.setOffloads(features); err != nil {
		return err
	}
	if d.back != nil && queues[queueRX] != nil && queues[queueTX] != nil {
		return d.back.start(features, queues[:queueCtrl])
	}
	return nil
}

// Serve is virtio.Kind's.
func (d *Device) Serve(q *virtio.Queue) {
	switch q.Index() {
	case queueRX:
		(&receiver{d: d, q: q}).serve()
	case queueTX:
		d.transmit(q)
	case queueCtrl:
		d.control(q)
	}
}

// Stop is virtio.Kind's.
func (d *Device) Stop() {
	if d.back != nil {
		d.back.stop()
	}
}

// Pause is virtio.Pausing's.
func (d *Device) Pause() {
	if d.back != nil {
		d.back.pause()
	}
}

// Continue is virtio.Pausing's.
func (d *Device) Continue() {
	if d.back == nil {
		return
	}
	if err := d.back.resume(!d.down.Load()); err != nil {
		d.dev.Load().Break(err)
	}
}

// Reset is virtio.Kind's.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mac, d.filter = d.opt.MAC, passAll()
}

type state struct {
	MAC    []byte `json:"mac"`
	Filter filter `json:"filter"`
}

// State is virtio.Stater's.
func (d *Device) State() (json.RawMessage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return json.Marshal(state{d.mac[:], d.filter})
}

// SetState is virtio.Stater's.
func (d *Device) SetState(raw json.RawMessage) error {
	var s state
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("network device: %w", err)
	}
	if len(s.MAC) != macLen || len(s.Filter.Unicast) > maxTable || len(s.Filter.Multicast) > maxTable {
		return fmt.Errorf("network device: address of %d bytes, filters of %d and %d addresses", len(s.MAC), len(s.Filter.Unicast), len(s.Filter.Multicast))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.mac[:], s.MAC)
	d.filter = s.Filter
	return nil
}
