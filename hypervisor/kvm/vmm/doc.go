// Package vmm is a virtual machine monitor: it makes a machine of a Config, boots
// a stock kernel on it, and lets its owner pause, look into, trap, save and end
// it. Everything below hypervisor/kvm/internal is wired here and only here.
//
// It knows nothing of what runs in the guest, and must not import anything of
// Vantage but package hypervisor and what is below hypervisor/kvm.
package vmm
