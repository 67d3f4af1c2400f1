package block

import (
	"log/slog"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/virtio"
)

// Disk is what the device stands on. Offsets are in bytes; it may be used by
// many goroutines at a time, and its iovecs are guest memory.
type Disk interface {
	Size() uint64
	ReadOnly() bool
	ReadV(iov [][]byte, off uint64) error
	WriteV(iov [][]byte, off uint64) error
	Flush() error
	Discard(off, n uint64) error
	WriteZeroes(off, n uint64, unmap bool) error
	ID() string
}

const (
	// MaxQueues is the most queues that a device gets.
	MaxQueues = 8
	queueSize = 256
	// A request has a header and a status besides its segments.
	segMax = queueSize - 2
)

// Options are how a device is made.
type Options struct {
	// Queues is how many there are: one a vCPU is best. 0 is 1; at most MaxQueues
	// are made.
	Queues int
	Logger *slog.Logger // nil: nothing is logged
}

// Device is a virtio.Kind.
type Device struct {
	disk   Disk
	queues int
	log    *slog.Logger
	config [configLen]byte
	failed atomic.Bool // and logged
}

// New returns a block device. The disk stays the caller's, who closes it after
// the device.
func New(disk Disk, o Options) *Device {
	d := &Device{disk: disk, queues: min(max(o.Queues, 1), MaxQueues), log: o.Logger}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	c := d.config[:]
	le.PutUint64(c[configCapacity:], disk.Size()/sector)
	le.PutUint32(c[configSegMax:], segMax)
	le.PutUint32(c[configBlkSize:], sector)
	c[configPhysicalExp] = physicalBlockExp
	le.PutUint16(c[configMinIO:], minIOSectors)
	le.PutUint16(c[configQueues:], uint16(d.queues))
	if !disk.ReadOnly() {
		le.PutUint32(c[configDiscardMax:], maxDiscardSectors)
		le.PutUint32(c[configDiscardSegs:], maxRanges)
		le.PutUint32(c[configDiscardAlign:], minIOSectors)
		le.PutUint32(c[configZeroesMax:], maxZeroesSectors)
		le.PutUint32(c[configZeroesSegs:], maxRanges)
		c[configZeroesUnmap] = 1
	}
	return d
}

// ID is virtio.Kind's.
func (d *Device) ID() uint16 { return virtio.TypeBlock }

// Class is virtio.Kind's: mass storage, other.
func (d *Device) Class() uint32 { return 0x018000 }

// Features is virtio.Kind's.
func (d *Device) Features() uint64 {
	f := uint64(featureSegMax | featureBlkSize | featureFlush | featureTopology | featureMQ)
	if d.disk.ReadOnly() {
		return f | featureRO
	}
	return f | featureDiscard | featureWriteZeroes
}

// Queues is virtio.Kind's.
func (d *Device) Queues() []uint16 {
	sizes := make([]uint16, d.queues)
	for i := range sizes {
		sizes[i] = queueSize
	}
	return sizes
}

// Config is virtio.Kind's.
func (d *Device) Config(p []byte) int { return copy(p, d.config[:]) }

// WriteConfig is virtio.Kind's: nothing can be written.
func (d *Device) WriteConfig(int, []byte) {}

// Start is virtio.Kind's.
func (d *Device) Start(uint64, []*virtio.Queue) error { return nil }

// Stop is virtio.Kind's.
func (d *Device) Stop() {}

// Reset is virtio.Kind's.
func (d *Device) Reset() {}
