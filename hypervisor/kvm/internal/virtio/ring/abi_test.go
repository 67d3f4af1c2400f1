package ring

import (
	"testing"
	"unsafe"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	var d descriptor
	labtest.CheckABI(t, []string{"linux/virtio_ring.h"}, []labtest.ABIValue{
		{Expr: "sizeof(struct vring_desc)", Ours: descSize},
		{Expr: "sizeof(struct vring_desc)", Ours: uint64(unsafe.Sizeof(d))},
		{Expr: "offsetof(struct vring_desc, addr)", Ours: uint64(unsafe.Offsetof(d.addr))},
		{Expr: "offsetof(struct vring_desc, len)", Ours: uint64(unsafe.Offsetof(d.len))},
		{Expr: "offsetof(struct vring_desc, flags)", Ours: uint64(unsafe.Offsetof(d.flags))},
		{Expr: "offsetof(struct vring_desc, next)", Ours: uint64(unsafe.Offsetof(d.next))},
		{Expr: "offsetof(struct vring_avail, flags)", Ours: ringFlags},
		{Expr: "offsetof(struct vring_avail, idx)", Ours: ringIndex},
		{Expr: "offsetof(struct vring_avail, ring)", Ours: ringEntries},
		{Expr: "offsetof(struct vring_used, flags)", Ours: ringFlags},
		{Expr: "offsetof(struct vring_used, idx)", Ours: ringIndex},
		{Expr: "offsetof(struct vring_used, ring)", Ours: ringEntries},
		{Expr: "sizeof(struct vring_used_elem)", Ours: usedSize},
		{Expr: "VRING_DESC_F_NEXT", Ours: descNext},
		{Expr: "VRING_DESC_F_WRITE", Ours: descWrite},
		{Expr: "VRING_DESC_F_INDIRECT", Ours: descIndirect},
		{Expr: "VRING_AVAIL_F_NO_INTERRUPT", Ours: availNoInterrupt},
		{Expr: "VRING_USED_F_NO_NOTIFY", Ours: usedNoNotify},
	})
}
