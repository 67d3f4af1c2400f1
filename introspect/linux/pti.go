package linux

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// Page table isolation gives each process two top tables, side by side: the
// kernel's, and behind it the one that is used in user mode
// (arch/x86/include/asm/pgtable.h: kernel_to_user_pgdp).
const (
	featurePTI   = 7*32 + 11                 // X86_FEATURE_PTI, arch/x86/include/asm/cpufeatures.h
	ptiSwitchBit = 1 << hypervisor.PageShift // PTI_PGTABLE_SWITCH_BIT
)

// ptiTable is where the kernel says whether it isolates page tables.
type ptiTable struct {
	capability field // the words of feature bits
	bootCPU    hypervisor.VirtAddr
}

func (t *ptiTable) facts() []fact {
	return []fact{{&t.capability, 0, must, []string{"cpuinfo_x86.x86_capability"}}}
}

func (t *ptiTable) symbols() []symbol {
	return []symbol{{&t.bootCPU, must, []string{"boot_cpu_data"}}}
}

func (t *ptiTable) finish(types) {}

// isolated reports whether the kernel isolates page tables (PTI).
func (g *Guest) isolated() (bool, error) {
	t, err := tableOf[ptiTable](g, nil)
	if err != nil {
		return false, err
	}
	const word, bit = featurePTI / 32, featurePTI % 32
	if t.capability.size < (word+1)*4 {
		return false, fmt.Errorf("cpuinfo_x86.x86_capability has %d bytes: %w", t.capability.size, ErrTorn)
	}
	v, err := g.r.u32(t.bootCPU + hypervisor.VirtAddr(t.capability.off+word*4))
	return v>>bit&1 != 0, err
}

// UserSpace returns the address space that p's own code runs in. Without page
// table isolation (PTI) it is that of ProcessSpace. With it, user memory is the
// same and has its own permissions to execute, and of the kernel only what an
// entry into it needs is there.
//
// Errors are those of ProcessSpace, and one that wraps profile.ErrNoType or
// profile.ErrNoSymbol for a kernel that does not say whether it isolates.
func (g *Guest) UserSpace(p Process) (*paging.AddressSpace, error) {
	as, err := g.ProcessSpace(p)
	if err != nil {
		return nil, err
	}
	isolated, err := g.isolated()
	if err != nil {
		return nil, fmt.Errorf("page table of process %d in user mode: %w", p.PID, err)
	}
	if !isolated {
		return as, nil
	}
	root := as.Root()
	root.CR3 |= ptiSwitchBit
	return paging.New(g.mem, root, paging.WithAbsentPages(protNone)), nil
}
