// Package jail takes away from a machine's process all that it does not need: a
// guest that breaks out of its machine is then in a process without rights, files,
// network or other processes to see.
//
// It takes two steps, since much of what is taken away belongs to a thread, and a
// Go program has several before its first line runs:
//
//   - Prepare makes a command start in namespaces of its own. The program calls
//     Enter first of all, which on one thread makes a root with nothing in it but
//     the program and its libraries, drops user, capabilities and the right to ever
//     get any back, shuts files and network off by Landlock, and executes the
//     program anew: all threads of that have what the one had.
//   - Seal is called when the machine is made and before its guest runs: a seccomp
//     filter for all threads leaves the system calls that a running machine needs.
//
// What each part stops is in docs/SECURITY.md. It must not import anything of
// Vantage.
package jail
