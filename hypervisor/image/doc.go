// Package image is the driver for memory files: raw RAM, ELF core dumps (as
// QEMU's dump-guest-memory writes them), LiME, and AVML's compressed LiME.
//
// A target is a path, with options after a question mark where the file alone
// does not tell (see Open). Files are mapped into memory where they can be and
// their bytes are then seen without a copy (hypervisor.Mapper); AVML files are
// decompressed piece by piece, on demand, into a cache of bounded size. An ELF
// core with QEMU's notes has vCPU registers (hypervisor.RegisterReader). What
// a file cannot give it does not offer: nothing here writes, pauses or resumes.
//
// The file is taken as hostile: every length in it is checked against its
// size, and what does not fit is a *FormatError that names the offset. A file
// that is truncated while it is open makes reads fail with
// hypervisor.ErrUnreadable and views fault: who reads a view does so under
// hypervisor.Guard, as with every driver. The last page of a file that was cut
// within that page reads as zeros from the cut on.
//
// This package must not import any package of Vantage but hypervisor.
package image
