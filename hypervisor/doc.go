// Package hypervisor is how the rest of Vantage reaches virtual machines: the
// types of an address, of guest memory, of a vCPU's registers, and the small
// capabilities that a driver may offer.
//
// A driver (package hypervisor/qemu, hypervisor/image, …) implements Driver
// and returns values that implement VM. A VM offers further capabilities
// (Mapper, Pauser, RegisterReader, …) by implementing them; a consumer asks
// with As, and gets a *NotSupportedError that names the remedy when the VM
// cannot. What a memory file cannot do (write, pause) it cannot do by type.
//
// This package must not import any other package of Vantage: it knows neither
// drivers nor what runs in a guest.
package hypervisor
