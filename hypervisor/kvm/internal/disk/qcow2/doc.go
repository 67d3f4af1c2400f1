// Package qcow2 reads and writes disk images in QEMU's qcow2 format, versions 2
// and 3 (QEMU's docs/interop/qcow2.txt, "the specification" here).
//
// It must not import anything of Vantage but package hostfile. It opens no file
// by name: who uses it hands it the image, and the backing file.
//
// # What it can
//
// Reading: all kinds of clusters, compressed ones too (deflate and zstd), and
// backing files. Writing: to images whose reference counts are in order, with
// reference counts of every width, and with internal snapshots, whose clusters
// are copied when they are written to. Refused by name: encryption, external
// data files, extended L2 entries, and features that are not known.
//
// # What is where
//
// A guest's cluster is found by two tables: L1, which is in memory, has L2
// tables, of which a bounded cache has pages; those entries say where on the
// host the cluster is. Every host cluster has a reference count, likewise in
// two levels: the table is in memory, and pages of its blocks in the cache.
// Entries that say that there is one reference only (bit 63) can be written in
// place; everything else is written to a cluster that is allocated for it.
//
// # Order of writes
//
// At whatever moment the process or the host ends, the image is sound: nothing
// refers to a cluster whose reference count or content is not there yet. What
// can be left behind is clusters that are counted and not referred to (leaks,
// which qemu-img check -r leaks takes away). For this, changed tables stay in
// memory until Flush (or until the cache is full), which writes
//
//  1. reference counts;
//  2. after an fdatasync, which also covers the guest's data and what new tables
//     were when they were made (empty, or copies), the entries of the reference
//     count table that are new, and after another one
//  3. the entries of L2 tables and of L1, and one more fdatasync.
//
// Where there is nothing of a kind, its fdatasync is left out.
//
// A cluster that is not referred to any more has its count lowered after that,
// and not before all requests are over that may be reading there: so no reader
// finds another's data in it.
//
// A guest's writes that no Flush followed may be lost when the process is
// killed, as on any disk with a cache of its own.
package qcow2
