package block

import "encoding/binary"

var le = binary.LittleEndian

// Features (linux/virtio_blk.h, VIRTIO_BLK_F_*).
const (
	featureSegMax      = 1 << 2
	featureRO          = 1 << 5
	featureBlkSize     = 1 << 6
	featureFlush       = 1 << 9
	featureTopology    = 1 << 10
	featureMQ          = 1 << 12
	featureDiscard     = 1 << 13
	featureWriteZeroes = 1 << 14
)

// Types of requests (VIRTIO_BLK_T_*).
const (
	typeIn          = 0
	typeOut         = 1
	typeFlush       = 4
	typeGetID       = 8
	typeDiscard     = 11
	typeWriteZeroes = 13
)

// Status of a request (VIRTIO_BLK_S_*).
const (
	statusOK          = 0
	statusIOErr       = 1
	statusUnsupported = 2
)

const (
	sector    = 512
	headerLen = 16 // sizeof(struct virtio_blk_outhdr)
	idLen     = 20 // VIRTIO_BLK_ID_BYTES

	rangeLen   = 16 // sizeof(struct virtio_blk_discard_write_zeroes)
	rangeUnmap = 1  // VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
)

// Fields of struct virtio_blk_config.
const (
	configCapacity     = 0
	configSegMax       = 12
	configBlkSize      = 20
	configPhysicalExp  = 24
	configMinIO        = 26
	configQueues       = 34
	configDiscardMax   = 36
	configDiscardSegs  = 40
	configDiscardAlign = 44
	configZeroesMax    = 48
	configZeroesSegs   = 52
	configZeroesUnmap  = 56
	configLen          = 60
	physicalBlockExp   = 3 // 4096 bytes: what host filesystems write as a whole
	maxDiscardSectors  = 1 << 22
	maxZeroesSectors   = 1 << 16 // a disk may have to write them
	maxRanges          = 16
	minIOSectors       = 8
)
