package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// outFile is a file that is there under its name only when it is whole: it is
// written beside it and renamed. Zeros are left as holes.
type outFile struct {
	name  string
	force bool // replace a file of that name
	f     *os.File
	at    int64
}

// createOut begins a file. The name must not exist yet, unless force is set.
func createOut(name string, force bool) (*outFile, error) {
	if _, err := os.Lstat(name); err == nil && !force {
		return nil, fmt.Errorf("%s: %w (--force replaces it)", name, fs.ErrExist)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".vantage-*.partial")
	if err != nil {
		return nil, err
	}
	return &outFile{name: name, force: force, f: f}, nil
}

// outBlock is the least run of zeros that is left out.
const outBlock = 4096

var outZeros [outBlock]byte

func (o *outFile) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := len(p) - done
		if bytes.HasPrefix(outZeros[:], p[done:done+min(n, outBlock)]) {
			n = min(n, outBlock)
			o.at += int64(n)
			done += n
			continue
		}
		// Up to the next block of zeros.
		end := done + min(n, outBlock)
		for end < len(p) && !bytes.HasPrefix(outZeros[:], p[end:min(len(p), end+outBlock)]) {
			end = min(len(p), end+outBlock)
		}
		k, err := o.f.WriteAt(p[done:end], o.at)
		o.at += int64(k)
		done += k
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// commit gives the file its name.
func (o *outFile) commit() error {
	err := o.f.Truncate(o.at)
	if err == nil {
		err = o.f.Sync()
	}
	if cerr := o.f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = o.rename()
	}
	if err != nil {
		err = errors.Join(err, removeIfThere(o.f.Name()))
	}
	return err
}

func (o *outFile) rename() error {
	if o.force {
		return os.Rename(o.f.Name(), o.name)
	}
	// A link does not replace what came there in the meantime.
	err := os.Link(o.f.Name(), o.name)
	switch {
	case err == nil:
		return os.Remove(o.f.Name())
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s: %w (--force replaces it)", o.name, fs.ErrExist)
	}
	// A filesystem without links.
	if _, err := os.Lstat(o.name); err == nil {
		return fmt.Errorf("%s: %w (--force replaces it)", o.name, fs.ErrExist)
	}
	return os.Rename(o.f.Name(), o.name)
}

// abandon removes what was written.
func (o *outFile) abandon() error {
	return errors.Join(o.f.Close(), removeIfThere(o.f.Name()))
}

func removeIfThere(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

var _ io.Writer = (*outFile)(nil)
