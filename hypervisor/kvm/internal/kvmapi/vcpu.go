package kvmapi

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// VCPU is a vCPU's file descriptor. The thread that runs it should make its
// requests; another one waits until KVM_RUN returns.
type VCPU struct {
	fd  int
	run *Run
}

// FD returns the file descriptor.
func (c *VCPU) FD() int { return c.fd }

// Run returns the page shared with the kernel.
func (c *VCPU) Run() *Run { return c.run }

// Close unmaps and closes.
func (c *VCPU) Close() error {
	err := unix.Munmap(c.run.mem)
	if cerr := unix.Close(c.fd); err == nil {
		err = cerr
	}
	return err
}

// Enter is KVM_RUN. unix.EINTR says that a signal or immediate_exit ended it,
// unix.EAGAIN that an application processor was woken.
func (c *VCPU) Enter() error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), run, 0)
	if e == 0 {
		return nil
	}
	return e
}

// What a call fills in is returned in a statement of its own: in one with the call
// the compiler may take its value before.

// Regs is KVM_GET_REGS.
func (c *VCPU) Regs() (r Regs, err error) {
	err = named("KVM_GET_REGS", ioctlPtr(c.fd, getRegs, &r))
	return r, err
}

// SetRegs is KVM_SET_REGS.
func (c *VCPU) SetRegs(r *Regs) error { return named("KVM_SET_REGS", ioctlPtr(c.fd, setRegs, r)) }

// Sregs is KVM_GET_SREGS.
func (c *VCPU) Sregs() (s Sregs, err error) {
	err = named("KVM_GET_SREGS", ioctlPtr(c.fd, getSregs, &s))
	return s, err
}

// SetSregs is KVM_SET_SREGS.
func (c *VCPU) SetSregs(s *Sregs) error { return named("KVM_SET_SREGS", ioctlPtr(c.fd, setSregs, s)) }

// Sregs2 is KVM_GET_SREGS2.
func (c *VCPU) Sregs2() (s Sregs2, err error) {
	err = named("KVM_GET_SREGS2", ioctlPtr(c.fd, getSregs2, &s))
	return s, err
}

// SetSregs2 is KVM_SET_SREGS2.
func (c *VCPU) SetSregs2(s *Sregs2) error {
	return named("KVM_SET_SREGS2", ioctlPtr(c.fd, setSregs2, s))
}

// Translate translates a gva by the vCPU's page tables (KVM_TRANSLATE).
func (c *VCPU) Translate(gva uint64) (Translation, error) {
	t := Translation{LinearAddress: gva}
	err := named("KVM_TRANSLATE", ioctlPtr(c.fd, translate, &t))
	return t, err
}

// MSRs fills in the Data of entries. It returns how many were read: KVM stops at
// the first that it does not know.
func (c *VCPU) MSRs(entries []MSREntry) (int, error) {
	return c.msrs("KVM_GET_MSRS", getMSRs, entries)
}

// SetMSRs writes entries and returns how many were written.
func (c *VCPU) SetMSRs(entries []MSREntry) (int, error) {
	return c.msrs("KVM_SET_MSRS", setMSRs, entries)
}

// msrTables are used again: an event of a trap must not clear 16 KiB for one MSR.
var msrTables = sync.Pool{New: func() any { return new(msrTable) }}

func (c *VCPU) msrs(name string, req uintptr, entries []MSREntry) (int, error) {
	if len(entries) > maxMSRs {
		return 0, fmt.Errorf("%s: %d MSRs, at most %d", name, len(entries), maxMSRs)
	}
	t := msrTables.Get().(*msrTable)
	defer msrTables.Put(t)
	t.nmsrs = uint32(len(entries))
	copy(t.entries[:], entries)
	n, err := ioctlCount(c.fd, req, t)
	if err != nil {
		return 0, named(name, err)
	}
	copy(entries[:n], t.entries[:n])
	return n, nil
}

// SetCPUID2 is KVM_SET_CPUID2.
func (c *VCPU) SetCPUID2(entries []CPUIDEntry) error {
	if len(entries) > maxCPUIDEntries {
		return fmt.Errorf("KVM_SET_CPUID2: %d entries, at most %d", len(entries), maxCPUIDEntries)
	}
	t := &cpuidTable{nent: uint32(len(entries))}
	copy(t.entries[:], entries)
	return named("KVM_SET_CPUID2", ioctlPtr(c.fd, setCPUID2, t))
}

// LAPIC is KVM_GET_LAPIC.
func (c *VCPU) LAPIC() (s LAPICState, err error) {
	err = named("KVM_GET_LAPIC", ioctlPtr(c.fd, getLAPIC, &s))
	return s, err
}

