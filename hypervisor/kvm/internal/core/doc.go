// Package core runs a guest's vCPUs on KVM: it owns the VM's and the vCPUs' file
// descriptors, enters the guest, routes its exits to the bus and to the trap
// engine, stops all vCPUs and lets them go on, and gives devices interrupts and
// doorbells.
//
// It knows no device, no boot protocol and no trap: these stand on it. It must
// not import anything of Vantage but package hypervisor and its neighbours bus,
// guestmem, kvmapi and layout.
package core
