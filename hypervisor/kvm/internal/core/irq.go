package core

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/kvmapi"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// line is a pin of the I/O APIC, and of the PICs below 16.
type line struct {
	vm  *VM
	gsi uint32
}

// Line returns interrupt line gsi, below layout.MSIBase.
func (vm *VM) Line(gsi uint32) bus.Line { return line{vm, gsi} }

func (l line) Set(level bool) {
	if err := l.vm.kvm.IRQLine(l.gsi, level); err != nil && !l.vm.closed.Load() {
		l.vm.log.Error("interrupt line cannot be set", "gsi", l.gsi, "error", err)
	}
}

// vector is a GSI that goes to a message, with its eventfd.
type vector struct {
	vm     *VM
	gsi    uint32
	fd     int  // eventfd
	routed bool // under vm.irq
	armed  bool // the eventfd is an irqfd; under vm.irq
	addr   uint64
	data   uint32
}

// NewVector is bus.MSI's.
func (vm *VM) NewVector() (bus.Vector, error) {
	vm.irq.Lock()
	defer vm.irq.Unlock()
	for i, used := range vm.irq.vectors {
		if used != nil {
			continue
		}
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			return nil, fmt.Errorf("interrupt vector: eventfd: %w", err)
		}
		v := &vector{vm: vm, gsi: uint32(layout.MSIBase + i), fd: fd}
		vm.irq.vectors[i] = v
		return v, nil
	}
	return nil, fmt.Errorf("interrupt vector: %d are in use: %w", layout.MSICount, hypervisor.ErrNoResources)
}

// Route is bus.Vector's. A masked vector's eventfd is not tied to the VM: what is
// signalled stays in its counter, and KVM looks at it when it is tied again.
func (v *vector) Route(addr uint64, data uint32, masked bool) error {
	v.vm.irq.Lock()
	defer v.vm.irq.Unlock()
	if v.armed && masked {
		if err := v.vm.kvm.IRQFD(v.fd, v.gsi, false); err != nil {
			return err
		}
		v.armed = false
	}
	if !v.routed && masked {
		return nil // nothing to keep: a message is set before it is unmasked
	}
	if !v.routed || v.addr != addr || v.data != data {
		v.routed, v.addr, v.data = true, addr, data
		if err := v.vm.route(); err != nil {
			return err
		}
	}
	if !masked && !v.armed {
		if err := v.vm.kvm.IRQFD(v.fd, v.gsi, true); err != nil {
			return err
		}
		v.armed = true
	}
	return nil
}

// Signal is bus.Vector's.
func (v *vector) Signal() {
	one := [8]byte{1} // in the host's order, which is little endian on x86
	// A full counter (EAGAIN) says that a signal is pending anyway.
	_, _ = unix.Write(v.fd, one[:])
}

// EventFD is bus.Vector's.
func (v *vector) EventFD() int { return v.fd }

// Close is bus.Vector's.
func (v *vector) Close() error {
	v.vm.irq.Lock()
	defer v.vm.irq.Unlock()
	i := v.gsi - layout.MSIBase
	if v.vm.irq.vectors[i] != v {
		return nil
	}
	var errs []error
	if v.armed {
		errs = append(errs, v.vm.kvm.IRQFD(v.fd, v.gsi, false))
	}
	v.vm.irq.vectors[i] = nil
	if v.routed && !v.vm.closed.Load() {
		errs = append(errs, v.vm.route())
	}
	return errors.Join(append(errs, unix.Close(v.fd))...)
}

// route tells KVM all routes: KVM_SET_GSI_ROUTING replaces them. Called with
// vm.irq held, or before there is another goroutine.
func (vm *VM) route() error {
	const chipPIC, chipPIC2, chipIOAPIC, pins, picPins = 0, 1, 2, layout.MSIBase, 8
	var routes []kvmapi.Route
	for gsi := range uint32(pins) {
		if gsi < 2*picPins && gsi != 2 {
			routes = append(routes, kvmapi.Route{GSI: gsi, Chip: chipPIC + gsi/picPins*chipPIC2, Pin: gsi % picPins})
		}
		pin := gsi
		if gsi == 0 {
			pin = 2 // the PIT: the MADT's interrupt source override says so
		}
		if gsi != 2 {
			routes = append(routes, kvmapi.Route{GSI: gsi, Chip: chipIOAPIC, Pin: pin})
		}
	}
	for _, v := range vm.irq.vectors {
		if v != nil && v.routed {
			routes = append(routes, kvmapi.Route{GSI: v.gsi, MSI: true, Addr: v.addr, Data: v.data})
		}
	}
	return vm.kvm.SetRouting(routes)
}

// HasIRQChip reports whether the VM has the kernel's interrupt controllers.
func (vm *VM) HasIRQChip() bool { return !vm.irq.none }
