package paging

import (
	"github.com/vantage-vmi/vantage/hypervisor"
)

// Flags are what the page tables say of a page, combined over the levels: a
// page is writable, or user, only if every level says so; no-execute if any does.
type Flags uint16

// What the page tables say of a page.
const (
	Write        Flags = 1 << iota // writable at every level
	User                           // reachable from user mode at every level
	NX                             // no execute, at any level
	Global                         // kept over a change of CR3 (leaf entry)
	Accessed                       // the CPU read or wrote it (leaf entry)
	Dirty                          // the CPU wrote it (leaf entry)
	WriteThrough                   // PWT (leaf entry)
	CacheDisable                   // PCD (leaf entry)
	PAT                            // with PCD and PWT the number of the memory type in the PAT (leaf entry)
	Absent                         // the CPU faults on it: see WithAbsentPages (leaf entry)
)

// Permissions are the flags that say who may do what with a page.
const Permissions = Write | User | NX

// Has reports whether all of g is in f.
func (f Flags) Has(g Flags) bool { return f&g == g }

// Executable reports whether code may run from the page.
func (f Flags) Executable() bool { return f&NX == 0 }

// String returns f as "rwxu": a dash for what is missing, s for supervisor.
func (f Flags) String() string {
	b := []byte("r--s")
	if f.Has(Write) {
		b[1] = 'w'
	}
	if f.Executable() {
		b[2] = 'x'
	}
	if f.Has(User) {
		b[3] = 'u'
	}
	return string(b)
}

// Mapping is one page: Size bytes from Virt lie at Phys. Size is that of the
// page: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
type Mapping struct {
	Virt  hypervisor.VirtAddr
	Phys  hypervisor.PhysAddr
	Size  uint64
	Flags Flags
}

// Contains reports whether va lies in m.
func (m Mapping) Contains(va hypervisor.VirtAddr) bool {
	return va >= m.Virt && uint64(va-m.Virt) < m.Size
}

// At returns the physical address of va, which must lie in m.
func (m Mapping) At(va hypervisor.VirtAddr) hypervisor.PhysAddr {
	return m.Phys + hypervisor.PhysAddr(va-m.Virt)
}

// Run is virtually contiguous memory of equal permissions, of one or more pages
// that may lie anywhere in physical memory.
type Run struct {
	Virt  hypervisor.VirtAddr
	Size  uint64
	Flags Flags // of Permissions only
}

// End returns the address one past the run's last byte; 0 at the very top of
// the address space.
func (r Run) End() hypervisor.VirtAddr { return r.Virt + hypervisor.VirtAddr(r.Size) }
