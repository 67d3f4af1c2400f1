package kvmapi

// Run is the page that a vCPU shares with the kernel (struct kvm_run). Only the
// vCPU's own thread may use it, but for Kick.
type Run struct {
	mem  []byte
	page *page
}

// ExitReason returns why KVM_RUN returned.
func (r *Run) ExitReason() ExitReason { return ExitReason(r.page.exitReason) }

// SetImmediateExit makes the next KVM_RUN return with EINTR, before the guest
// runs (KVM_CAP_IMMEDIATE_EXIT). Another thread may set it to kick a vCPU: it
// does so before it sends the signal.
func (r *Run) SetImmediateExit(on bool) {
	storeByte(&r.page.immediateExit, on)
}

// IO returns the access of ExitIO. data holds count items of size bytes, to be
// filled for an IN.
func (r *Run) IO() (port uint16, size int, write bool, data []byte) {
	e := union[ioExit](r.page)
	n := uint64(e.size) * uint64(e.count)
	return e.port, int(e.size), e.direction == 1, r.mem[e.dataOffset : e.dataOffset+n]
}

// MMIO returns the access of ExitMMIO. data, of up to 8 bytes, is to be filled
// for a read.
func (r *Run) MMIO() (gpa uint64, data []byte, write bool) {
	e := union[mmioExit](r.page)
	return e.physAddr, e.data[:min(e.len, 8)], e.isWrite != 0
}

// Debug returns the state of ExitDebug: the exception (1: #DB, 3: #BP), the
// linear address of the instruction, DR6 and DR7.
func (r *Run) Debug() (exception uint32, pc, dr6, dr7 uint64) {
	e := union[debugExit](r.page)
	return e.exception, e.pc, e.dr6, e.dr7
}

// MSR returns the access of ExitRDMSR and ExitWRMSR.
func (r *Run) MSR() (index uint32, value uint64, reason uint32) {
	e := union[msrExit](r.page)
	return e.index, e.data, e.reason
}

// AnswerMSR sets the value that RDMSR gives, or, with fail, lets the access
// raise #GP.
func (r *Run) AnswerMSR(value uint64, fail bool) {
	e := union[msrExit](r.page)
	e.data, e.error = value, 0
	if fail {
		e.error = 1
	}
}

// InternalError returns the state of ExitInternalError. For an emulation failure
// data may hold the instruction's bytes (see api.rst, 5.2).
func (r *Run) InternalError() (suberror uint32, data []uint64) {
	e := union[internalExit](r.page)
	return e.suberror, e.data[:min(e.ndata, 16)]
}

// FailEntry returns the hardware's reason of ExitFailEntry.
func (r *Run) FailEntry() uint64 { return union[struct{ reason uint64 }](r.page).reason }

// SystemEvent returns the type of ExitSystemEvent.
func (r *Run) SystemEvent() uint32 { return union[struct{ kind uint32 }](r.page).kind }

// SetSync says which registers (SyncRegs | …) the kernel stores here at each exit.
func (r *Run) SetSync(mask uint64) { r.page.validRegs = mask }

// Sync returns what SetSync set.
func (r *Run) Sync() uint64 { return r.page.validRegs }

// SetDirty says which of the synchronised registers the next KVM_RUN takes from
// here.
func (r *Run) SetDirty(mask uint64) { r.page.dirtyRegs |= mask }

// Dirty returns what SetDirty has set since the last KVM_RUN.
func (r *Run) Dirty() uint64 { return r.page.dirtyRegs }

// ClearDirty takes back what SetDirty has set.
func (r *Run) ClearDirty() { r.page.dirtyRegs = 0 }

// Regs are the synchronised general registers.
func (r *Run) Regs() *Regs { return &r.page.regs }

// Sregs are the synchronised special registers.
func (r *Run) Sregs() *Sregs { return &r.page.sregs }

// Events are the synchronised pending events.
func (r *Run) Events() *VCPUEvents { return &r.page.events }
