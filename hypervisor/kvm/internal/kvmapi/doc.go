// Package kvmapi is Linux's KVM interface on x86-64 (Documentation/virt/kvm/api.rst,
// include/uapi/linux/kvm.h) as typed Go: the ioctls of /dev/kvm, of a VM and of
// a vCPU, and the page that a vCPU shares with the kernel. It adds no behaviour.
//
// It must not import anything of Vantage: the core stands on it.
package kvmapi
