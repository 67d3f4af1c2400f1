// Package control lets clients of other processes reach a machine: it serves the
// protocol of package wire on a private unix socket, gives the guest's memory
// away as a file descriptor, carries traps to who set them, and takes back what
// a client has set when it ends, however it ends.
//
// A client is the machine's owner or root, but its program may be wrong, slow or
// killed at any moment: nothing that a client does or leaves undone stops the
// guest for longer than a deadline, or takes more memory than a bound.
//
// It must not import anything of Vantage but packages hypervisor and wire: the
// machine is an interface (Machine) that it declares.
package control
