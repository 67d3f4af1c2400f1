package acpi

import (
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

const headerSize = 36

// table returns a table with its header and checksum (ACPI 6.5, 5.2.6).
func table(signature string, revision byte, body []byte) []byte {
	le := binary.LittleEndian
	b := append([]byte(signature), make([]byte, headerSize-4)...)
	b = append(b, body...)
	le.PutUint32(b[4:], uint32(len(b)))
	b[8] = revision
	copy(b[10:], "VANTGE")
	copy(b[16:], "VANTAGE ")
	le.PutUint32(b[24:], 1)
	copy(b[28:], "VNTG")
	le.PutUint32(b[32:], 1)
	b[9] = checksum(b)
	return b
}

// checksum is what makes the sum of b's bytes zero.
func checksum(b []byte) byte {
	var sum byte
	for _, c := range b {
		sum += c
	}
	return -sum
}

// Build returns the tables of a machine with the given number of vCPUs, whose
// APIC IDs are their indices. They go to layout.ACPITables, where the RSDP is.
func Build(vcpus int) ([]byte, error) {
	const rsdpSize = 36
	room := make([]byte, rsdpSize)
	base := layout.ACPITables
	add := func(align int, t []byte) uint64 {
		for len(room)%align != 0 {
			room = append(room, 0)
		}
		at := uint64(base) + uint64(len(room))
		room = append(room, t...)
		return at
	}
	facsAt := add(64, facs())
	dsdtAt := add(16, table("DSDT", 2, dsdt()))
	roots := []uint64{
		add(16, fadt(facsAt, dsdtAt)),
		add(16, madt(vcpus)),
		add(16, mcfg()),
	}
	var pointers []byte
	for _, r := range roots {
		pointers = binary.LittleEndian.AppendUint64(pointers, r)
	}
	xsdt := add(16, table("XSDT", 1, pointers))
	if most := int(layout.Megabyte - base); len(room) > most {
		return nil, fmt.Errorf("ACPI tables of %d bytes for %d vCPUs: at most %d", len(room), vcpus, most)
	}
	copy(room, rsdp(xsdt))
	return room, nil
}

// rsdp is the root pointer (5.2.5.3), which points to the XSDT.
func rsdp(xsdt uint64) []byte {
	b := make([]byte, 36)
	copy(b, "RSD PTR ")
	copy(b[9:], "VANTGE")
	b[15] = 2
	binary.LittleEndian.PutUint32(b[20:], uint32(len(b)))
	binary.LittleEndian.PutUint64(b[24:], xsdt)
	b[8] = checksum(b[:20])
	b[32] = checksum(b)
	return b
}

// facs has no checksum (5.2.10).
func facs() []byte {
	b := make([]byte, 64)
	copy(b, "FACS")
	b[4], b[32] = 64, 2
	return b
}

// Flags of the FADT (5.2.9).
const (
	fadtWBINVD    = 1 << 0
	fadtC1        = 1 << 2
	fadtNoSleep   = 1 << 5 // no fixed sleep button; the power button is fixed
	fadtTimer32   = 1 << 8
	fadtReset     = 1 << 10
	bootLegacy    = 1 << 0 // devices of the legacy bus, as the DSDT lists them
	bootNoVGA     = 1 << 2
	resetValue    = 6
	profileServer = 4
)

// fadt is the fixed ACPI description (5.2.9): PM1a, timer, reset register. There
// is no SMI command: the machine is in ACPI mode from the start.
func fadt(facs, dsdt uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, 276-headerSize)
	at := func(off int) []byte { return b[off-headerSize:] }
	gas := func(off int, width, access byte, port uint64) {
		f := at(off)
		f[0], f[1], f[3] = 1, width, access // system I/O
		le.PutUint64(f[4:], port)
	}
	le.PutUint32(at(36), uint32(facs))
	le.PutUint32(at(40), uint32(dsdt))
	at(45)[0] = profileServer
	le.PutUint16(at(46), layout.IRQSCI)
	le.PutUint32(at(56), layout.PortPMEvents)
	le.PutUint32(at(64), layout.PortPMControl)
	le.PutUint32(at(76), layout.PortPMTimer)
	at(88)[0], at(89)[0], at(91)[0] = 4, 2, 4
	le.PutUint16(at(96), 0xffff) // no C2
	le.PutUint16(at(98), 0xffff) // no C3
	at(108)[0] = 0x32            // century in the CMOS
	le.PutUint16(at(109), bootLegacy|bootNoVGA)
	le.PutUint32(at(112), fadtWBINVD|fadtC1|fadtNoSleep|fadtTimer32|fadtReset)
	gas(116, 8, 1, layout.PortReset)
	at(128)[0] = resetValue
	at(131)[0] = 5 // minor version
	le.PutUint64(at(140), dsdt)
	gas(148, 32, 2, layout.PortPMEvents)
	gas(172, 16, 2, layout.PortPMControl)
	gas(208, 32, 3, layout.PortPMTimer)
	copy(at(268), "VANTAGE ")
	return table("FACP", 6, b)
}

