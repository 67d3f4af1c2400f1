// Package lab boots real guests: stock Debian kernels under QEMU, for tests and
// for `vantage demo`.
//
// FetchKernel brings a kernel of a Debian suite, Boot starts a guest with any
// layout of memory that a user may have chosen, and the Guest that it returns
// is what tests compare Vantage's answers with: it has the guest's console, its
// ground truth (Guest.Truth), a monitor of its own (independent of any QMP
// socket that the guest was given for the driver under test) and dumps of its
// memory made by QEMU itself. RunNested runs a test binary inside a guest that
// has a working /dev/kvm with nested paging.
//
// Nothing of a guest outlives it: Close ends QEMU and removes its files, and
// both happen too when the process that called Boot is killed.
//
// This package must not import drivers (hypervisor/qemu, …), introspection,
// nor anything else of Vantage: it is what they are measured against. It has no
// knowledge of package testing; that is in internal/lab/labtest.
package lab
