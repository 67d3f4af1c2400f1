package virtio

import (
	"math/bits"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	labtest.CheckABI(t, []string{"linux/virtio_ids.h", "linux/virtio_config.h", "linux/virtio_ring.h", "linux/virtio_pci.h", "linux/pci_regs.h"}, []labtest.ABIValue{
		{Expr: "VIRTIO_ID_NET", Ours: TypeNet},
		{Expr: "VIRTIO_ID_BLOCK", Ours: TypeBlock},
		{Expr: "VIRTIO_ID_CONSOLE", Ours: TypeConsole},
		{Expr: "VIRTIO_ID_RNG", Ours: TypeRNG},
		{Expr: "VIRTIO_ID_BALLOON", Ours: TypeBalloon},
		{Expr: "VIRTIO_ID_VSOCK", Ours: TypeVsock},
		{Expr: "VIRTIO_RING_F_INDIRECT_DESC", Ours: bit(FeatureIndirect)},
		{Expr: "VIRTIO_RING_F_EVENT_IDX", Ours: bit(FeatureEventIndex)},
		{Expr: "VIRTIO_F_VERSION_1", Ours: bit(FeatureVersion1)},
		{Expr: "VIRTIO_CONFIG_S_ACKNOWLEDGE", Ours: statusAcknowledge},
		{Expr: "VIRTIO_CONFIG_S_DRIVER", Ours: statusDriver},
		{Expr: "VIRTIO_CONFIG_S_DRIVER_OK", Ours: statusDriverOK},
		{Expr: "VIRTIO_CONFIG_S_FEATURES_OK", Ours: statusFeaturesOK},
		{Expr: "VIRTIO_CONFIG_S_NEEDS_RESET", Ours: statusNeedsReset},
		{Expr: "VIRTIO_CONFIG_S_FAILED", Ours: statusFailed},
		{Expr: "VIRTIO_MSI_NO_VECTOR", Ours: noVector},
		{Expr: "PCI_CAP_ID_VNDR", Ours: capVendor},
		{Expr: "VIRTIO_PCI_CAP_COMMON_CFG", Ours: capCommon},
		{Expr: "VIRTIO_PCI_CAP_NOTIFY_CFG", Ours: capNotify},
		{Expr: "VIRTIO_PCI_CAP_ISR_CFG", Ours: capISR},
		{Expr: "VIRTIO_PCI_CAP_DEVICE_CFG", Ours: capDevice},
		{Expr: "VIRTIO_PCI_CAP_PCI_CFG", Ours: capConfig},
		{Expr: "sizeof(struct virtio_pci_cap)", Ours: capLen},
		{Expr: "sizeof(struct virtio_pci_notify_cap)", Ours: capNotifyLen},
		{Expr: "sizeof(struct virtio_pci_cfg_cap)", Ours: capConfigLen},
		{Expr: "VIRTIO_PCI_COMMON_DFSELECT", Ours: commonDeviceSelect},
		{Expr: "VIRTIO_PCI_COMMON_DF", Ours: commonDevice},
		{Expr: "VIRTIO_PCI_COMMON_GFSELECT", Ours: commonDriverSelect},
		{Expr: "VIRTIO_PCI_COMMON_GF", Ours: commonDriver},
		{Expr: "VIRTIO_PCI_COMMON_MSIX", Ours: commonVector},
		{Expr: "VIRTIO_PCI_COMMON_NUMQ", Ours: commonQueues},
		{Expr: "VIRTIO_PCI_COMMON_STATUS", Ours: commonStatus},
		{Expr: "VIRTIO_PCI_COMMON_CFGGENERATION", Ours: commonGeneration},
		{Expr: "VIRTIO_PCI_COMMON_Q_SELECT", Ours: commonSelect},
		{Expr: "VIRTIO_PCI_COMMON_Q_SIZE", Ours: commonQueueSize},
		{Expr: "VIRTIO_PCI_COMMON_Q_MSIX", Ours: commonQueueVector},
		{Expr: "VIRTIO_PCI_COMMON_Q_ENABLE", Ours: commonQueueEnable},
		{Expr: "VIRTIO_PCI_COMMON_Q_NOFF", Ours: commonQueueNotify},
		{Expr: "VIRTIO_PCI_COMMON_Q_DESCLO", Ours: commonQueueDesc},
		{Expr: "VIRTIO_PCI_COMMON_Q_AVAILLO", Ours: commonQueueAvail},
		{Expr: "VIRTIO_PCI_COMMON_Q_USEDLO", Ours: commonQueueUsed},
		{Expr: "sizeof(struct virtio_pci_common_cfg)", Ours: commonLen},
		{Expr: "VIRTIO_PCI_ISR_CONFIG", Ours: isrConfig},
	})
}

// bit is the number of a feature.
func bit(feature uint64) uint64 { return uint64(bits.TrailingZeros64(feature)) }
