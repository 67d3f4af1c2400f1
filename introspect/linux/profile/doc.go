// Package profile finds a Linux kernel (x86-64, 5.4 and later) in a guest's
// memory and learns its types and symbols from the guest's own RAM, with no
// symbol file: BTF for the types, the kallsyms tables for the symbols.
//
// # How a kernel is found
//
// The kernel's page table has a table, level3_kernel_pgt, of which only the last
// two entries are used; the first of these leads to the mapping of the kernel's
// image (the last 2 GiB of the address space), and the table itself lies in that
// image. With a vCPU's registers it is reached from CR3. From RAM alone every
// page is looked at for that shape, which costs one or two cache lines a page.
// Either way the image's virtual and physical address follow from the tables,
// whatever KASLR did. Stale copies of the image, such as those that unpacking
// leaves behind, do not hold the table that maps them. Of several that do, the
// one is taken that most top tables in RAM lead to; a guest's root can forge
// those too, but not what CR3 says.
//
// Next the tables of kallsyms are found in the image's read-only data, by their
// structure (kallsyms.go): what each says of the others must fit to the byte, and
// the first address must be that of the image. The symbols lead to the top page
// table (which must lead back to the image), the banner, the BTF and the build-id.
// In the end some well-known symbols must land on plausible bytes (check.go).
//
// # What is trusted
//
// Nothing. All of it is the guest's to change: counts, lengths and references
// are checked where they are used, walks are bounded, and what is decoded is a
// private copy, since a running guest can change its memory between a check and
// a use. A guest that lies gets an error that names the table and the place
// (DamagedError, SanityError), or a Kernel without Types.
//
// Kernel 5.4 is known by its formats only (synthetic guests in the tests); the
// kernels of Debian from 5.10 to 7.2 are tested as they are.
//
// Not found are kernels under Xen PV, and those whose page tables are encrypted
// (SEV). Types of modules are not read.
//
// # The cache
//
// Indices over the names, the costly part of the rest, are kept in
// Options.CacheDir, under a keyed digest of the tables that they belong to
// (cache.go). Tables themselves always come from the guest's memory.
//
// This package must not import a driver (hypervisor/qemu, …), scanner, policy,
// node or cmd. It knows the kernel's image, not what runs on it: processes and
// modules are package introspect/linux's.
package profile
