package main

import (
	"context"
	"fmt"
	"io"
	"os"
)

// stdinReader reads until ctx ends: a read of a terminal or pipe that waits is
// left behind then, for the program to end.
type stdinReader struct {
	ctx context.Context
	r   io.Reader
}

func (s stdinReader) Read(p []byte) (int, error) {
	type result struct {
		n   int
		err error
	}
	done := make(chan result, 1)
	buf := make([]byte, len(p)) // not p: it is the caller's again when ctx ends
	go func() {
		n, err := s.r.Read(buf)
		done <- result{n, err}
	}()
	select {
	case r := <-done:
		return copy(p, buf[:r.n]), r.err
	case <-s.ctx.Done():
		return 0, s.ctx.Err()
	}
}

// openFile opens a file to read; a folder is an error here and not at the first
// read.
func openFile(name string) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err == nil && st.IsDir() {
		f.Close()
		return nil, fmt.Errorf("%s: is a folder, want a file", name)
	}
	return f, nil
}
