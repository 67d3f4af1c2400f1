// Package qemu is the driver for running QEMU virtual machines: any of them,
// whoever started it, with no option of ours on its command line.
//
// # How a VM is reached
//
// Discovery reads /proc only. The guest's RAM layout follows from the command
// line (machine type, -m, -numa, memory backends) and, where a QMP monitor is
// there and free, is checked against QEMU's own `info mtree -f`. The bytes come
// from a read-only view of the RAM's file where the backend is shared, else
// from the process's address space (process_vm_readv, /proc/PID/mem).
// Registers come through QMP or, under KVM and without stopping or asking
// anyone, from the vCPUs' kvm_run pages (package internal/kvmrun).
//
// # What is RAM
//
// The same with QMP and without it: the machine's main memory as the board
// maps it, below the PCI hole and above 4 GiB, and DIMMs where QMP tells of
// them. Below 1 MiB what the guest sees differs from it, and changes while the
// firmware runs; there the RAM itself is read, whatever covers it:
//   - 0xa0000-0xbffff: RAM to system management mode, and to all where there is
//     no video card; else the guest sees video memory in front of it;
//   - 0xc0000-0xfffff: the guest sees it once its firmware has shadowed itself
//     (PAM registers), ROM before.
//
// So all that `info mtree -f` calls RAM at any moment is read, nothing of main
// memory is ever out of sight, and the sum is what -m says. Video memory, ROMs
// and other device memory are not RAM.
//
// # What a VM's end looks like
//
// Opening a VM takes a pidfd, so that a PID that is used again is never
// mistaken for the VM. A goroutine waits on it; from the moment it wakes every
// method answers with an error that wraps hypervisor.ErrGone. A read that fails
// asks the pidfd at once, so that a failure caused by the VM's end is always
// told as such. A read that succeeds is of a VM that lived when the read
// began, give or take that goroutine's wake-up: views of a shared backend stay
// readable after the VM's end, and then hold its last bytes.
//
// # What is promised to the guest
//
// Reading never stops a guest, never writes to it, and never makes its host
// allocate pages that the guest had not touched, except by reading through
// MapPhys. A Pause is deliberate and outlives us: neither Close nor the death
// of our process resumes the VM, since a VM that was stopped because it is
// infected must not run on because an observer crashed. Resume it with
// Resume, or with `cont` on any monitor. Passive register reads set
// kvm_valid_regs for some milliseconds; killed right then, the guest runs on,
// and pays a copy of some hundred bytes at each exit.
//
// A QMP monitor serves one client. It is connected to for each operation, for
// milliseconds, and never while another client is on it: that is read from
// /proc/PID/net/unix, not tried.
//
// This package must not import any other driver, nor introspect or anything
// above it.
package qemu
