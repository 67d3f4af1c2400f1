package disk

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/qcow2"
)

// maxDepth is how many images a chain has at most. Each one more costs an open
// file, its tables' cache and time for what only the lowest has.
const maxDepth = 32

// layer is one image of a chain.
type layer struct {
	file   *hostfile.File
	probed bool          // its format was guessed
	header *qcow2.Header // nil: raw
}

// chain opens an image and what it stands on.
type chain struct {
	o     Options
	given []*os.File // what is left of Options.Backing
}

// OpenFiles opens an image and its backing files, top first, locks them as Open
// does, and returns them for OpenFile in another process: the first is its file,
// the others are its Options.Backing. The caller closes them. An image whose
// format was guessed is to be opened with the same Options there.
func OpenFiles(path string, o Options) ([]*os.File, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Backing != nil {
		return nil, errors.New("disk: OpenFiles opens backing files itself")
	}
	f, err := hostfile.Open(path, !o.ReadOnly)
	if err != nil {
		return nil, err
	}
	c := chain{o: o}
	layers, err := c.layers(f)
	if err != nil {
		return nil, err
	}
	files := make([]*os.File, len(layers))
	for i, l := range layers {
		files[i] = l.file.Detach()
	}
	return files, nil
}

// top opens a disk; it closes f when that fails.
func (c *chain) top(f *hostfile.File) (Disk, error) {
	layers, err := c.layers(f)
	if err != nil {
		return nil, err
	}
	var below qcow2.Backing // of what is opened next
	for i := len(layers) - 1; i >= 0; i-- {
		l := layers[i]
		o := c.o
		o.ReadOnly = o.ReadOnly || i > 0
		var d Disk
		if l.header == nil {
			d, err = newRaw(l.file, o, l.probed)
		} else {
			d, err = newQcow2(l, o, below)
		}
		if err != nil {
			if below != nil {
				err = errors.Join(err, below.Close())
			}
			return nil, closeLayers(err, layers[:i+1])
		}
		if i == 0 {
			return d, nil
		}
		below = d
	}
	return nil, errors.New("disk: a chain without an image") // not reached: layers has one at least
}

func closeLayers(err error, layers []layer) error {
	for _, l := range layers {
		err = errors.Join(err, l.file.Close())
	}
	return err
}

// layers opens and locks the images below f, and reads their headers. It closes
// all, f too, when it fails.
func (c *chain) layers(f *hostfile.File) (all []layer, err error) {
	type identity struct{ device, inode uint64 }
	seen := map[identity]bool{}
	format := c.o.Format
	for {
		all = append(all, layer{file: f})
		l := &all[len(all)-1]
		var id identity
		if id.device, id.inode, err = f.Identity(); err != nil {
			return nil, closeLayers(err, all)
		}
		if seen[id] {
			return nil, closeLayers(fmt.Errorf("disk image %q is its own backing file: rebase it (qemu-img rebase)", f.Path()), all)
		}
		seen[id] = true
		if !c.o.NoLock {
			err = f.Lock(len(all) == 1 && !c.o.ReadOnly)
		}
		if err == nil && format == "" {
			l.probed = true
			format, err = probe(f)
		}
		if err == nil && format == FormatQcow2 {
			l.header, err = qcow2.ReadHeader(f)
		}
		if err != nil {
			return nil, closeLayers(err, all)
		}
		if l.header == nil || l.header.BackingFile == "" {
			return all, nil
		}
		if f, err = c.below(l, len(all)); err != nil {
			return nil, closeLayers(err, all)
		}
		format = l.header.BackingFormat
	}
}

// below opens the backing file of l, the depth-th image of the chain.
func (c *chain) below(l *layer, depth int) (*hostfile.File, error) {
	name, path := l.header.BackingFile, l.file.Path()
	switch {
	case c.o.NoBacking:
		return nil, fmt.Errorf("disk image %q has the backing file %q, which is not allowed here: flatten it (qemu-img convert -O qcow2)", path, name)
	case l.probed:
		return nil, fmt.Errorf("disk image %q has the backing file %q, but its format was guessed: give format=qcow2 if you trust the image (for a backing file: qemu-img rebase -u -F qcow2 on its overlay)", path, name)
	case depth >= maxDepth:
		return nil, fmt.Errorf("disk image %q has more than %d backing files: flatten the chain (qemu-img convert, or commit)", path, maxDepth-1)
	case l.header.BackingFormat != "" && l.header.BackingFormat != FormatRaw && l.header.BackingFormat != FormatQcow2:
		return nil, fmt.Errorf("disk image %q: its backing file %q is in format %q: only %s and %s are supported", path, name, l.header.BackingFormat, FormatRaw, FormatQcow2)
	}
	if c.o.Backing != nil {
		if len(c.given) == 0 {
			return nil, fmt.Errorf("disk image %q: its backing file %q was not given", path, name)
		}
		f := c.given[0]
		c.given = c.given[1:]
		h, err := hostfile.New(f, false)
		if err != nil {
			return nil, closeAll(err, []*os.File{f})
		}
		return h, nil
	}
	full, err := backingPath(path, name)
	if err != nil {
		return nil, err
	}
	f, err := hostfile.Open(full, false)
	if err != nil {
		return nil, fmt.Errorf("backing file of %q: %w (qemu-img rebase -u changes the name)", path, err)
	}
	return f, nil
}

// backingPath returns where a backing file is that the image at path names.
func backingPath(path, name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("disk image %q: its backing file's name %q is no path", path, name)
	}
	// As QEMU has it: a colon in front of the first slash names a protocol.
	if i := strings.IndexAny(name, ":/"); i >= 0 && name[i] == ':' {
		rest, isFile := strings.CutPrefix(name, "file:")
		if !isFile {
			return "", fmt.Errorf("disk image %q: its backing file %q is not a plain path: only files of this host are supported", path, name)
		}
		name = rest
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	return filepath.Join(filepath.Dir(path), name), nil
}
