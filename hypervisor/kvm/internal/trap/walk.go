package trap

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/core"
)

// Bits of control registers and of page-table entries (SDM 3A, 2.5 and 4.5).
const (
	cr0PG   = 1 << 31
	cr0WP   = 1 << 16
	cr4PAE  = 1 << 5
	cr4LA57 = 1 << 12
	cr4SMAP = 1 << 21
	cr4PKE  = 1 << 22
	cr4PKS  = 1 << 24
	eferLMA = 1 << 10
	eferNXE = 1 << 11

	ptePresent  = 1 << 0
	pteWrite    = 1 << 1
	pteUser     = 1 << 2
	pteAccessed = 1 << 5
	pteDirty    = 1 << 6
	pteLarge    = 1 << 7
	pteNX       = 1 << 63
	pteAddr     = 0x000f_ffff_ffff_f000
)

// walked is where a gva is, and what may be done there without a fault and
// without a change of the tables.
type walked struct {
	addr     hypervisor.PhysAddr
	readable bool // by the mode that the vCPU is in
	writable bool
	tables   [5]hypervisor.Frame // the page tables that lead there
	depth    int
}

// walk translates gva by the guest's four or five levels of page tables, and
// without paging. false: there is nothing, or the tables are of another kind.
func (e *Engine) walk(r *hypervisor.Registers, gva uint64) (w walked, ok bool) {
	if r.CR0&cr0PG == 0 {
		return walked{addr: hypervisor.PhysAddr(uint32(gva)), readable: true, writable: true}, true
	}
	if r.EFER&eferLMA == 0 {
		return w, false
	}
	levels := 4
	if r.CR4&cr4LA57 != 0 {
		levels = 5
	}
	if shift := 64 - 9*levels - 12; int64(gva<<shift)>>shift != int64(gva) {
		return w, false
	}
	user, write, accessed := true, true, true
	table := r.CR3 & pteAddr
	for level := levels; level > 0; level-- {
		shift := 12 + 9*(level-1)
		w.tables[w.depth] = hypervisor.PhysAddr(table).Frame()
		w.depth++
		b, err := e.mem.View(hypervisor.PhysAddr(table+gva>>shift&511*8), 8)
		if err != nil {
			return w, false
		}
		pte := binary.LittleEndian.Uint64(b)
		if pte&ptePresent == 0 {
			return w, false
		}
		user = user && pte&pteUser != 0
		write = write && pte&pteWrite != 0
		accessed = accessed && pte&pteAccessed != 0
		if level == 1 || pte&pteLarge != 0 && level <= 3 {
			mask := uint64(1)<<shift - 1
			w.addr = hypervisor.PhysAddr(pte&pteAddr&^mask | gva&mask)
			w.permit(r, user, write, accessed, pte)
			return w, true
		}
		table = pte & pteAddr
	}
	return w, false
}

// permit sets what the vCPU may do. What is not sure (SMAP, protection keys) it
// may not.
func (w *walked) permit(r *hypervisor.Registers, user, write, accessed bool, pte uint64) {
	if !accessed {
		return
	}
	if r.SS.DPL() == 3 {
		w.readable = user && r.CR4&cr4PKE == 0
	} else {
		w.readable = !(user && r.CR4&(cr4SMAP|cr4PKE) != 0) && (user || r.CR4&cr4PKS == 0)
		write = write || r.CR0&cr0WP == 0
	}
	w.writable = w.readable && write && pte&pteDirty != 0
}

// translate is walk for what needs no more than the address, in any mode. It is
// for the vCPU's own thread.
func (e *Engine) translate(v *core.VCPU, r *hypervisor.Registers, gva uint64) (hypervisor.PhysAddr, bool) {
	if r.CR0&cr0PG == 0 || r.EFER&eferLMA != 0 {
		w, ok := e.walk(r, gva)
		return w.addr, ok
	}
	t, err := v.KVM().Translate(gva)
	return hypervisor.PhysAddr(t.PhysicalAddress), err == nil && t.Valid != 0
}

// fetch reads up to len(p) bytes of code at a linear address, with the guest's
// own bytes where breakpoints are planted, and returns how many it could.
func (e *Engine) fetch(v *core.VCPU, r *hypervisor.Registers, gva uint64, p []byte) int {
	n := 0
	for n < len(p) {
		at := gva + uint64(n)
		gpa, ok := e.translate(v, r, at)
		if !ok {
			break
		}
		size := min(len(p)-n, int(hypervisor.PageSize-gpa.Offset()))
		b, err := e.mem.View(gpa, uint64(size))
		if err != nil {
			break
		}
		copy(p[n:], b)
		e.unplant(p[n:n+size], gpa)
		n += size
	}
	return n
}
