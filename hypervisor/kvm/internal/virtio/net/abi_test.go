package net

import (
	"math/bits"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	labtest.CheckABI(t, []string{"linux/virtio_net.h", "linux/if_tun.h", "linux/if_ether.h", "linux/uio.h"}, []labtest.ABIValue{
		{Expr: "VIRTIO_NET_F_CSUM", Ours: bit(featureCsum)},
		{Expr: "VIRTIO_NET_F_GUEST_CSUM", Ours: bit(featureGuestCsum)},
		{Expr: "VIRTIO_NET_F_MTU", Ours: bit(featureMTU)},
		{Expr: "VIRTIO_NET_F_MAC", Ours: bit(featureMAC)},
		{Expr: "VIRTIO_NET_F_GUEST_TSO4", Ours: bit(featureGuestTSO4)},
		{Expr: "VIRTIO_NET_F_GUEST_TSO6", Ours: bit(featureGuestTSO6)},
		{Expr: "VIRTIO_NET_F_GUEST_ECN", Ours: bit(featureGuestECN)},
		{Expr: "VIRTIO_NET_F_HOST_TSO4", Ours: bit(featureHostTSO4)},
		{Expr: "VIRTIO_NET_F_HOST_TSO6", Ours: bit(featureHostTSO6)},
		{Expr: "VIRTIO_NET_F_HOST_ECN", Ours: bit(featureHostECN)},
		{Expr: "VIRTIO_NET_F_MRG_RXBUF", Ours: bit(featureMergeable)},
		{Expr: "VIRTIO_NET_F_STATUS", Ours: bit(featureStatus)},
		{Expr: "VIRTIO_NET_F_CTRL_VQ", Ours: bit(featureCtrl)},
		{Expr: "VIRTIO_NET_F_CTRL_RX", Ours: bit(featureCtrlRX)},
		{Expr: "VIRTIO_NET_F_CTRL_RX_EXTRA", Ours: bit(featureCtrlExtra)},
		{Expr: "VIRTIO_NET_F_CTRL_MAC_ADDR", Ours: bit(featureCtrlMAC)},
		{Expr: "offsetof(struct virtio_net_config, mac)", Ours: configMAC},
		{Expr: "offsetof(struct virtio_net_config, status)", Ours: configStatus},
		{Expr: "offsetof(struct virtio_net_config, mtu)", Ours: configMTU},
		{Expr: "VIRTIO_NET_S_LINK_UP", Ours: linkUp},
		{Expr: "sizeof(struct virtio_net_hdr_v1)", Ours: headerLen},
		{Expr: "offsetof(struct virtio_net_hdr_v1, num_buffers)", Ours: headerBuffers},
		{Expr: "ETH_ALEN", Ours: macLen},
		{Expr: "sizeof(struct virtio_net_ctrl_hdr)", Ours: ctrlHeaderLen},
		{Expr: "VIRTIO_NET_CTRL_RX", Ours: ctrlRX},
		{Expr: "VIRTIO_NET_CTRL_RX_PROMISC", Ours: ctrlPromisc},
		{Expr: "VIRTIO_NET_CTRL_RX_ALLMULTI", Ours: ctrlAllMulti},
		{Expr: "VIRTIO_NET_CTRL_RX_ALLUNI", Ours: ctrlAllUni},
		{Expr: "VIRTIO_NET_CTRL_RX_NOMULTI", Ours: ctrlNoMulti},
		{Expr: "VIRTIO_NET_CTRL_RX_NOUNI", Ours: ctrlNoUni},
		{Expr: "VIRTIO_NET_CTRL_RX_NOBCAST", Ours: ctrlNoBcast},
		{Expr: "VIRTIO_NET_CTRL_MAC", Ours: ctrlMAC},
		{Expr: "VIRTIO_NET_CTRL_MAC_TABLE_SET", Ours: ctrlMACTable},
		{Expr: "VIRTIO_NET_CTRL_MAC_ADDR_SET", Ours: ctrlMACAddr},
		{Expr: "VIRTIO_NET_OK", Ours: ctrlOK},
		{Expr: "VIRTIO_NET_ERR", Ours: ctrlErr},
		{Expr: "TUN_F_CSUM", Ours: tunCsum},
		{Expr: "TUN_F_TSO4", Ours: tunTSO4},
		{Expr: "TUN_F_TSO6", Ours: tunTSO6},
		{Expr: "TUN_F_TSO_ECN", Ours: tunTSOECN},
		{Expr: "UIO_MAXIOV", Ours: maxIov},
	})
}

// bit is the number of a feature.
func bit(feature uint64) uint64 { return uint64(bits.TrailingZeros64(feature)) }
