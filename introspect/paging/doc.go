// Package paging translates guest-virtual addresses to guest-physical ones by
// walking the guest's own page tables: x86-64 with 4 and 5 levels, PAE, and
// 32-bit with 4 MiB pages (PSE, PSE-36). It reports what the tables say (write,
// user, no-execute, combined over the levels) and tells the reasons apart why an
// address has no page: an empty entry, one that the guest's system uses for its
// own notes (swap), a malformed one, a table that could not be read.
//
// The format is that of the Intel SDM, volume 3A, chapter 4, and the AMD APM,
// volume 2, chapter 5. Page tables are guest bytes and so hostile: every walk is
// bounded (see Options), nothing is followed that a CPU would not follow.
//
// # Staleness
//
// An AddressSpace keeps what it translated (a software TLB), under these rules:
//
//   - Only present, well-formed entries are kept, those of upper levels too.
//     A failure is never kept: the next call walks again.
//   - What is kept holds until Flush, or until another translation takes its
//     place. Nothing else drops it: the guest's INVLPG and its writes to its
//     tables are not seen.
//   - For a static image there is no need to flush. For a live guest the
//     caller flushes when it begins a new look at the guest ("epoch"), as often
//     as its results must be fresh; between two flushes it may see a page
//     where it was, as a CPU's own TLB would. With a paused guest one Flush
//     after the pause gives what the CPU sees.
//   - A walk that began before a Flush leaves nothing behind that a lookup
//     after the Flush would find.
//   - Views that a hypervisor.Mapper gave are kept next to the translation:
//     an AddressSpace must not be used after its VM was closed.
//   - Mappings and Runs keep nothing and use nothing that was kept.
//
// This package must not import a driver (hypervisor/qemu, …) nor know what
// system runs in the guest.
package paging
