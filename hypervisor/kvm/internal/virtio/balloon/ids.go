package balloon

import "encoding/binary"

var le = binary.LittleEndian

// Features and configuration (linux/virtio_balloon.h).
const (
	featureStats     = 1 << 1 // VIRTIO_BALLOON_F_STATS_VQ
	featureOOM       = 1 << 2 // VIRTIO_BALLOON_F_DEFLATE_ON_OOM
	featureReporting = 1 << 5 // VIRTIO_BALLOON_F_REPORTING

	pfnShift = 12 // VIRTIO_BALLOON_PFN_SHIFT

	configPages  = 0 // that the guest is to give up
	configActual = 4 // that it has given up
	configLen    = 16

	statLen = 10 // sizeof(struct virtio_balloon_stat)
)

// Tags of statistics (VIRTIO_BALLOON_S_*).
const (
	statSwapIn      = 0
	statSwapOut     = 1
	statMajorFaults = 2
	statMinorFaults = 3
	statFree        = 4
	statTotal       = 5
	statAvailable   = 6
	statCaches      = 7
	statCount       = 10
)
