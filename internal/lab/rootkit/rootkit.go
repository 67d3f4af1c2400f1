// Package rootkit has a kernel module that hides things from the kernel's own
// records, for tests of who looks for them. Only its source is kept; it is built
// when a test asks for it and runs in guests of the lab alone.
//
// This package is for tests only and must not be imported by anything else.
package rootkit

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vantage-vmi/vantage/internal/lab"
)

//go:embed module/*.c
var source embed.FS

// Name is the module's name. What it can hide, and how it is told, is written at
// the top of its source.
const Name = "rootkit"

// Build returns the module for the kernel of a suite and flavour. Errors are
// those of lab.BuildModule.
func Build(ctx context.Context, suite lab.Suite, flavour lab.Flavour) ([]byte, error) {
	src, err := fs.Sub(source, "module")
	if err != nil {
		return nil, err
	}
	path, err := lab.BuildModule(ctx, suite, flavour, Name, src)
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// Rename gives a built module another name of the same length: a kernel loads no
// two of one name.
func Rename(module []byte, name string) ([]byte, error) {
	if len(name) != len(Name) {
		return nil, fmt.Errorf("module name %q: not as long as %q", name, Name)
	}
	old := []byte(Name + "\x00")
	if bytes.Count(module, old) < 2 { // in its struct module and in .modinfo
		return nil, errors.New("module does not name itself")
	}
	return bytes.ReplaceAll(module, old, []byte(name+"\x00")), nil
}
