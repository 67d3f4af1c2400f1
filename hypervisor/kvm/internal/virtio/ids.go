package virtio

import "encoding/binary"

var le = binary.LittleEndian

// Types of devices (linux/virtio_ids.h).
const (
	TypeNet     = 1  // VIRTIO_ID_NET
	TypeBlock   = 2  // VIRTIO_ID_BLOCK
	TypeConsole = 3  // VIRTIO_ID_CONSOLE
	TypeRNG     = 4  // VIRTIO_ID_RNG
	TypeBalloon = 5  // VIRTIO_ID_BALLOON
	TypeVsock   = 19 // VIRTIO_ID_VSOCK
)

// Features of the transport (linux/virtio_config.h, linux/virtio_ring.h).
const (
	FeatureIndirect   = 1 << 28 // VIRTIO_RING_F_INDIRECT_DESC
	FeatureEventIndex = 1 << 29 // VIRTIO_RING_F_EVENT_IDX
	FeatureVersion1   = 1 << 32 // VIRTIO_F_VERSION_1

	transportFeatures = FeatureIndirect | FeatureEventIndex | FeatureVersion1
)

// Bits of the device status (linux/virtio_config.h, VIRTIO_CONFIG_S_*).
const (
	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8
	statusNeedsReset  = 0x40
	statusFailed      = 0x80

	statusOfDriver = statusAcknowledge | statusDriver | statusDriverOK | statusFeaturesOK | statusFailed
)

// PCI identity (virtio 1.2, 4.1.2).
const (
	pciDeviceBase = 0x1040
	pciRevision   = 1
	capVendor     = 9      // PCI_CAP_ID_VNDR
	noVector      = 0xffff // VIRTIO_MSI_NO_VECTOR
)

// Kinds of capabilities (linux/virtio_pci.h, VIRTIO_PCI_CAP_*).
const (
	capCommon = 1
	capNotify = 2
	capISR    = 3
	capDevice = 4
	capConfig = 5

	capLen       = 16 // sizeof(struct virtio_pci_cap)
	capNotifyLen = 20 // sizeof(struct virtio_pci_notify_cap)
	capConfigLen = 20 // sizeof(struct virtio_pci_cfg_cap)
)

// Where the structures are in BAR 0. Each has pages of its own.
const (
	offCommon = 0x0000
	offISR    = 0x1000
	offDevice = 0x2000
	offNotify = 0x3000
	barSize   = 0x4000
	pageSize  = 0x1000

	notifyMultiplier = 4
	isrLen           = 1

	// MaxQueues is how many queues a device can have: one MSI-X vector each, and
	// one for changes of the configuration.
	MaxQueues = 127
)

// Fields of the common configuration (linux/virtio_pci.h, VIRTIO_PCI_COMMON_*).
const (
	commonDeviceSelect = 0
	commonDevice       = 4
	commonDriverSelect = 8
	commonDriver       = 12
	commonVector       = 16
	commonQueues       = 18
	commonStatus       = 20
	commonGeneration   = 21
	commonSelect       = 22
	commonQueueSize    = 24
	commonQueueVector  = 26
	commonQueueEnable  = 28
	commonQueueNotify  = 30
	commonQueueDesc    = 32
	commonQueueAvail   = 40
	commonQueueUsed    = 48
	commonLen          = 56
)

// ISR status (linux/virtio_pci.h): what an interrupt by the pin was for.
const (
	isrQueue  = 1
	isrConfig = 2 // VIRTIO_PCI_ISR_CONFIG
)
