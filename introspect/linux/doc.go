// Package linux tells what runs in a Linux guest (x86-64, kernels 5.4 to 7.x),
// read from the guest's memory alone: processes and threads, loaded modules,
// memory maps, and the facts of the kernel itself.
//
// Where a fact lies is looked up in the guest's own type information (package
// introspect/linux/profile): the table in layout.go names, for each fact, the
// members that it was ever found in, and the first that this kernel has is
// taken. No version number decides anything.
//
// # Guests lie, and guests run
//
// Every byte comes from the guest and is hostile. Each walk has a bound, each
// pointer is checked before it is followed, a cycle ends it, and what could not
// be read or believed is told in an introspect.Coverage next to a partial
// result. What a guest may hide is looked for in several of its records: of
// processes the list, the pid index, the sets of control groups and the CPUs' run
// queues; of modules the list, the tree, sysfs and what is executable among them.
// What is in one but not in another that must have it is marked hidden.
//
// Memory of a live guest changes during a walk. A walk that finds the
// structures torn is made again, a bounded number of times, and a process is
// called hidden only if it is so in each of several rounds. An exact answer of
// one moment needs a paused guest.
//
// # Strings
//
// Strings hold the guest's bytes as they are: they may carry control
// characters and need not be UTF-8. In JSON form, a string that is not valid
// UTF-8 has each offending byte written as \xNN (a backslash, an x and two
// hexadecimal digits). Whoever prints them must escape them.
//
// This package must not import a driver (hypervisor/qemu, …), nor scanner,
// policy, firewall, node or cmd.
package linux
