package main

import (
	"context"
	"io"
	"testing"
	"time"
)

// Ctrl-C ends a command that waits for its input.
func TestInterruptedInput(t *testing.T) {
	for _, args := range [][]string{
		{"policy", "eval", "default"},
		{"policy", "replay", "default", "-", "--against", "default"},
	} {
		r, w := io.Pipe()
		a := &app{stdin: r, stdout: io.Discard, stderr: io.Discard}
		ctx, cancel := context.WithCancel(t.Context())
		code := make(chan int, 1)
		go func() { code <- a.run(ctx, args) }()
		// It reads once the write is taken.
		if _, err := w.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		cancel()
		select {
		case got := <-code:
			if got != exitFailed {
				t.Errorf("%q ended with status %d, want %d", args, got, exitFailed)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%q did not end", args)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}
