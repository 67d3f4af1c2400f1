package core

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
)

// doorbell is an eventfd that guest writes are tied to.
type doorbell struct {
	vm    *VM
	addr  uint64
	size  int
	match *uint64
	fd    int
	// reading keeps the descriptor open while Wait reads it.
	reading sync.Mutex
	closed  atomic.Bool
}

// NewDoorbell is bus.Doorbells'.
func (vm *VM) NewDoorbell(addr uint64, size int, match *uint64) (bus.Doorbell, error) {
	// Blocking: its reader has a thread of its own, which the kernel wakes without
	// a detour by Go's poller.
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("doorbell at %#x: eventfd: %w", addr, err)
	}
	d := &doorbell{vm: vm, addr: addr, size: size, match: match, fd: fd}
	if err := vm.kvm.IOEventFD(fd, addr, size, match, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("doorbell at %#x: %w", addr, err)
	}
	return d, nil
}

func (d *doorbell) FD() int { return d.fd }

func (d *doorbell) Wait() bool {
	d.reading.Lock()
	defer d.reading.Unlock()
	var b [8]byte
	for !d.closed.Load() {
		if n, err := unix.Read(d.fd, b[:]); n == len(b) && err == nil {
			return !d.closed.Load()
		} else if err != unix.EINTR {
			return false
		}
	}
	return false
}

func (d *doorbell) Ring() {
	one := [8]byte{1}
	_, _ = unix.Write(d.fd, one[:])
}

// Close unties it, wakes who waits, and returns when they are gone.
func (d *doorbell) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	err := d.vm.kvm.IOEventFD(d.fd, d.addr, d.size, d.match, false)
	d.Ring()
	d.reading.Lock()
	defer d.reading.Unlock()
	return errors.Join(err, unix.Close(d.fd))
}
