// Package wire is the language between a machine's process and its clients: the
// messages on its socket, and how values are written in them.
//
// The socket is a unix socket of type SOCK_SEQPACKET: the kernel keeps messages
// apart and whole, so that no peer can leave half of one behind, and file
// descriptors come with the message that they belong to. A message is a header
// of 16 bytes and a body of at most MaxBody (see Message).
//
// A client sends a hello with the versions that it speaks and is answered with a
// hello that has the version chosen, the machine's facts and its memory as a
// file descriptor; an error is the answer to a client that is too old or too
// new. Then it sends requests, several at a time, told apart by their ID.
//
// Traps have channels of their own, one socket pair for each vCPU: an event and
// its answer go between two threads that wait for nothing else.
//
// Both sides take nothing of the other for granted: every length is checked
// against what is there, and what is too long or not understood ends the
// connection.
//
// It must not import anything of Vantage but package hypervisor.
package wire
