package kvmapi

// UserspaceMemoryRegion is struct kvm_userspace_memory_region.
type UserspaceMemoryRegion struct {
	Slot          uint32
	Flags         uint32
	GuestPhysAddr uint64
	MemorySize    uint64 // bytes; 0 deletes the slot
	UserspaceAddr uint64
}

// Regs is struct kvm_regs.
type Regs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
}

// Segment is struct kvm_segment.
type Segment struct {
	Base     uint64
	Limit    uint32
	Selector uint16
	Type     uint8
	Present, DPL, DB, S, L, G, AVL,
	Unusable uint8
	_ uint8
}

// Dtable is struct kvm_dtable.
type Dtable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs.
type Sregs struct {
	CS, DS, ES, FS, GS, SS, TR, LDT Segment
	GDT, IDT                        Dtable
	CR0, CR2, CR3, CR4, CR8         uint64
	EFER, APICBase                  uint64
	InterruptBitmap                 [4]uint64
}

// Sregs2 is struct kvm_sregs2.
type Sregs2 struct {
	CS, DS, ES, FS, GS, SS, TR, LDT Segment
	GDT, IDT                        Dtable
	CR0, CR2, CR3, CR4, CR8         uint64
	EFER, APICBase                  uint64
	Flags                           uint64
	PDPTRs                          [4]uint64
}

// VCPUEvents is struct kvm_vcpu_events.
type VCPUEvents struct {
	ExceptionInjected, ExceptionNr, ExceptionHasErrorCode, ExceptionPending uint8
	ExceptionErrorCode                                                      uint32
	InterruptInjected, InterruptNr, InterruptSoft, InterruptShadow          uint8
	NMIInjected, NMIPending, NMIMasked                                      uint8
	_                                                                       uint8
	SIPIVector                                                              uint32
	Flags                                                                   uint32
	SMISMM, SMIPending, SMISMMInsideNMI, SMILatchedInit                     uint8
	TripleFaultPending                                                      uint8
	_                                                                       [26]uint8
	ExceptionHasPayload                                                     uint8
	ExceptionPayload                                                        uint64
}

// DebugRegs is struct kvm_debugregs.
type DebugRegs struct {
	DB       [4]uint64
	DR6, DR7 uint64
	Flags    uint64
	_        [9]uint64
}

// GuestDebug is struct kvm_guest_debug with its x86 part.
type GuestDebug struct {
	Control  uint32
	_        uint32
	DebugReg [8]uint64 // DR0 to DR3 and DR7 are read
}

// CPUIDEntry is struct kvm_cpuid_entry2.
type CPUIDEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// CPUIDSignificantIndex is KVM_CPUID_FLAG_SIGNIFCANT_INDEX.
const CPUIDSignificantIndex = 1

// MSREntry is struct kvm_msr_entry.
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

// LAPICState is struct kvm_lapic_state.
type LAPICState struct{ Regs [1024]byte }

// IRQChip is struct kvm_irqchip: 0 and 1 are the PICs, 2 the I/O APIC.
type IRQChip struct {
	ChipID uint32
	_      uint32
	Chip   [512]byte
}

// PITState2 is struct kvm_pit_state2.
type PITState2 struct{ Data [112]byte }

// ClockData is struct kvm_clock_data.
type ClockData struct {
	Clock    uint64 // nanoseconds
	Flags    uint32
	_        uint32
	Realtime uint64
	HostTSC  uint64
	_        [4]uint32
}

// XCRs is struct kvm_xcrs.
type XCRs struct {
	NrXCRs, Flags uint32
	XCR           [16]struct {
		XCR, _ uint32
		Value  uint64
	}
	_ [16]uint64
}

// Translation is struct kvm_translation.
type Translation struct {
	LinearAddress   uint64
	PhysicalAddress uint64
	Valid           uint8
	Writeable       uint8
	Usermode        uint8
	_               [5]uint8
}

type irqLevel struct{ irq, level uint32 }

type irqfdArg struct {
	fd, gsi, flags, _ uint32
	_                 [16]byte
}

type ioeventfdArg struct {
	datamatch uint64
	addr      uint64
	len       uint32
	fd        int32
	flags     uint32
	_         [36]byte
}

type pitConfig struct {
	flags uint32
	_     [15]uint32
}

type enableCapArg struct {
	cap  uint32
	_    uint32 // flags
	args [4]uint64
	_    [64]byte
}

type dirtyLogArg struct {
	slot uint32
	_    uint32
	addr uint64
}

type clearDirtyLogArg struct {
	slot      uint32
	numPages  uint32
	firstPage uint64
	addr      uint64
}

type msrFilterRange struct {
	flags, nmsrs, base uint32
	_                  uint32
	bitmap             uint64
}

type msrFilterArg struct {
	flags  uint32
	_      uint32
	ranges [MSRFilterMaxRanges]msrFilterRange
}

// routing is one entry of struct kvm_irq_routing.
type routing struct {
	gsi, kind, _, _ uint32
	u               [8]uint32 // irqchip: chip, pin; msi: address low, high, data
}

type routingTable struct {
	nr, _   uint32
	entries [MaxRoutes]routing
}

// MaxRoutes is how many GSIs SetRouting can route (KVM's own limit is 4,096).
const MaxRoutes = 1024 + 64

type cpuidTable struct {
	nent, _ uint32
	entries [maxCPUIDEntries]CPUIDEntry
}

type msrTable struct {
	nmsrs, _ uint32
	entries  [maxMSRs]MSREntry
}

type msrList struct {
	nmsrs   uint32
	indices [maxMSRs]uint32
}
