// Package vsock is the virtio socket device (virtio 1.2, 5.10) of the host's
// kernel: the guest's sockets are AF_VSOCK sockets of the host.
//
// It must not import anything of Vantage but packages hypervisor, virtio, ring
// and vhost.
package vsock

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/ring"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio/vhost"
)

const (
	queueSize   = 128
	queueEvent  = 2 // the others, receive and transmit, are the kernel's
	configLen   = 8
	eventReset  = 0 // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
	eventLength = 4

	featureSeqPacket = 1 << 1 // VIRTIO_VSOCK_F_SEQPACKET
	// MinCID is the first context ID that a guest can have (linux/vm_sockets.h: 0
	// to 2 are taken).
	MinCID = 3
)

// Device is a virtio.Kind.
type Device struct {
	vhost    *vhost.Backend
	features uint64
	cid      uint64

	mu      sync.Mutex
	agreed  uint64
	queues  []*virtio.Queue
	rings   []vhost.Queue
	release []func()
	dev     *virtio.Device
	running bool
	lost    bool // connections, by a restore: the guest has to be told
}

// New returns a socket device. f is vhost.OpenVsock's and stays the caller's.
func New(f *os.File, cid uint32, mem vhost.Memory) (*Device, error) {
	if cid < MinCID || cid == 1<<32-1 {
		return nil, fmt.Errorf("vsock context ID %d: want %d to %d", cid, MinCID, uint32(1<<32-2))
	}
	v, err := vhost.New(f, mem)
	if err != nil {
		return nil, err
	}
	d := &Device{vhost: v, cid: uint64(cid)}
	if d.features, err = v.Features(); err != nil {
		return nil, err
	}
	return d, v.SetCID(d.cid)
}

// ID is virtio.Kind's.
func (d *Device) ID() uint16 { return virtio.TypeVsock }

// Class is virtio.Kind's: simple communication controller, other.
func (d *Device) Class() uint32 { return 0x078000 }

// Features is virtio.Kind's.
func (d *Device) Features() uint64 { return d.features & featureSeqPacket }

// Queues is virtio.Kind's.
func (d *Device) Queues() []uint16 { return []uint16{queueSize, queueSize, queueSize} }

// Config is virtio.Kind's.
func (d *Device) Config(p []byte) int {
	var c [configLen]byte
	binary.LittleEndian.PutUint64(c[:], d.cid)
	return copy(p, c[:])
}

// WriteConfig is virtio.Kind's.
func (d *Device) WriteConfig(int, []byte) {}

// Start is virtio.Kind's.
func (d *Device) Start(features uint64, queues []*virtio.Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var calls []int
	for _, q := range queues[:queueEvent] {
		if q == nil {
			return errors.New("vsock: the driver does not use all queues")
		}
		fd, release, ok := q.Call()
		if !ok {
			d.letGo()
			return errors.New("vsock: the guest must use MSI-X, with a vector for each queue")
		}
		calls, d.release = append(calls, fd), append(d.release, release)
	}
	d.dev, d.agreed, d.queues = queues[0].Device(), features&d.features, queues[:queueEvent]
	for i, q := range d.queues {
		r := q.Take()
		d.rings = append(d.rings, vhost.Queue{Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used, Next: r.Next, Kick: r.Kick, Call: calls[i]})
	}
	return nil
}

func (d *Device) letGo() {
	for _, f := range d.release {
		f()
	}
	d.release, d.queues, d.rings = nil, nil, nil
}

// Stop is virtio.Kind's.
func (d *Device) Stop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.letGo()
}

// Continue is virtio.Pausing's.
func (d *Device) Continue() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.run(); err != nil {
		d.dev.Break(err)
	}
}

func (d *Device) run() error {
	if err := d.vhost.Setup(d.agreed); err != nil {
		return err
	}
	for i, r := range d.rings {
		if err := d.vhost.SetQueue(i, r); err != nil {
			return err
		}
	}
	if err := d.vhost.SetRunning(true); err != nil {
		return err
	}
	d.running = true
	return nil
}

// Pause is virtio.Pausing's.
func (d *Device) Pause() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.running {
		return
	}
	d.running = false
	err := d.vhost.SetRunning(false)
	for i := range d.rings {
		next, e := d.vhost.Stopped(i)
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		d.rings[i].Next = next
		d.queues[i].Returned(next)
	}
	d.vhost.DirtiedAll()
	if err != nil {
		d.dev.Break(err)
	}
}

// Reset is virtio.Kind's.
func (d *Device) Reset() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost = false
}

// Serve is virtio.Kind's: of the queue of events alone.
func (d *Device) Serve(q *virtio.Queue) {
	var c ring.Chain
	for q.Wait() {
		d.mu.Lock()
		lost := d.lost
		d.mu.Unlock()
		if q.Index() != queueEvent || !lost || !q.Pop(&c) {
			continue
		}
		var event [eventLength]byte
		binary.LittleEndian.PutUint32(event[:], eventReset)
		q.Push(&c, uint32(c.WriteIn(event[:])))
		q.Flush()
		d.mu.Lock()
		d.lost = false
		d.mu.Unlock()
	}
}

// State is virtio.Stater's.
func (d *Device) State() (json.RawMessage, error) { return json.RawMessage(`{}`), nil }

// SetState is virtio.Stater's. The connections stay with the machine that was
// saved.
func (d *Device) SetState(json.RawMessage) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost = true
	return nil
}
