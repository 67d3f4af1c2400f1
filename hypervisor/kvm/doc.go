// Package kvm is the driver of Vantage's own machines (`vantage run`): VMs on
// /dev/kvm whose process serves a private unix socket.
//
// The guest's memory comes over that socket as a file descriptor and is mapped:
// reading it copies nothing and asks no one. All else is asked of the machine's
// process. What a handle has set in a machine (traps, holds, dirty tracking) is
// taken back when it is closed, and by the machine when the process that has it
// ends, however it ends. Pause is the machine's own state and stays.
//
// A handler of a trap has the time that the machine gives it (5 seconds): one
// that takes longer loses the connection and with it all its traps, and the guest
// runs on.
//
// It must not import anything of Vantage but package hypervisor and what is below
// hypervisor/kvm/internal, and not the machine itself (vmm): it speaks to one by
// its socket alone.
package kvm
