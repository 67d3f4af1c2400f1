package main

import (
	"fmt"
	"io"
	"os"
)

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
