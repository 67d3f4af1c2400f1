package hypervisor

// Registers are one x86-64 vCPU's registers. What a driver could not read is
// zero and its bit in Valid is clear.
type Registers struct {
	VCPU  int         // index of the vCPU
	Valid RegisterSet // which groups are filled in

	// GroupGeneral
	RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP                                    VirtAddr
	RFLAGS                                 uint64

	// GroupSegments
	CS, DS, ES, FS, GS, SS, LDT, TR Segment
	GDT, IDT                        Table

	// GroupControl
	CR0, CR2, CR3, CR4, EFER uint64

	// GroupMSR
	KernelGSBase, STAR, LSTAR, CSTAR, SFMASK     uint64
	SysenterCS, SysenterESP, SysenterEIP, TSCAux uint64
}

// RegisterSet says which groups of Registers are filled in.
type RegisterSet uint8

// Groups of registers.
const (
	GroupGeneral  RegisterSet = 1 << iota
	GroupSegments             // segments, GDT, IDT
	GroupControl              // CR0, CR2, CR3, CR4, EFER
	GroupMSR                  // the system-call MSRs
)

// Has reports whether all of g is in s.
func (s RegisterSet) Has(g RegisterSet) bool { return s&g == g }

// Segment is a segment register with its hidden part (Intel SDM 3A, 3.4.3).
type Segment struct {
	Selector   uint16
	Base       uint64
	Limit      uint32
	Attributes uint16 // descriptor bits 40-55: type, S, DPL, P, AVL, L, D/B, G
}

// DPL returns the segment's descriptor privilege level (0 to 3).
func (s Segment) DPL() int { return int(s.Attributes>>5) & 3 }

// Table is a descriptor table register (GDTR, IDTR).
type Table struct {
	Base  VirtAddr
	Limit uint16
}
