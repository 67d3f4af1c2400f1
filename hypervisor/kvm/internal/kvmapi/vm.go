package kvmapi

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// VM is a VM's file descriptor. Its methods may be called by any thread of the
// process that made it.
type VM struct {
	fd       int
	mmapSize int
}

// FD returns the file descriptor.
func (v *VM) FD() int { return v.fd }

// Close closes it; KVM ends the VM when its vCPUs are closed too.
func (v *VM) Close() error { return unix.Close(v.fd) }

// Check returns what KVM_CHECK_EXTENSION says of this VM.
func (v *VM) Check(c Cap) int {
	n, err := ioctl(v.fd, checkExtension, uintptr(c))
	if err != nil {
		return 0
	}
	return n
}

// EnableCap is KVM_ENABLE_CAP.
func (v *VM) EnableCap(c Cap, args ...uint64) error {
	a := &enableCapArg{cap: uint32(c)}
	copy(a.args[:], args)
	return named("KVM_ENABLE_CAP", ioctlPtr(v.fd, enableCap, a))
}

// SetUserMemoryRegion is KVM_SET_USER_MEMORY_REGION.
func (v *VM) SetUserMemoryRegion(r UserspaceMemoryRegion) error {
	return named("KVM_SET_USER_MEMORY_REGION", ioctlPtr(v.fd, setUserMemoryRegion, &r))
}

// SetTSSAddr is KVM_SET_TSS_ADDR.
func (v *VM) SetTSSAddr(gpa uint64) error {
	_, err := ioctl(v.fd, setTSSAddr, uintptr(gpa))
	return named("KVM_SET_TSS_ADDR", err)
}

// SetIdentityMapAddr is KVM_SET_IDENTITY_MAP_ADDR.
func (v *VM) SetIdentityMapAddr(gpa uint64) error {
	return named("KVM_SET_IDENTITY_MAP_ADDR", ioctlPtr(v.fd, setIdentityMapAddr, &gpa))
}

// CreateIRQChip makes the PICs, the I/O APIC and the local APICs of the kernel.
func (v *VM) CreateIRQChip() error {
	_, err := ioctl(v.fd, createIRQChip, 0)
	return named("KVM_CREATE_IRQCHIP", err)
}

// CreatePIT2 makes the i8254 of the kernel, with the speaker's port.
func (v *VM) CreatePIT2() error {
	return named("KVM_CREATE_PIT2", ioctlPtr(v.fd, createPIT2, &pitConfig{flags: pit2Flags}))
}

// IRQLine sets a GSI's level.
func (v *VM) IRQLine(gsi uint32, level bool) error {
	l := &irqLevel{irq: gsi}
	if level {
		l.level = 1
	}
	return named("KVM_IRQ_LINE", ioctlPtr(v.fd, irqLine, l))
}

// IRQFD ties an eventfd to a GSI, or unties it.
func (v *VM) IRQFD(fd int, gsi uint32, assign bool) error {
	a := &irqfdArg{fd: uint32(fd), gsi: gsi}
	if !assign {
		a.flags = irqfdFlagDeassign
	}
	return named("KVM_IRQFD", ioctlPtr(v.fd, irqfd, a))
}

// IOEventFD ties an eventfd to guest writes of size bytes (0: any) at an mmio
// address, of one value when match is not nil; or unties it.
func (v *VM) IOEventFD(fd int, addr uint64, size int, match *uint64, assign bool) error {
	a := &ioeventfdArg{addr: addr, len: uint32(size), fd: int32(fd)}
	if match != nil {
		a.flags, a.datamatch = ioeventfdFlagDatamatch, *match
	}
	if !assign {
		a.flags |= ioeventfdFlagDeassign
	}
	return named("KVM_IOEVENTFD", ioctlPtr(v.fd, ioeventfd, a))
}

// Route is where a GSI goes: to a pin of a chip, or to a message.
type Route struct {
	GSI  uint32
	Chip uint32 // 0 and 1: the PICs, 2: the I/O APIC
	Pin  uint32
	MSI  bool // then Addr and Data count
	Addr uint64
	Data uint32
}

// SetRouting replaces all routes (KVM_SET_GSI_ROUTING).
func (v *VM) SetRouting(routes []Route) error {
	if len(routes) > MaxRoutes {
		return fmt.Errorf("KVM_SET_GSI_ROUTING: %d routes, at most %d", len(routes), MaxRoutes)
	}
	t := &routingTable{nr: uint32(len(routes))}
	for i, r := range routes {
		e := routing{gsi: r.GSI, kind: irqRoutingIRQChip, u: [8]uint32{r.Chip, r.Pin}}
		if r.MSI {
			e.kind, e.u = irqRoutingMSI, [8]uint32{uint32(r.Addr), uint32(r.Addr >> 32), r.Data}
		}
		t.entries[i] = e
	}
	return named("KVM_SET_GSI_ROUTING", ioctlPtr(v.fd, setGSIRouting, t))
}

