// Package vhost is the kernel's side of virtio queues (linux/vhost.h): it is told
// where a queue and the guest's memory are, and moves packets by itself.
//
// It must not import anything of Vantage but packages hypervisor and bus.
package vhost

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// Memory is a guest's RAM, all of which the kernel gets to see.
type Memory interface {
	bus.Memory
	// Ranges is hypervisor.Memory's. Each lies in one piece in a View.
	Ranges() []hypervisor.Range
}

// OpenNet opens /dev/vhost-net. Where the host has none the error wraps
// hypervisor.ErrNotSupported.
func OpenNet() (*os.File, error) {
	return open("/dev/vhost-net", "vhost-net", "load the module vhost_net, or do without")
}

// OpenVsock opens /dev/vhost-vsock. Where the host has none the error wraps
// hypervisor.ErrNotSupported.
func OpenVsock() (*os.File, error) {
	return open("/dev/vhost-vsock", "vsock", "load the module vhost_vsock on the host")
}

func open(path, what, remedy string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if os.IsNotExist(err) {
		return nil, &hypervisor.NotSupportedError{What: what, Driver: "kvm", Remedy: remedy}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return f, nil
}

// Backend is an open vhost device with an owner. Its methods are for one
// goroutine at a time.
type Backend struct {
	fd  int
	mem Memory
}

// New takes f into possession for this process; the caller closes it.
func New(f *os.File, mem Memory) (*Backend, error) {
	b := &Backend{int(f.Fd()), mem}
	if _, err := ioctl(b.fd, setOwner, 0); err != nil {
		return nil, fmt.Errorf("%s: VHOST_SET_OWNER: %w", f.Name(), err)
	}
	return b, nil
}

// Features returns what the kernel can do.
func (b *Backend) Features() (uint64, error) {
	var f uint64
	if err := ioctlPtr(b.fd, getFeatures, &f); err != nil {
		return 0, fmt.Errorf("VHOST_GET_FEATURES: %w", err)
	}
	return f, nil
}

// Setup says which features are used, and where the guest's memory is.
func (b *Backend) Setup(features uint64) error {
	if err := ioctlPtr(b.fd, setFeatures, &features); err != nil {
		return fmt.Errorf("VHOST_SET_FEATURES %#x: %w", features, err)
	}
	var table memoryTable
	for _, r := range b.mem.Ranges() {
		v, err := b.mem.View(r.Start, r.Size)
		if err != nil {
			return fmt.Errorf("vhost: memory %v: %w", r, err)
		}
		if int(table.count) == len(table.regions) {
			return fmt.Errorf("vhost: memory of more than %d pieces", len(table.regions))
		}
		table.regions[table.count] = memoryRegion{guest: uint64(r.Start), size: r.Size, user: addressOf(v)}
		table.count++
	}
	if err := ioctlPtr(b.fd, setMemTable, &table); err != nil {
		return fmt.Errorf("VHOST_SET_MEM_TABLE: %w", err)
	}
	return nil
}

// Queue is where a queue is.
type Queue struct {
	Size              int
	Desc, Avail, Used hypervisor.PhysAddr
	Next              uint16 // index of the next chain
	Kick, Call        int    // eventfds
}

// SetQueue tells where queue i is. It runs when it gets its backend.
func (b *Backend) SetQueue(i int, q Queue) error {
	n := uint64(q.Size)
	desc, err := b.mem.View(q.Desc, 16*n)
	if err != nil {
		return fmt.Errorf("vhost: descriptors: %w", err)
	}
	avail, err := b.mem.View(q.Avail, 6+2*n)
	if err != nil {
		return fmt.Errorf("vhost: available ring: %w", err)
	}
	used, err := b.mem.View(q.Used, 6+8*n)
	if err != nil {
		return fmt.Errorf("vhost: used ring: %w", err)
	}
	if err := ioctlPtr(b.fd, setVringNum, &vringState{uint32(i), uint32(n)}); err != nil {
		return fmt.Errorf("VHOST_SET_VRING_NUM: %w", err)
	}
	if err := ioctlPtr(b.fd, setVringBase, &vringState{uint32(i), uint32(q.Next)}); err != nil {
		return fmt.Errorf("VHOST_SET_VRING_BASE: %w", err)
	}
	addr := vringAddr{index: uint32(i), desc: addressOf(desc), avail: addressOf(avail), used: addressOf(used), log: uint64(q.Used)}
	if err := ioctlPtr(b.fd, setVringAddr, &addr); err != nil {
		return fmt.Errorf("VHOST_SET_VRING_ADDR: %w", err)
	}
	if err := ioctlPtr(b.fd, setVringKick, &vringFile{uint32(i), int32(q.Kick)}); err != nil {
		return fmt.Errorf("VHOST_SET_VRING_KICK: %w", err)
	}
	if err := ioctlPtr(b.fd, setVringCall, &vringFile{uint32(i), int32(q.Call)}); err != nil {
		return fmt.Errorf("VHOST_SET_VRING_CALL: %w", err)
	}
	return nil
}

// Stopped returns the index of the chain in front of which queue i has stopped,
// after it has lost its backend.
func (b *Backend) Stopped(i int) (next uint16, err error) {
	s := vringState{index: uint32(i)}
	if err := ioctlPtr(b.fd, getVringBase, &s); err != nil {
		return 0, fmt.Errorf("VHOST_GET_VRING_BASE: %w", err)
	}
	return uint16(s.num), nil
}

// SetNet lets queue i of vhost-net run with a tap, or stops it (-1).
func (b *Backend) SetNet(i, tap int) error {
	if err := ioctlPtr(b.fd, netSetBackend, &vringFile{uint32(i), int32(tap)}); err != nil {
		return fmt.Errorf("VHOST_NET_SET_BACKEND: %w", err)
	}
	return nil
}

// SetCID gives a vhost-vsock its context ID, which no other guest of the host may
// have.
func (b *Backend) SetCID(cid uint64) error {
	if err := ioctlPtr(b.fd, vsockSetCID, &cid); err != nil {
		return fmt.Errorf("vsock context ID %d: VHOST_VSOCK_SET_GUEST_CID: %w", cid, err)
	}
	return nil
}

// SetRunning lets vhost-vsock's queues run, or stops them.
func (b *Backend) SetRunning(on bool) error {
	var v int32
	if on {
		v = 1
	}
	if err := ioctlPtr(b.fd, vsockSetRunning, &v); err != nil {
		return fmt.Errorf("VHOST_VSOCK_SET_RUNNING: %w", err)
	}
	return nil
}

// DirtiedAll says that all memory may have been written: the kernel does not tell
// what it writes.
func (b *Backend) DirtiedAll() {
	for _, r := range b.mem.Ranges() {
		b.mem.Dirtied(r.Start, r.Size)
	}
}
