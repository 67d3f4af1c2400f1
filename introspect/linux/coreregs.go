package linux

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const (
	ptRegsLen   = 21 * 8 // struct pt_regs, arch/x86/include/uapi/asm/ptrace.h
	userRegsLen = 27 * 8 // struct user_regs_struct, arch/x86/include/asm/user_64.h
	// Selectors of user mode (arch/x86/include/asm/segment.h: __USER_CS,
	// __USER32_CS, __USER_DS).
	userCS   = 0x33
	userCS32 = 0x23
	userDS   = 0x2b
	// Of flags: bit 1 is always set, and user mode runs with interrupts on.
	flagsFixed = 1 << 1
	flagsIF    = 1 << 9
)

var (
	errCoreRunning = errors.New("it was running: its registers were in the CPU")
	errCoreRegs    = errors.New("no registers of user mode lie at the top of its kernel stack")
)

// coreThread is one thread of a core.
type coreThread struct {
	task             task
	ppid             int
	regs             [userRegsLen]byte
	pending, blocked uint64
	err              error // why there are no registers
}

// coreThread returns what a core tells of t.
func (g *Guest) coreThread(f *coreTable, cpus *coreCPUs, t task, ppid int) coreThread {
	c := coreThread{task: t, ppid: ppid}
	o, _, err := g.r.object(nil, t.addr, f.taskSpan)
	if err != nil {
		c.err = err
		return c
	}
	c.pending, c.blocked = o.uint(f.pending), o.uint(f.blocked)
	var cpu *hypervisor.Registers
	if o.uint(f.onCPU) != 0 {
		if cpu = cpus.of(o.uint(f.cpu)); cpu != nil && cpu.CS.Selector&3 == 3 {
			coreCPURegs(c.regs[:], cpu)
			return c
		}
	}
	switch {
	case f.regsSize == 0 || !f.stack.ok:
		c.err = errors.New("this kernel's type information does not tell where registers are")
		return c
	case o.uint(f.onCPU) != 0 && cpu == nil:
		c.err = errCoreRunning
		return c
	}
	if c.err = g.coreUserRegs(&c, o.ptr(f.stack)); c.err != nil {
		return c
	}
	// What user_regs_struct has behind pt_regs: fs_base, gs_base, ds, es, fs, gs.
	for i, x := range []field{f.fsBase, f.gsBase, f.ds, f.es, f.fsIndex, f.gsIndex} {
		binary.LittleEndian.PutUint64(c.regs[ptRegsLen+8*i:], o.uint(x))
	}
	if cpu != nil { // in the kernel; the user's own GS base is kept aside there
		binary.LittleEndian.PutUint64(c.regs[ptRegsLen:], cpu.FS.Base)
		if cpu.Valid.Has(hypervisor.GroupMSR) {
			binary.LittleEndian.PutUint64(c.regs[ptRegsLen+8:], cpu.KernelGSBase)
		}
	}
	return c
}

// coreCPUs are the vCPUs of a guest that stands still.
type coreCPUs struct {
	regs []hypervisor.Registers
	pgd  hypervisor.PhysAddr // of the process
}

// of returns the registers of the CPU that the kernel numbers n, nil when they
// are not known or it has another process's page table.
func (c *coreCPUs) of(n uint64) *hypervisor.Registers {
	const all = hypervisor.GroupGeneral | hypervisor.GroupSegments | hypervisor.GroupControl
	// The table of user mode lies behind that of the kernel (PTI,
	// arch/x86/include/asm/pgtable.h: PTI_PGTABLE_SWITCH_BIT); below are
	// the bits of a PCID, above that of a switch without a flush.
	const tableMask = 1<<52 - 1 - (2*hypervisor.PageSize - 1)
	for i := range c.regs {
		r := &c.regs[i]
		if uint64(r.VCPU) == n && r.Valid.Has(all) && r.CR3&tableMask == uint64(c.pgd)&tableMask {
			return r
		}
	}
	return nil
}

// coreCPURegs fills b, a struct user_regs_struct, from those of a vCPU in user
// mode.
func coreCPURegs(b []byte, r *hypervisor.Registers) {
	const noCall = ^uint64(0) // orig_rax outside a system call
	for i, v := range [...]uint64{
		r.R15, r.R14, r.R13, r.R12, r.RBP, r.RBX, r.R11, r.R10, r.R9, r.R8, r.RAX, r.RCX, r.RDX, r.RSI, r.RDI,
		noCall, uint64(r.RIP), uint64(r.CS.Selector), r.RFLAGS, r.RSP, uint64(r.SS.Selector), r.FS.Base, r.GS.Base,
		uint64(r.DS.Selector), uint64(r.ES.Selector), uint64(r.FS.Selector), uint64(r.GS.Selector),
	} {
		binary.LittleEndian.PutUint64(b[8*i:], v)
	}
}

// coreUserRegs finds the registers with which a task that is in the kernel left
// user mode: at the top of its kernel stack (task_pt_regs). How large that is,
// and how much is left free above them, are macros (THREAD_SIZE is 16 KiB, 32
// with KASAN; TOP_OF_KERNEL_STACK_PADDING is 16 bytes with FRED, else none), so
// that the place is known by what lies there.
func (g *Guest) coreUserRegs(c *coreThread, stack hypervisor.VirtAddr) error {
	if err := g.r.check(c.task.addr, stack, hypervisor.PageSize); err != nil {
		return fmt.Errorf("kernel stack: %w", err)
	}
	for _, size := range []hypervisor.VirtAddr{16 << 10, 32 << 10} {
		for _, padding := range []hypervisor.VirtAddr{0, 16} {
			b := c.regs[:ptRegsLen]
			if err := g.r.full(b, stack+size-padding-ptRegsLen); err == nil && coreRegsOfUser(b) {
				// FRED keeps other things above the selectors.
				for _, at := range []int{17 * 8, 20 * 8} {
					binary.LittleEndian.PutUint64(b[at:], uint64(binary.LittleEndian.Uint16(b[at:])))
				}
				return nil
			}
		}
	}
	clear(c.regs[:])
	return errCoreRegs
}

// coreRegsOfUser reports whether b, a struct pt_regs, has registers of user mode.
func coreRegsOfUser(b []byte) bool {
	at := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
	const ip, cs, flags, sp, ss = 16, 17, 18, 19, 20
	code := uint16(at(cs))
	return (code == userCS || code == userCS32) && uint16(at(ss)) == userDS &&
		at(flags)&(flagsFixed|flagsIF) == flagsFixed|flagsIF && at(flags)>>22 == 0 &&
		at(ip) < uint64(maxUserAddr) && at(sp) < uint64(maxUserAddr)
}
