package net

import "encoding/binary"

var le = binary.LittleEndian

// Features (linux/virtio_net.h, VIRTIO_NET_F_*).
const (
	featureCsum      = 1 << 0
	featureGuestCsum = 1 << 1
	featureMTU       = 1 << 3
	featureMAC       = 1 << 5
	featureGuestTSO4 = 1 << 7
	featureGuestTSO6 = 1 << 8
	featureGuestECN  = 1 << 9
	featureHostTSO4  = 1 << 11
	featureHostTSO6  = 1 << 12
	featureHostECN   = 1 << 13
	featureMergeable = 1 << 15 // VIRTIO_NET_F_MRG_RXBUF
	featureStatus    = 1 << 16
	featureCtrl      = 1 << 17 // VIRTIO_NET_F_CTRL_VQ
	featureCtrlRX    = 1 << 18
	featureCtrlExtra = 1 << 20 // VIRTIO_NET_F_CTRL_RX_EXTRA
	featureCtrlMAC   = 1 << 23 // VIRTIO_NET_F_CTRL_MAC_ADDR
)

// Fields of struct virtio_net_config.
const (
	configMAC    = 0
	configStatus = 6
	configMTU    = 10
	configLen    = 12

	linkUp = 1 // VIRTIO_NET_S_LINK_UP
)

// The header in front of each packet, struct virtio_net_hdr_v1.
const (
	headerLen     = 12
	headerBuffers = 10 // num_buffers

	macLen = 6 // ETH_ALEN
	// maxPacket is the longest that a tap gives or takes: 64 KiB of segments and
	// their headers.
	maxPacket = headerLen + 65536 + 128
)

// Queues.
const (
	queueRX   = 0
	queueTX   = 1
	queueCtrl = 2

	queueSize     = 256
	queueCtrlSize = 64
)

// Commands (VIRTIO_NET_CTRL_*).
const (
	ctrlRX        = 0
	ctrlPromisc   = 0
	ctrlAllMulti  = 1
	ctrlAllUni    = 2
	ctrlNoMulti   = 3
	ctrlNoUni     = 4
	ctrlNoBcast   = 5
	ctrlMAC       = 1
	ctrlMACTable  = 0
	ctrlMACAddr   = 1
	ctrlOK        = 0 // VIRTIO_NET_OK
	ctrlErr       = 1 // VIRTIO_NET_ERR
	ctrlHeaderLen = 2 // sizeof(struct virtio_net_ctrl_hdr)

	// maxTable is how many addresses a filter has; with more it takes all.
	maxTable = 64
	// maxListed is how many it may list at most.
	maxListed = 4096
)

// Offloads that a tap can be told of (linux/if_tun.h, TUN_F_*).
const (
	tunCsum   = 1
	tunTSO4   = 2
	tunTSO6   = 4
	tunTSOECN = 8
)
