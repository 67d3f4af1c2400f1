package pci

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Numbers are the kernel headers', as a C compiler sees them.
func TestABI(t *testing.T) {
	labtest.CheckABI(t, []string{"linux/pci_regs.h"}, []labtest.ABIValue{
		{Expr: "PCI_VENDOR_ID", Ours: regVendor},
		{Expr: "PCI_DEVICE_ID", Ours: regDevice},
		{Expr: "PCI_COMMAND", Ours: regCommand},
		{Expr: "PCI_STATUS", Ours: regStatus},
		{Expr: "PCI_REVISION_ID", Ours: regRevision},
		{Expr: "PCI_CLASS_PROG", Ours: regClass},
		{Expr: "PCI_BASE_ADDRESS_0", Ours: regBAR},
		{Expr: "PCI_SUBSYSTEM_VENDOR_ID", Ours: regSubVendor},
		{Expr: "PCI_SUBSYSTEM_ID", Ours: regSubDevice},
		{Expr: "PCI_CAPABILITY_LIST", Ours: regCapabilities},
		{Expr: "PCI_INTERRUPT_LINE", Ours: regInterruptLine},
		{Expr: "PCI_INTERRUPT_PIN", Ours: regInterruptPin},
		{Expr: "PCI_STD_HEADER_SIZEOF", Ours: regFree},
		{Expr: "PCI_STD_NUM_BARS", Ours: maxBARs},
		{Expr: "PCI_CFG_SPACE_SIZE", Ours: configLen},
		{Expr: "PCI_CFG_SPACE_EXP_SIZE", Ours: extended},
		{Expr: "PCI_COMMAND_MEMORY", Ours: commandMemory},
		{Expr: "PCI_COMMAND_MASTER", Ours: commandMaster},
		{Expr: "PCI_COMMAND_INTX_DISABLE", Ours: commandINTxDisable},
		{Expr: "PCI_STATUS_INTERRUPT", Ours: statusInterrupt},
		{Expr: "PCI_STATUS_CAP_LIST", Ours: statusCapabilities},
		{Expr: "PCI_CAP_ID_MSIX", Ours: capMSIX},
		{Expr: "PCI_MSIX_FLAGS", Ours: msixFlags},
		{Expr: "PCI_MSIX_TABLE", Ours: msixTable},
		{Expr: "PCI_MSIX_PBA", Ours: msixPBA},
		{Expr: "PCI_CAP_MSIX_SIZEOF", Ours: msixLen},
		{Expr: "PCI_MSIX_FLAGS_ENABLE", Ours: msixEnable},
		{Expr: "PCI_MSIX_FLAGS_MASKALL", Ours: msixMaskAll},
		{Expr: "PCI_MSIX_ENTRY_SIZE", Ours: entrySize},
		{Expr: "PCI_MSIX_ENTRY_UPPER_ADDR", Ours: entryUpper},
		{Expr: "PCI_MSIX_ENTRY_DATA", Ours: entryData},
		{Expr: "PCI_MSIX_ENTRY_VECTOR_CTRL", Ours: entryControl},
		{Expr: "PCI_MSIX_ENTRY_CTRL_MASKBIT", Ours: entryMasked},
	})
}
