// Package pci is a host bridge with one bus: configuration space by ports (PCI
// 3.0, 3.2.2.3.2: mechanism #1) and by memory (PCI Express 7.2.2), functions
// with memory BARs and capabilities, MSI-X and the four interrupt pins.
//
// A machine makes a Host, gives each device a Function (Host.Add) in the order
// of its configuration, and puts the Host's state (bus.Saved) in front of its
// devices'. BARs have addresses in layout.PCIWindow from the start; a guest may
// move them inside that window, never over RAM. INTA of slot n is line
// layout.PCIIRQBase + n%4: the ACPI tables say so.
//
// All that a guest writes goes through masks and checks: it can make a function
// of its own useless and nothing else. The package must not import anything but
// packages hypervisor, bus and layout.
package pci
