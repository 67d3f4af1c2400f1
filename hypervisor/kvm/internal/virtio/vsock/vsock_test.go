package vsock

import (
	"math/bits"
	"os"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	labtest.CheckABI(t, []string{"linux/virtio_vsock.h", "sys/socket.h", "linux/vm_sockets.h"}, []labtest.ABIValue{
		{Expr: "VMADDR_CID_HOST + 1", Ours: MinCID},
		{Expr: "sizeof(char) * VIRTIO_VSOCK_EVENT_TRANSPORT_RESET", Ours: eventReset},
		{Expr: "VIRTIO_VSOCK_F_SEQPACKET", Ours: bit(featureSeqPacket)},
		{Expr: "sizeof(struct virtio_vsock_event)", Ours: eventLength},
		{Expr: "sizeof(struct virtio_vsock_config)", Ours: configLen},
	})
}

func TestRefused(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, cid := range []uint32{0, 1, 2, 3, 1<<32 - 1} {
		if _, err := New(f, cid, nil); err == nil {
			t.Errorf("context ID %d on /dev/null is taken", cid)
		}
	}
}

// bit is the number of a feature.
func bit(feature uint64) uint64 { return uint64(bits.TrailingZeros64(feature)) }
