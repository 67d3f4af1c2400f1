// Package acpi builds the ACPI tables of a machine (ACPI specification 6.5): what
// Linux needs to find the processors, the interrupt controllers, the PCI bus and
// the platform's devices, and to switch the machine off.
//
// It must not import anything of Vantage but packages hypervisor and layout.
package acpi
