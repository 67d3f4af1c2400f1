package kvmapi

// Requests of include/uapi/linux/kvm.h, by the encoding of
// include/uapi/asm-generic/ioctl.h: direction, size of the argument, KVMIO, number.
const (
	kvmio = 0xae00
	in    = 1 << 30 // _IOW: the kernel reads the argument
	out   = 2 << 30 // _IOR: the kernel writes it
	inOut = in | out
	size  = 1 << 16

	getAPIVersion          = kvmio
	createVM               = kvmio | 0x01
	getMSRIndexList        = inOut | 4*size | kvmio | 0x02
	checkExtension         = kvmio | 0x03
	getVCPUMmapSize        = kvmio | 0x04
	getSupportedCPUID      = inOut | 8*size | kvmio | 0x05
	createVCPU             = kvmio | 0x41
	getDirtyLog            = in | 16*size | kvmio | 0x42
	setUserMemoryRegion    = in | 32*size | kvmio | 0x46
	setTSSAddr             = kvmio | 0x47
	setIdentityMapAddr     = in | 8*size | kvmio | 0x48
	createIRQChip          = kvmio | 0x60
	irqLine                = in | 8*size | kvmio | 0x61
	getIRQChip             = inOut | 520*size | kvmio | 0x62
	setIRQChip             = out | 520*size | kvmio | 0x63
	setGSIRouting          = in | 8*size | kvmio | 0x6a
	irqfd                  = in | 32*size | kvmio | 0x76
	createPIT2             = in | 64*size | kvmio | 0x77
	ioeventfd              = in | 64*size | kvmio | 0x79
	setClock               = in | 48*size | kvmio | 0x7b
	getClock               = out | 48*size | kvmio | 0x7c
	run                    = kvmio | 0x80
	getRegs                = out | 144*size | kvmio | 0x81
	setRegs                = in | 144*size | kvmio | 0x82
	getSregs               = out | 312*size | kvmio | 0x83
	setSregs               = in | 312*size | kvmio | 0x84
	translate              = inOut | 24*size | kvmio | 0x85
	getMSRs                = inOut | 8*size | kvmio | 0x88
	setMSRs                = in | 8*size | kvmio | 0x89
	getLAPIC               = out | 1024*size | kvmio | 0x8e
	setLAPIC               = in | 1024*size | kvmio | 0x8f
	setCPUID2              = in | 8*size | kvmio | 0x90
	getMPState             = out | 4*size | kvmio | 0x98
	setMPState             = in | 4*size | kvmio | 0x99
	nmi                    = kvmio | 0x9a
	setGuestDebug          = in | 72*size | kvmio | 0x9b
	getPIT2                = out | 112*size | kvmio | 0x9f
	setPIT2                = in | 112*size | kvmio | 0xa0
	getVCPUEvents          = out | 64*size | kvmio | 0x9f
	setVCPUEvents          = in | 64*size | kvmio | 0xa0
	getDebugRegs           = out | 128*size | kvmio | 0xa1
	setDebugRegs           = in | 128*size | kvmio | 0xa2
	setTSCKHz              = kvmio | 0xa2
	getTSCKHz              = kvmio | 0xa3
	enableCap              = in | 104*size | kvmio | 0xa3
	getXSAVE               = out | 4096*size | kvmio | 0xa4
	setXSAVE               = in | 4096*size | kvmio | 0xa5
	signalMSI              = in | 32*size | kvmio | 0xa5
	getXCRS                = out | 392*size | kvmio | 0xa6
	setXCRS                = in | 392*size | kvmio | 0xa7
	kvmclockCtrl           = kvmio | 0xad
	clearDirtyLog          = inOut | 24*size | kvmio | 0xc0
	setMSRFilter           = in | 392*size | kvmio | 0xc6
	resetDirtyRings        = kvmio | 0xc7
	getSregs2              = out | 320*size | kvmio | 0xcc
	setSregs2              = in | 320*size | kvmio | 0xcd
	getXSAVE2              = out | 4096*size | kvmio | 0xcf
	apiVersion             = 12 // KVM_API_VERSION
	maxCPUIDEntries        = 256
	maxMSRs                = 1024
	pit2Flags              = 1 // KVM_PIT_SPEAKER_DUMMY
	irqRoutingIRQChip      = 1 // KVM_IRQ_ROUTING_IRQCHIP
	irqRoutingMSI          = 2 // KVM_IRQ_ROUTING_MSI
	irqfdFlagDeassign      = 1 // KVM_IRQFD_FLAG_DEASSIGN
	ioeventfdFlagDatamatch = 1 // KVM_IOEVENTFD_FLAG_DATAMATCH
	ioeventfdFlagDeassign  = 4 // KVM_IOEVENTFD_FLAG_DEASSIGN
)

