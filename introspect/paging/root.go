package paging

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Mode is how a CPU translates addresses.
type Mode uint8

// The paging modes of x86 (Intel SDM 3A, 4.1.1).
const (
	Mode32     Mode = iota + 1 // 32-bit: 2 levels, 4-byte entries
	ModePAE                    // PAE: 3 levels, 32-bit addresses
	Mode4Level                 // 4 levels, 48-bit addresses
	Mode5Level                 // 5 levels, 57-bit addresses
)

func (m Mode) String() string {
	switch m {
	case Mode32:
		return "32-bit"
	case ModePAE:
		return "PAE"
	case Mode4Level:
		return "4-level"
	case Mode5Level:
		return "5-level"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// Root is where a translation starts, and by which rules.
type Root struct {
	Mode Mode
	CR3  hypervisor.PhysAddr // base of the top table; the flags and PCID in CR3 are ignored
	NX   bool                // EFER.NXE: bit 63 of an entry is no-execute. When false it is reserved
	PSE  bool                // CR4.PSE: Mode32 has 4 MiB pages. Of no meaning elsewhere
	// PhysBits is MAXPHYADDR, the width of physical addresses: an entry's
	// address bits above it are reserved. 0 means 52, the widest there is.
	PhysBits uint8
	// EncryptionMask has the bits of an entry that say by which key the page is
	// encrypted, and are no part of its address: AMD's C-bit (CPUID 8000_001F,
	// EBX bits 5:0), Intel's KeyID (MSR IA32_TME_ACTIVATE). They are never
	// reserved, whatever PhysBits says. 0: there are none. Only bits 51:32 of
	// 64-bit entries can be.
	EncryptionMask uint64
}

// Bits of the control registers (Intel SDM 3A, 2.5 and 2.2.1).
const (
	cr0PG   = 1 << 31
	cr4PSE  = 1 << 4
	cr4PAE  = 1 << 5
	cr4LA57 = 1 << 12
	eferLMA = 1 << 10
	eferNXE = 1 << 11
)

// RootFromRegisters returns the root that a vCPU translates with at the
// moment. It returns ErrPagingOff for a vCPU without paging, and an error that
// wraps hypervisor.ErrNotSupported when r has no control registers.
func RootFromRegisters(r hypervisor.Registers) (Root, error) {
	if !r.Valid.Has(hypervisor.GroupControl) {
		return Root{}, fmt.Errorf("paging root of vCPU %d: control registers: %w", r.VCPU, hypervisor.ErrNotSupported)
	}
	if r.CR0&cr0PG == 0 {
		return Root{}, fmt.Errorf("paging root of vCPU %d: %w", r.VCPU, ErrPagingOff)
	}
	root := Root{NX: r.EFER&eferNXE != 0}
	switch {
	case r.CR4&cr4PAE == 0:
		root.Mode, root.NX, root.PSE = Mode32, false, r.CR4&cr4PSE != 0
	case r.EFER&eferLMA == 0:
		root.Mode = ModePAE
	case r.CR4&cr4LA57 != 0:
		root.Mode = Mode5Level
	default:
		root.Mode = Mode4Level
	}
	root.CR3 = hypervisor.PhysAddr(r.CR3) & root.Mode.cr3Mask()
	return root, nil
}

// cr3Mask returns the bits of CR3 that are the top table's address (Intel SDM
// 3A, tables 4-3, 4-7 and 4-12).
func (m Mode) cr3Mask() hypervisor.PhysAddr {
	switch m {
	case Mode32:
		return 0xffff_f000
	case ModePAE:
		return 0xffff_ffe0
	}
	return 0x000f_ffff_ffff_f000
}
