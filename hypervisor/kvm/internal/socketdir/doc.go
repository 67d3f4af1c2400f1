// Package socketdir is where the sockets of running machines are, and who may
// have one: a folder of root's or of a user's own, in it NAME.sock, and NAME.lock
// for as long as a machine has the name. A machine that dies leaves both; the
// lock, which the kernel gives back, tells that they mean nothing any more.
//
// It must not import anything of Vantage.
package socketdir
