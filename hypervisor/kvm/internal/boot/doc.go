// Package boot puts a stock Linux kernel into guest memory, in the way a boot
// loader does, and says with which registers the boot processor begins: a
// bzImage by the 64-bit boot protocol (Documentation/arch/x86/boot.rst), an ELF
// vmlinux by PVH (Documentation/virt: xen/include/public/arch-x86/hvm/start_info.h).
//
// The kernel file is checked as hostile input. The package must not import
// anything of Vantage but packages hypervisor, bus and layout.
package boot