// Cap is a KVM_CAP_ number.
type Cap uintptr

// Capabilities.
const (
	CapIRQChip           Cap = 0   // KVM_CAP_IRQCHIP
	CapUserMemory        Cap = 3   // KVM_CAP_USER_MEMORY
	CapNrVCPUs           Cap = 9   // KVM_CAP_NR_VCPUS: recommended most
	CapNrMemslots        Cap = 10  // KVM_CAP_NR_MEMSLOTS
	CapMPState           Cap = 14  // KVM_CAP_MP_STATE
	CapIRQFD             Cap = 32  // KVM_CAP_IRQFD
	CapIOEventFD         Cap = 36  // KVM_CAP_IOEVENTFD
	CapAdjustClock       Cap = 39  // KVM_CAP_ADJUST_CLOCK
	CapVCPUEvents        Cap = 41  // KVM_CAP_VCPU_EVENTS
	CapXSAVE             Cap = 55  // KVM_CAP_XSAVE
	CapTSCControl        Cap = 60  // KVM_CAP_TSC_CONTROL
	CapMaxVCPUs          Cap = 66  // KVM_CAP_MAX_VCPUS
	CapTSCDeadline       Cap = 72  // KVM_CAP_TSC_DEADLINE_TIMER
	CapSyncRegs          Cap = 74  // KVM_CAP_SYNC_REGS
	CapReadonlyMem       Cap = 81  // KVM_CAP_READONLY_MEM
	CapImmediateExit     Cap = 136 // KVM_CAP_IMMEDIATE_EXIT
	CapExceptionPayload  Cap = 164 // KVM_CAP_EXCEPTION_PAYLOAD
	CapManualDirtyLog2   Cap = 168 // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
	CapX86UserSpaceMSR   Cap = 188 // KVM_CAP_X86_USER_SPACE_MSR
	CapX86MSRFilter      Cap = 189 // KVM_CAP_X86_MSR_FILTER
	CapDirtyLogRing      Cap = 192 // KVM_CAP_DIRTY_LOG_RING
	CapSetGuestDebug2    Cap = 195 // KVM_CAP_SET_GUEST_DEBUG2
	CapSregs2            Cap = 200 // KVM_CAP_SREGS2
	CapExitOnEmulFailure Cap = 204 // KVM_CAP_EXIT_ON_EMULATION_FAILURE
	CapXSAVE2            Cap = 208 // KVM_CAP_XSAVE2
	CapX86TripleFaultEvt Cap = 218 // KVM_CAP_X86_TRIPLE_FAULT_EVENT
)

// ExitReason is kvm_run.exit_reason.
type ExitReason uint32

