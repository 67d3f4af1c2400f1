package balloon

import (
	"math/bits"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	labtest.CheckABI(t, []string{"linux/virtio_balloon.h"}, []labtest.ABIValue{
		{Expr: "VIRTIO_BALLOON_F_STATS_VQ", Ours: bit(featureStats)},
		{Expr: "VIRTIO_BALLOON_F_DEFLATE_ON_OOM", Ours: bit(featureOOM)},
		{Expr: "VIRTIO_BALLOON_F_REPORTING", Ours: bit(featureReporting)},
		{Expr: "VIRTIO_BALLOON_PFN_SHIFT", Ours: pfnShift},
		{Expr: "offsetof(struct virtio_balloon_config, num_pages)", Ours: configPages},
		{Expr: "offsetof(struct virtio_balloon_config, actual)", Ours: configActual},
		{Expr: "sizeof(struct virtio_balloon_config)", Ours: configLen},
		{Expr: "sizeof(struct virtio_balloon_stat)", Ours: statLen},
		{Expr: "VIRTIO_BALLOON_S_SWAP_IN", Ours: statSwapIn},
		{Expr: "VIRTIO_BALLOON_S_SWAP_OUT", Ours: statSwapOut},
		{Expr: "VIRTIO_BALLOON_S_MAJFLT", Ours: statMajorFaults},
		{Expr: "VIRTIO_BALLOON_S_MINFLT", Ours: statMinorFaults},
		{Expr: "VIRTIO_BALLOON_S_MEMFREE", Ours: statFree},
		{Expr: "VIRTIO_BALLOON_S_MEMTOT", Ours: statTotal},
		{Expr: "VIRTIO_BALLOON_S_AVAIL", Ours: statAvailable},
		{Expr: "VIRTIO_BALLOON_S_CACHES", Ours: statCaches},
		{Expr: "VIRTIO_BALLOON_S_NR", Ours: statCount},
	})
}

// bit is the number of a feature.
func bit(feature uint64) uint64 { return uint64(bits.TrailingZeros64(feature)) }
