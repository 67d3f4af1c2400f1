package disk

import (
	"errors"
	"fmt"
	"os"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/qcow2"
)

// Disk is a guest's disk. It is safe for concurrent use: requests that overlap
// in time and place leave some order's bytes, those of one sector by one of them.
//
// The slices of an iov are views of guest memory, which may change while they
// are used. An error wraps one of this package's or a unix.Errno (ENOSPC where
// the host's filesystem is full); part of the request may have been done then.
type Disk interface {
	// Size returns the disk's size in bytes, a multiple of 512. It does not change.
	Size() uint64
	ReadOnly() bool
	// ReadV fills iov from byte off of the disk on.
	ReadV(iov [][]byte, off uint64) error
	// WriteV writes iov from byte off on. It is on stable storage after Flush.
	WriteV(iov [][]byte, off uint64) error
	// Flush returns when every write that has returned is on stable storage.
	Flush() error
	// Discard says that a range's content is not needed any more. What it reads as
	// afterwards is zeros or what it was before.
	Discard(off, n uint64) error
	// WriteZeroes makes a range read as zeros. With unmap its space may be given
	// back. It may take as long as writing that many bytes.
	WriteZeroes(off, n uint64, unmap bool) error
	// ID returns Options.ID.
	ID() string
	// Close flushes, waits for requests under way, and closes. Later requests
	// return ErrClosed.
	Close() error
}

// Errors that a disk's errors wrap.
var (
	ErrBounds   = hostfile.ErrBounds   // an access beyond the disk's end
	ErrReadOnly = hostfile.ErrReadOnly // a write to a read-only disk
	ErrClosed   = hostfile.ErrClosed   // use after Close
	ErrLocked   = hostfile.ErrLocked   // another process uses the image: a *LockedError
	ErrCorrupt  = qcow2.ErrCorrupt     // an image contradicts itself
	// ErrProbed is returned for a write that would make a raw disk whose format
	// was not given look like another format.
	ErrProbed = errors.New("this write would make the raw image look like another format: give format=raw to allow it")
)

// LockedError says who uses an image.
type LockedError = hostfile.LockedError

// Formats of images.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// MaxID is how long Options.ID can be (VIRTIO_BLK_ID_BYTES).
const MaxID = 20

// Options say how to open an image.
type Options struct {
	ReadOnly bool
	// Format is FormatRaw or FormatQcow2; "" guesses, within limits: see the
	// package's comment.
	Format string
	// ID is what the guest sees as the disk's serial number: up to MaxID printable
	// ASCII characters.
	ID string
	// NoBacking refuses an image that has a backing file.
	NoBacking bool
	// Backing, when it is not nil, is the chain of backing files, top first, open
	// for reading: as OpenFiles returns it. No file is opened by name then. They
	// are closed with the disk, and when it cannot be opened.
	Backing []*os.File
	// NoLock leaves out the locks: for an image that the caller has locked by
	// other means.
	NoLock bool
}

// Open opens an image. Its errors say what to do about them. One that wraps
// ErrLocked says that another process uses the image.
func Open(path string, o Options) (Disk, error) {
	if err := o.check(); err != nil {
		return nil, closeAll(err, o.Backing)
	}
	f, err := hostfile.Open(path, !o.ReadOnly)
	if err != nil {
		return nil, closeAll(err, o.Backing)
	}
	return open(f, o)
}

// OpenFile is Open of a file that is open already: for reading and writing,
// unless o.ReadOnly is set. The disk closes it; so does OpenFile when it fails.
// Locks are the open file description's: a process that is handed a descriptor
// of an image that its parent has locked has the parent's locks.
func OpenFile(f *os.File, o Options) (Disk, error) {
	files := append([]*os.File{f}, o.Backing...)
	if err := o.check(); err != nil {
		return nil, closeAll(err, files)
	}
	h, err := hostfile.New(f, !o.ReadOnly)
	if err != nil {
		return nil, closeAll(err, files)
	}
	return open(h, o)
}

func closeAll(err error, files []*os.File) error {
	for _, f := range files {
		f.Close()
	}
	return err
}

func (o Options) check() error {
	switch o.Format {
	case "", FormatRaw, FormatQcow2:
	default:
		return fmt.Errorf("disk format %q is not known: give %s or %s (qemu-img convert makes one of others)", o.Format, FormatRaw, FormatQcow2)
	}
	if len(o.ID) > MaxID {
		return fmt.Errorf("disk id %q has %d characters: at most %d", o.ID, len(o.ID), MaxID)
	}
	for _, c := range o.ID {
		if c < ' ' || c > '~' {
			return fmt.Errorf("disk id %q: only printable ASCII characters", o.ID)
		}
	}
	return nil
}

// open makes a disk of an open image; it closes f and o.Backing when it fails.
func open(f *hostfile.File, o Options) (Disk, error) {
	c := chain{o: o, given: o.Backing}
	d, err := c.top(f)
	if err == nil && len(c.given) > 0 {
		err = errors.Join(fmt.Errorf("disk image %q: %d more backing files were given than it has", f.Path(), len(c.given)), d.Close())
	}
	if err != nil {
		return nil, closeAll(err, c.given)
	}
	return d, nil
}
