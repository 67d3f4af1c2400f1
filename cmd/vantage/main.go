// Command vantage secures virtual machines from outside them: it finds the VMs
// of this host, reads their memory, tells what runs in them, scans them with
// YARA and lets policy answer. See `vantage help`.
//
// This package wires and prints; it must hold no logic of introspection,
// scanning or policy, and nothing may import it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// version is set when the binary is linked.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks; a second one ends the program whatever it waits
	// for (a named pipe that no one opens, a disk that hangs).
	context.AfterFunc(ctx, stop)
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, version: version}
	code := a.run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}
