package vhost

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers, sizes and offsets are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	var (
		state  vringState
		file   vringFile
		addr   vringAddr
		region memoryRegion
		table  memoryTable
	)
	labtest.CheckABI(t, []string{"linux/vhost.h"}, []labtest.ABIValue{
		{Expr: "VHOST_SET_OWNER", Ours: setOwner},
		{Expr: "VHOST_GET_FEATURES", Ours: getFeatures},
		{Expr: "VHOST_SET_FEATURES", Ours: setFeatures},
		{Expr: "VHOST_SET_MEM_TABLE", Ours: setMemTable},
		{Expr: "VHOST_SET_VRING_NUM", Ours: setVringNum},
		{Expr: "VHOST_SET_VRING_ADDR", Ours: setVringAddr},
		{Expr: "VHOST_SET_VRING_BASE", Ours: setVringBase},
		{Expr: "VHOST_GET_VRING_BASE", Ours: getVringBase},
		{Expr: "VHOST_SET_VRING_KICK", Ours: setVringKick},
		{Expr: "VHOST_SET_VRING_CALL", Ours: setVringCall},
		{Expr: "VHOST_NET_SET_BACKEND", Ours: netSetBackend},
		{Expr: "VHOST_VSOCK_SET_GUEST_CID", Ours: vsockSetCID},
		{Expr: "VHOST_VSOCK_SET_RUNNING", Ours: vsockSetRunning},
		{Expr: "sizeof(struct vhost_vring_state)", Ours: uint64(unsafe.Sizeof(state))},
		{Expr: "offsetof(struct vhost_vring_state, num)", Ours: uint64(unsafe.Offsetof(state.num))},
		{Expr: "sizeof(struct vhost_vring_file)", Ours: uint64(unsafe.Sizeof(file))},
		{Expr: "offsetof(struct vhost_vring_file, fd)", Ours: uint64(unsafe.Offsetof(file.fd))},
		{Expr: "sizeof(struct vhost_vring_addr)", Ours: uint64(unsafe.Sizeof(addr))},
		{Expr: "offsetof(struct vhost_vring_addr, desc_user_addr)", Ours: uint64(unsafe.Offsetof(addr.desc))},
		{Expr: "offsetof(struct vhost_vring_addr, used_user_addr)", Ours: uint64(unsafe.Offsetof(addr.used))},
		{Expr: "offsetof(struct vhost_vring_addr, avail_user_addr)", Ours: uint64(unsafe.Offsetof(addr.avail))},
		{Expr: "offsetof(struct vhost_vring_addr, log_guest_addr)", Ours: uint64(unsafe.Offsetof(addr.log))},
		{Expr: "sizeof(struct vhost_memory_region)", Ours: uint64(unsafe.Sizeof(region))},
		{Expr: "offsetof(struct vhost_memory_region, guest_phys_addr)", Ours: uint64(unsafe.Offsetof(region.guest))},
		{Expr: "offsetof(struct vhost_memory_region, memory_size)", Ours: uint64(unsafe.Offsetof(region.size))},
		{Expr: "offsetof(struct vhost_memory_region, userspace_addr)", Ours: uint64(unsafe.Offsetof(region.user))},
		{Expr: "offsetof(struct vhost_memory, regions)", Ours: uint64(unsafe.Offsetof(table.regions))},
	})
}

// Where the host has no vhost the error says what to do; what is no vhost device
// is refused.
func TestMissing(t *testing.T) {
	for path, open := range map[string]func() (*os.File, error){"/dev/vhost-net": OpenNet, "/dev/vhost-vsock": OpenVsock} {
		f, err := open()
		if err == nil {
			f.Close()
			continue
		}
		var missing *hypervisor.NotSupportedError
		if _, serr := os.Stat(path); os.IsNotExist(serr) && (!errors.As(err, &missing) || missing.Remedy == "") {
			t.Errorf("%s: %v", path, err)
		}
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := New(f, nil); err == nil {
		t.Error("/dev/null is a vhost device")
	}
}