// Clock is KVM_GET_CLOCK.
func (v *VM) Clock() (c ClockData, err error) {
	err = named("KVM_GET_CLOCK", ioctlPtr(v.fd, getClock, &c))
	return c, err
}

// SetClock is KVM_SET_CLOCK.
func (v *VM) SetClock(c ClockData) error {
	return named("KVM_SET_CLOCK", ioctlPtr(v.fd, setClock, &c))
}

// PIT2 is KVM_GET_PIT2.
func (v *VM) PIT2() (s PITState2, err error) {
	err = named("KVM_GET_PIT2", ioctlPtr(v.fd, getPIT2, &s))
	return s, err
}

// SetPIT2 is KVM_SET_PIT2.
func (v *VM) SetPIT2(s PITState2) error { return named("KVM_SET_PIT2", ioctlPtr(v.fd, setPIT2, &s)) }

// IRQChip returns the state of chip 0, 1 (PICs) or 2 (I/O APIC).
func (v *VM) IRQChip(id uint32) (IRQChip, error) {
	c := IRQChip{ChipID: id}
	err := named("KVM_GET_IRQCHIP", ioctlPtr(v.fd, getIRQChip, &c))
	return c, err
}

// SetIRQChip sets a chip's state.
func (v *VM) SetIRQChip(c IRQChip) error {
	return named("KVM_SET_IRQCHIP", ioctlPtr(v.fd, setIRQChip, &c))
}

// DirtyLog reads a slot's dirty bitmap into bits, one bit a page, and without
// CapManualDirtyLog2 clears it.
func (v *VM) DirtyLog(slot uint32, bits []uint64) error {
	a := &dirtyLogArg{slot: slot, addr: addressOf(&bits[0])}
	err := ioctlPtr(v.fd, getDirtyLog, a)
	keepAlive(bits)
	return named("KVM_GET_DIRTY_LOG", err)
}

// ClearDirtyLog protects again the pages whose bits are set: of pages pages from
// first, a multiple of 64.
func (v *VM) ClearDirtyLog(slot uint32, first uint64, pages uint32, bits []uint64) error {
	a := &clearDirtyLogArg{slot: slot, numPages: pages, firstPage: first, addr: addressOf(&bits[0])}
	err := ioctlPtr(v.fd, clearDirtyLog, a)
	keepAlive(bits)
	return named("KVM_CLEAR_DIRTY_LOG", err)
}

// MSRRange is a run of MSRs for SetMSRFilter. The bit of an MSR that is set in
// Bitmap lets the guest use it; one that is clear makes it exit.
type MSRRange struct {
	Flags  uint32 // MSRFilterRead | MSRFilterWrite: which accesses the bitmap is for
	Base   uint32
	Count  uint32
	Bitmap []byte
}

// SetMSRFilter replaces the filter (KVM_X86_SET_MSR_FILTER); no ranges: none.
func (v *VM) SetMSRFilter(ranges []MSRRange) error {
	if len(ranges) > MSRFilterMaxRanges {
		return fmt.Errorf("KVM_X86_SET_MSR_FILTER: %d ranges, at most %d", len(ranges), MSRFilterMaxRanges)
	}
	a := &msrFilterArg{flags: MSRFilterDefaultAllow}
	for i, r := range ranges {
		a.ranges[i] = msrFilterRange{flags: r.Flags, nmsrs: r.Count, base: r.Base, bitmap: addressOf(&r.Bitmap[0])}
	}
	err := ioctlPtr(v.fd, setMSRFilter, a)
	for _, r := range ranges {
		keepAlive(r.Bitmap)
	}
	return named("KVM_X86_SET_MSR_FILTER", err)
}

// ResetDirtyRings is KVM_RESET_DIRTY_RINGS: how many pages were protected again.
func (v *VM) ResetDirtyRings() (int, error) {
	n, err := ioctl(v.fd, resetDirtyRings, 0)
	return n, named("KVM_RESET_DIRTY_RINGS", err)
}

// CreateVCPU makes vCPU id.
func (v *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := ioctl(v.fd, createVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("KVM_CREATE_VCPU %d: %w", id, err)
	}
	unix.CloseOnExec(fd)
	mem, err := unix.Mmap(fd, 0, v.mmapSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map kvm_run of vCPU %d: %w", id, err)
	}
	return &VCPU{fd: fd, run: &Run{mem: mem, page: pageOf(mem)}}, nil
}

func named(request string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", request, err)
}
