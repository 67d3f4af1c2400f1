// Package kvmrun reads the registers of another process's KVM vCPUs without
// stopping them and without asking the process.
//
// A vCPU's file descriptor is duplicated with pidfd_getfd. Its ioctls refuse a
// foreign address space (EIO), but its kvm_run page can be mapped, and
// KVM_CAP_SYNC_REGS is a matter of that page alone: with bits set in
// kvm_valid_regs KVM stores the registers there on every exit from KVM_RUN. An
// exit is made to happen by the signal that QEMU itself kicks its vCPU threads
// with: SIGUSR1 (SIG_IPI, accel/kvm/kvm-all.c), whose handler makes KVM_RUN
// return at once, and QEMU enter it again.
//
// A thread is kicked only if it catches that signal and does not block it,
// which in QEMU holds for vCPU threads alone; QEMU's other threads block it.
// kvm_valid_regs is put back to what it was, whatever happens short of the
// death of our process; then, the vCPU goes on to pay for a copy of about 500
// bytes at each exit, which has no other effect.
//
// A vCPU that is not in KVM_RUN, because the VM is paused, makes no exit: the
// read then ends with ErrNotRunning.
//
// This package must not import any other package of Vantage but hypervisor and
// internal/proc.
package kvmrun
