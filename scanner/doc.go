// Package scanner looks for YARA rules in guest memory: in what each process
// has in RAM, as the process sees it, in the kernel's memory, and in all
// physical pages.
//
// # Extents
//
// Memory is scanned in extents: runs of guest-virtual (or physical) bytes that
// libyara sees as one buffer, so a string that crosses pages which lie apart in
// physical memory is found. An extent belongs to one area (a mapping of a
// process, a region of the kernel, a range of RAM). An area with more than
// ExtentSize bytes in RAM is cut into several extents; each of these also shows
// libyara the Overlap bytes behind its end, and a match belongs to the extent in
// which it starts, so it is found once. Where two areas touch, the page before
// and the page behind the border are looked at together once more, for matches
// that straddle it.
//
// What follows from that, and differs from one libyara run over everything:
//   - a rule's condition is evaluated over one extent: "$a and $b" needs both in
//     the same one. Offsets in conditions ("$a at 0", uint32(0)) count from the
//     extent's start, which for an area's first extent is the area's first
//     resident page; filesize is the number of bytes in the extent;
//   - a match that goes on for more than Overlap bytes behind a cut (only the
//     [-] jumps of hex strings can be that long), or for more than a page behind
//     the border of two areas, is lost.
//
// # What is not shown to libyara
//
// In a run of three or more all-zero pages only the first and the last are kept.
// Where pages are missing (not in RAM, unreadable), a page of zeros that belongs
// to no address separates what lies on the two sides. A match that crosses either
// place is no match and is dropped: skipping never joins bytes that are not
// neighbours. A string that consists of more than a page of zeros is not found.
//
// # Hostile memory
//
// Every extent is copied to a buffer of its worker before libyara sees it, from
// memory files too. libyara reads bytes more than once and trusts that they stay;
// a running guest could change them in between. And it reads in C, where a
// SIGBUS (the file was truncated while it is mapped) ends the process. libyara
// 4.2 has a guard against that, YR_TRYCATCH: it sets and restores the
// process-wide actions of SIGBUS and SIGSEGV around each scan, which in threads
// that overlap leaves the wrong ones behind, and without SA_ONSTACK, which the Go
// runtime must have. It is off. The copy costs about 7 % of the CPU time of
// scanning memory without a zero page, and the bytes are then in the CPU's cache.
//
// libyara keeps every match of every string until the end of a run, so a guest
// full of one short string could fill the host's memory. An extent is therefore
// first scanned in libyara's fast mode, which keeps one match of a string where
// the condition needs no more; only when a rule matched is the extent gone over
// again, in small windows, to list where its strings are. (Where a condition
// counts matches, libyara keeps up to 1,000,000 of a string, and no more count.)
//
// libyara gives up on an extent after Options.Timeout, looking at the clock
// after each 4096 bytes; what it gave up on, or failed on in any other way, is
// tried again in smaller pieces, so that bytes made to be slow do not hide what
// lies next to them. What remains is told in the Summary.
//
// This package must not import introspect/linux, a driver, event, policy or
// node: it is given areas and does not know what guest they come from. It is
// the only one that speaks to libyara (github.com/hillu/go-yara).
package scanner