// SetLAPIC is KVM_SET_LAPIC.
func (c *VCPU) SetLAPIC(s *LAPICState) error {
	return named("KVM_SET_LAPIC", ioctlPtr(c.fd, setLAPIC, s))
}

// MPState is KVM_GET_MP_STATE.
func (c *VCPU) MPState() (s uint32, err error) {
	err = named("KVM_GET_MP_STATE", ioctlPtr(c.fd, getMPState, &s))
	return s, err
}

// SetMPState is KVM_SET_MP_STATE.
func (c *VCPU) SetMPState(s uint32) error {
	return named("KVM_SET_MP_STATE", ioctlPtr(c.fd, setMPState, &s))
}

// NMI is KVM_NMI.
func (c *VCPU) NMI() error {
	_, err := ioctl(c.fd, nmi, 0)
	return named("KVM_NMI", err)
}

// SetGuestDebug is KVM_SET_GUEST_DEBUG.
func (c *VCPU) SetGuestDebug(d *GuestDebug) error {
	return named("KVM_SET_GUEST_DEBUG", ioctlPtr(c.fd, setGuestDebug, d))
}

// VCPUEvents is KVM_GET_VCPU_EVENTS.
func (c *VCPU) VCPUEvents() (e VCPUEvents, err error) {
	err = named("KVM_GET_VCPU_EVENTS", ioctlPtr(c.fd, getVCPUEvents, &e))
	return e, err
}

// SetVCPUEvents is KVM_SET_VCPU_EVENTS.
func (c *VCPU) SetVCPUEvents(e *VCPUEvents) error {
	return named("KVM_SET_VCPU_EVENTS", ioctlPtr(c.fd, setVCPUEvents, e))
}

// DebugRegs is KVM_GET_DEBUGREGS.
func (c *VCPU) DebugRegs() (d DebugRegs, err error) {
	err = named("KVM_GET_DEBUGREGS", ioctlPtr(c.fd, getDebugRegs, &d))
	return d, err
}

// SetDebugRegs is KVM_SET_DEBUGREGS.
func (c *VCPU) SetDebugRegs(d *DebugRegs) error {
	return named("KVM_SET_DEBUGREGS", ioctlPtr(c.fd, setDebugRegs, d))
}

// XCRs is KVM_GET_XCRS.
func (c *VCPU) XCRs() (x XCRs, err error) {
	err = named("KVM_GET_XCRS", ioctlPtr(c.fd, getXCRS, &x))
	return x, err
}

// SetXCRs is KVM_SET_XCRS.
func (c *VCPU) SetXCRs(x *XCRs) error { return named("KVM_SET_XCRS", ioctlPtr(c.fd, setXCRS, x)) }

// XSAVE reads the extended state into buf, which is 4,096 bytes, or what
// CapXSAVE2 says of the VM, when that is more.
func (c *VCPU) XSAVE(buf []byte) error {
	req, name := uintptr(getXSAVE), "KVM_GET_XSAVE"
	if len(buf) > 4096 {
		req, name = getXSAVE2, "KVM_GET_XSAVE2"
	}
	if len(buf) < 4096 {
		return fmt.Errorf("%s: buffer of %d bytes: %w", name, len(buf), unix.EINVAL)
	}
	return named(name, ioctlPtr(c.fd, req, &buf[0]))
}

// SetXSAVE is KVM_SET_XSAVE, of a buffer as for XSAVE.
func (c *VCPU) SetXSAVE(buf []byte) error {
	if len(buf) < 4096 {
		return fmt.Errorf("KVM_SET_XSAVE: buffer of %d bytes: %w", len(buf), unix.EINVAL)
	}
	return named("KVM_SET_XSAVE", ioctlPtr(c.fd, setXSAVE, &buf[0]))
}

// TSCKHz is KVM_GET_TSC_KHZ.
func (c *VCPU) TSCKHz() (int, error) {
	n, err := ioctl(c.fd, getTSCKHz, 0)
	return n, named("KVM_GET_TSC_KHZ", err)
}

// SetTSCKHz is KVM_SET_TSC_KHZ.
func (c *VCPU) SetTSCKHz(khz int) error {
	_, err := ioctl(c.fd, setTSCKHz, uintptr(khz))
	return named("KVM_SET_TSC_KHZ", err)
}

// KVMClockCtrl tells the guest that it was paused (KVM_KVMCLOCK_CTRL), so that
// its watchdogs do not bark.
func (c *VCPU) KVMClockCtrl() error {
	_, err := ioctl(c.fd, kvmclockCtrl, 0)
	return named("KVM_KVMCLOCK_CTRL", err)
}
