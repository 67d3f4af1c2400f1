package block

import (
	"math/bits"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	labtest.CheckABI(t, []string{"linux/virtio_blk.h"}, []labtest.ABIValue{
		{Expr: "VIRTIO_BLK_F_SEG_MAX", Ours: bit(featureSegMax)},
		{Expr: "VIRTIO_BLK_F_RO", Ours: bit(featureRO)},
		{Expr: "VIRTIO_BLK_F_BLK_SIZE", Ours: bit(featureBlkSize)},
		{Expr: "VIRTIO_BLK_F_FLUSH", Ours: bit(featureFlush)},
		{Expr: "VIRTIO_BLK_F_TOPOLOGY", Ours: bit(featureTopology)},
		{Expr: "VIRTIO_BLK_F_MQ", Ours: bit(featureMQ)},
		{Expr: "VIRTIO_BLK_F_DISCARD", Ours: bit(featureDiscard)},
		{Expr: "VIRTIO_BLK_F_WRITE_ZEROES", Ours: bit(featureWriteZeroes)},
		{Expr: "VIRTIO_BLK_T_IN", Ours: typeIn},
		{Expr: "VIRTIO_BLK_T_OUT", Ours: typeOut},
		{Expr: "VIRTIO_BLK_T_FLUSH", Ours: typeFlush},
		{Expr: "VIRTIO_BLK_T_GET_ID", Ours: typeGetID},
		{Expr: "VIRTIO_BLK_T_DISCARD", Ours: typeDiscard},
		{Expr: "VIRTIO_BLK_T_WRITE_ZEROES", Ours: typeWriteZeroes},
		{Expr: "VIRTIO_BLK_S_OK", Ours: statusOK},
		{Expr: "VIRTIO_BLK_S_IOERR", Ours: statusIOErr},
		{Expr: "VIRTIO_BLK_S_UNSUPP", Ours: statusUnsupported},
		{Expr: "VIRTIO_BLK_ID_BYTES", Ours: idLen},
		{Expr: "sizeof(struct virtio_blk_outhdr)", Ours: headerLen},
		{Expr: "sizeof(struct virtio_blk_discard_write_zeroes)", Ours: rangeLen},
		{Expr: "VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP", Ours: rangeUnmap},
		{Expr: "offsetof(struct virtio_blk_config, capacity)", Ours: configCapacity},
		{Expr: "offsetof(struct virtio_blk_config, seg_max)", Ours: configSegMax},
		{Expr: "offsetof(struct virtio_blk_config, blk_size)", Ours: configBlkSize},
		{Expr: "offsetof(struct virtio_blk_config, physical_block_exp)", Ours: configPhysicalExp},
		{Expr: "offsetof(struct virtio_blk_config, min_io_size)", Ours: configMinIO},
		{Expr: "offsetof(struct virtio_blk_config, num_queues)", Ours: configQueues},
		{Expr: "offsetof(struct virtio_blk_config, max_discard_sectors)", Ours: configDiscardMax},
		{Expr: "offsetof(struct virtio_blk_config, max_discard_seg)", Ours: configDiscardSegs},
		{Expr: "offsetof(struct virtio_blk_config, discard_sector_alignment)", Ours: configDiscardAlign},
		{Expr: "offsetof(struct virtio_blk_config, max_write_zeroes_sectors)", Ours: configZeroesMax},
		{Expr: "offsetof(struct virtio_blk_config, max_write_zeroes_seg)", Ours: configZeroesSegs},
		{Expr: "offsetof(struct virtio_blk_config, write_zeroes_may_unmap)", Ours: configZeroesUnmap},
		{Expr: "offsetof(struct virtio_blk_config, unused1) + 3", Ours: configLen},
	})
}

// bit is the number of a feature.
func bit(feature uint64) uint64 { return uint64(bits.TrailingZeros64(feature)) }
