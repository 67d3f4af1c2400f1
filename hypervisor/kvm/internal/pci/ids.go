package pci

import "encoding/binary"

// Vendors (linux/pci_ids.h keeps the list).
const (
	VendorRedHat = 0x1b36
	VendorVirtio = 0x1af4 // PCI_VENDOR_ID_REDHAT_QUMRANET; of all virtio devices
)

const (
	deviceHostBridge = 0x0008 // a bridge that Linux has no quirks for
	classHostBridge  = 0x060000
)

// Registers of a type 0 configuration space (linux/pci_regs.h, PCI_*).
const (
	regVendor        = 0x00
	regDevice        = 0x02
	regCommand       = 0x04
	regStatus        = 0x06
	regRevision      = 0x08
	regClass         = 0x09 // three bytes
	regHeader        = 0x0e
	regBAR           = 0x10
	regSubVendor     = 0x2c
	regSubDevice     = 0x2e
	regCapabilities  = 0x34
	regInterruptLine = 0x3c
	regInterruptPin  = 0x3d
	regFree          = 0x40 // where capabilities begin

	maxBARs = 6
)

// Bits of the command and status registers.
const (
	commandMemory      = 0x2
	commandMaster      = 0x4
	commandINTxDisable = 0x400
	statusInterrupt    = 0x8
	statusCapabilities = 0x10
)

// The MSI-X capability and its table (linux/pci_regs.h, PCI_MSIX_*).
const (
	capMSIX       = 0x11
	msixFlags     = 2
	msixTable     = 4
	msixPBA       = 8
	msixLen       = 12
	msixEnable    = 0x8000
	msixMaskAll   = 0x4000
	entrySize     = 16
	entryUpper    = 4
	entryData     = 8
	entryControl  = 12
	entryMasked   = 1
	pbaOffset     = 0x800 // in the BAR of the table
	msixBARSize   = 0x1000
	maxMSIXVector = pbaOffset / entrySize
)

var le = binary.LittleEndian
