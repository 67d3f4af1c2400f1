// Package profile finds a Linux kernel (x86-64) in a guest's memory and learns
// its types and symbols from the guest's own RAM, with no symbol file: BTF for
// the types, the kallsyms tables for the symbols.
//
// This package must not import a driver (hypervisor/qemu, …), scanner, policy,
// node or cmd. It knows the kernel's image, not what runs on it: processes and
// modules are package introspect/linux's.
package profile
