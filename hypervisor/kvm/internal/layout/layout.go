// Package layout says where things are in the guest-physical and port address
// space of a machine of ours: what the loader, the ACPI tables, the devices and
// the core have to agree on. It must not import anything but package hypervisor.
package layout

import "github.com/vantage-vmi/vantage/hypervisor"

// Guest-physical addresses.
const (
	// LowRAMEnd is where RAM below 4 GiB ends at most; the rest of it begins at
	// HighRAM. What lies between is the devices'.
	LowRAMEnd hypervisor.PhysAddr = 0xc000_0000
	HighRAM   hypervisor.PhysAddr = 0x1_0000_0000

	// The window in which PCI BARs are put, and the memory-mapped configuration
	// space (PCI Express base specification, 7.2.2) of one bus.
	PCIWindow     hypervisor.PhysAddr = 0xc000_0000
	PCIWindowSize uint64              = 0x2000_0000
	PCIECAM       hypervisor.PhysAddr = 0xe000_0000
	PCIECAMSize   uint64              = 1 << 20

	IOAPIC hypervisor.PhysAddr = 0xfec0_0000
	LAPIC  hypervisor.PhysAddr = 0xfee0_0000
	// IdentityMap and TSS are pages that KVM on Intel needs for guests in real
	// mode (KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR).
	IdentityMap hypervisor.PhysAddr = 0xfffb_c000
	TSS         hypervisor.PhysAddr = 0xfffb_d000
)

// Guest-physical addresses in low RAM that the loader fills before the boot.
const (
	BootGDT     hypervisor.PhysAddr = 0x500
	BootParams  hypervisor.PhysAddr = 0x7000 // struct boot_params, or the PVH start info
	BootStack   hypervisor.PhysAddr = 0x8ff0
	BootTables  hypervisor.PhysAddr = 0x9000 // page tables, to 0xf000
	CommandLine hypervisor.PhysAddr = 0x20000
	// EBDA is where what the system knows as firmware's begins: ACPI tables from
	// ACPITables, with the RSDP in front of them.
	EBDA       hypervisor.PhysAddr = 0x9_fc00
	ACPITables hypervisor.PhysAddr = 0xe_0000 // RSDP; 128 KiB, not in the RAM that e820 shows
	VGAHole    hypervisor.PhysAddr = 0xa_0000
	Megabyte   hypervisor.PhysAddr = 0x10_0000
)

// Ports.
const (
	PortKeyboard  = 0x60 // i8042: data; 0x64 command (reset: 0xfe)
	PortRTC       = 0x70 // index; 0x71 data
	PortCOM1      = 0x3f8
	PortPVPanic   = 0x505
	PortPMEvents  = 0x600 // PM1a event block, 4 bytes
	PortPMControl = 0x604 // PM1a control block, 2 bytes
	PortPMTimer   = 0x608 // 4 bytes, 3.579545 MHz
	PortPCIConfig = 0xcf8 // address; 0xcfc data
	PortReset     = 0xcf9 // write of 6: reset (the FADT's reset register)
)

// Interrupt lines (GSIs).
const (
	IRQCOM1 = 4
	IRQRTC  = 8
	IRQSCI  = 9
	// PCIIRQBase is the first of the four lines that INTA to INTD share.
	PCIIRQBase = 16
	// MSIBase is the first GSI that routes to a message: the I/O APIC has the
	// ones below it.
	MSIBase = 24
	// MSICount is how many there are.
	MSICount = 1000
)

// RAM returns the ranges of a machine with size bytes of memory.
func RAM(size uint64) []hypervisor.Range {
	if size <= uint64(LowRAMEnd) {
		return []hypervisor.Range{{Start: 0, Size: size}}
	}
	return []hypervisor.Range{
		{Start: 0, Size: uint64(LowRAMEnd)},
		{Start: HighRAM, Size: size - uint64(LowRAMEnd)},
	}
}