// madt lists the interrupt controllers (5.2.12).
func madt(vcpus int) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, uint32(layout.LAPIC))
	b = le.AppendUint32(b, 1) // PCAT_COMPAT: there are PICs too
	for i := range vcpus {
		b = append(b, 0, 8, byte(i), byte(i))
		b = le.AppendUint32(b, 1) // enabled
	}
	b = append(b, 1, 12, 0, 0)
	b = le.AppendUint32(b, uint32(layout.IOAPIC))
	b = le.AppendUint32(b, 0)
	override := func(source byte, gsi uint32, flags uint16) {
		b = append(b, 2, 10, 0, source)
		b = le.AppendUint32(b, gsi)
		b = le.AppendUint16(b, flags)
	}
	const activeHigh, level = 1, 3 << 2
	override(0, 2, 0) // the PIT
	override(layout.IRQSCI, layout.IRQSCI, activeHigh|level)
	b = append(b, 4, 6, 0xff, 0, 0, 1) // NMI at LINT1 of all
	return table("APIC", 5, b)
}

// mcfg tells where PCI configuration space is mapped (PCI firmware specification, 4.1.2).
func mcfg() []byte {
	le := binary.LittleEndian
	b := make([]byte, 8+16)
	le.PutUint64(b[8:], uint64(layout.PCIECAM))
	b[19] = byte(layout.PCIECAMSize>>20) - 1 // last bus
	return table("MCFG", 1, b)
}

// dsdt describes the devices.
func dsdt() []byte {
	pnp := func(id string) []byte { return name("_HID", eisaID(id)) }
	unique := func(n uint32) []byte { return name("_UID", integer(n)) }
	return join(
		scope("_SB_",
			device("PCI0", pnp("PNP0A08"), name("_CID", eisaID("PNP0A03")), unique(0),
				name("_SEG", integer(0)), name("_BBN", integer(0)),
				name("_CRS", resources(
					busNumbers(0, uint16(layout.PCIECAMSize>>20)-1),
					ioPort(layout.PortPCIConfig, 8),
					memoryWindow(uint32(layout.PCIWindow), uint32(layout.PCIWindowSize)),
				)),
				name("_PRT", interruptRoutes()),
			),
			device("MRES", pnp("PNP0C02"), unique(0),
				name("_CRS", resources(fixedMemory(uint32(layout.PCIECAM), uint32(layout.PCIECAMSize)), ioPort(layout.PortPMEvents, 12)))),
			device("COM1", pnp("PNP0501"), unique(1),
				name("_CRS", resources(ioPort(layout.PortCOM1, 8), irq(layout.IRQCOM1)))),
			device("RTC_", pnp("PNP0B00"), unique(0),
				name("_CRS", resources(ioPort(layout.PortRTC, 2), irq(layout.IRQRTC)))),
			device("PEVT", name("_HID", text("QEMU0001")), unique(0), name("_STA", integer(0xf)),
				name("_CRS", resources(ioPort(layout.PortPVPanic, 1)))),
		),
		name("_S5_", pack(integer(5), integer(5), integer(0), integer(0))),
	)
}

// interruptRoutes is _PRT: the pins of all slots go to four lines in turn.
func interruptRoutes() []byte {
	var routes [][]byte
	for slot := range uint32(32) {
		for pin := range uint32(4) {
			routes = append(routes, pack(
				integer(slot<<16|0xffff), integer(pin), integer(0), integer(layout.PCIIRQBase+(slot+pin)%4),
			))
		}
	}
	return pack(routes...)
}

// RSDP is where Build's root pointer is.
const RSDP hypervisor.PhysAddr = layout.ACPITables
