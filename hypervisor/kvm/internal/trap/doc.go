// Package trap stops a guest on what it does: it implements the core's Hooks, and
// hypervisor.Trapper and hypervisor.DirtyTracker for a machine of ours.
//
// What a trap is made of (docs/TRAPS.md): memory slots that are read-only or have
// a hole, userfaultfd, INT3 in guest memory, debug registers, KVM's MSR filter,
// port exits. A vCPU that hits one calls the handlers while it stands; what it
// does then is done by the engine itself where it knows the instruction for
// certain (package insn), else by the processor: one instruction, while all
// other vCPUs stand.
//
// What the hooks read (areas, sites, traps) changes only while all vCPUs stand
// (core.VM.Still, Exclusive): a hook needs no lock, and after it has waited
// (VCPU.Wait) it looks again.
//
// It must not import anything of Vantage but package hypervisor and its
// neighbours core, guestmem, insn, kvmapi, layout, slots and uffd.
package trap