// Exit reasons.
const (
	ExitUnknown       ExitReason = 0  // KVM_EXIT_UNKNOWN
	ExitException     ExitReason = 1  // KVM_EXIT_EXCEPTION
	ExitIO            ExitReason = 2  // KVM_EXIT_IO
	ExitDebug         ExitReason = 4  // KVM_EXIT_DEBUG
	ExitHLT           ExitReason = 5  // KVM_EXIT_HLT
	ExitMMIO          ExitReason = 6  // KVM_EXIT_MMIO
	ExitIRQWindowOpen ExitReason = 7  // KVM_EXIT_IRQ_WINDOW_OPEN
	ExitShutdown      ExitReason = 8  // KVM_EXIT_SHUTDOWN
	ExitFailEntry     ExitReason = 9  // KVM_EXIT_FAIL_ENTRY
	ExitIntr          ExitReason = 10 // KVM_EXIT_INTR
	ExitInternalError ExitReason = 17 // KVM_EXIT_INTERNAL_ERROR
	ExitSystemEvent   ExitReason = 24 // KVM_EXIT_SYSTEM_EVENT
	ExitRDMSR         ExitReason = 29 // KVM_EXIT_X86_RDMSR
	ExitWRMSR         ExitReason = 30 // KVM_EXIT_X86_WRMSR
	ExitDirtyRingFull ExitReason = 31 // KVM_EXIT_DIRTY_RING_FULL
	ExitMemoryFault   ExitReason = 39 // KVM_EXIT_MEMORY_FAULT, since 6.8
)

// Flags and small numbers.
const (
	MemLogDirtyPages = 1 << 0 // KVM_MEM_LOG_DIRTY_PAGES
	MemReadonly      = 1 << 1 // KVM_MEM_READONLY

	SyncRegs   = 1 << 0 // KVM_SYNC_X86_REGS
	SyncSregs  = 1 << 1 // KVM_SYNC_X86_SREGS
	SyncEvents = 1 << 2 // KVM_SYNC_X86_EVENTS

	GuestDebugEnable     = 1 << 0  // KVM_GUESTDBG_ENABLE
	GuestDebugSingleStep = 1 << 1  // KVM_GUESTDBG_SINGLESTEP
	GuestDebugUseSWBP    = 1 << 16 // KVM_GUESTDBG_USE_SW_BP
	GuestDebugUseHWBP    = 1 << 17 // KVM_GUESTDBG_USE_HW_BP
	GuestDebugInjectDB   = 1 << 18 // KVM_GUESTDBG_INJECT_DB
	GuestDebugInjectBP   = 1 << 19 // KVM_GUESTDBG_INJECT_BP
	GuestDebugBlockIRQ   = 1 << 20 // KVM_GUESTDBG_BLOCKIRQ

	MPStateRunnable      = 0 // KVM_MP_STATE_RUNNABLE
	MPStateUninitialized = 1 // KVM_MP_STATE_UNINITIALIZED
	MPStateInitReceived  = 2 // KVM_MP_STATE_INIT_RECEIVED
	MPStateHalted        = 3 // KVM_MP_STATE_HALTED
	MPStateSIPIReceived  = 4 // KVM_MP_STATE_SIPI_RECEIVED

	MSRExitReasonInval   = 1 << 0 // KVM_MSR_EXIT_REASON_INVAL
	MSRExitReasonUnknown = 1 << 1 // KVM_MSR_EXIT_REASON_UNKNOWN
	MSRExitReasonFilter  = 1 << 2 // KVM_MSR_EXIT_REASON_FILTER

	MSRFilterRead         = 1 << 0 // KVM_MSR_FILTER_READ
	MSRFilterWrite        = 1 << 1 // KVM_MSR_FILTER_WRITE
	MSRFilterDefaultAllow = 0      // KVM_MSR_FILTER_DEFAULT_ALLOW
	MSRFilterMaxRanges    = 16     // KVM_MSR_FILTER_MAX_RANGES

	InternalErrorEmulation = 1 // KVM_INTERNAL_ERROR_EMULATION

	ManualProtectEnable  = 1 << 0 // KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
	DirtyLogInitiallySet = 1 << 1 // KVM_DIRTY_LOG_INITIALLY_SET

	ExceptionDB = 1
	ExceptionBP = 3
	ExceptionGP = 13
)
