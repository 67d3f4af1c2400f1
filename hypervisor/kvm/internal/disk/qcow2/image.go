package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

// Entries of L1 and L2 tables.
const (
	entryOffset     = 0x00ff_ffff_ffff_fe00
	entryCompressed = 1 << 62 // L2
	entryCopied     = 1 << 63 // the only reference: can be written in place
	entryZero       = 1       // L2, version 3: reads as zeros

	reftableOffset = ^uint64(0x1ff)
)

// Backing is what is read where an image has nothing of its own. It is closed
// with the image.
type Backing interface {
	Size() uint64
	ReadV(iov [][]byte, off uint64) error
	Close() error
}

// Storage is what an image is in: a *hostfile.File, whose comments say what the
// methods do. It is safe for concurrent use.
type Storage interface {
	Path() string
	Device() bool
	Writable() bool
	Size() (uint64, error)
	Grow(size uint64) error
	ReadSome(iov [][]byte, off uint64) (uint64, error)
	ReadAt(p []byte, off uint64) error
	WriteV(iov [][]byte, off uint64) error
	WriteAt(p []byte, off uint64) error
	WriteZeroes(off, n uint64, unmap bool) error
	Punch(off, n uint64) (bool, error)
	Sync() error
	Close() error
}

// Image is an open image. It is safe for concurrent use.
type Image struct {
	file     Storage
	header   *Header
	backing  Backing // nil: none
	readOnly bool

	cluster uint64 // bytes
	inL2    uint   // log2 of entries per L2 table
	perRef  uint64 // counts per refcount block

	use    sync.RWMutex // held by requests; Close waits for them
	closed bool

	turns     turns
	flushing  sync.Mutex  // one commit at a time
	autoclear atomic.Bool // feature bits are to be cleared before the first write

	mu            sync.Mutex // guards what follows; not held while guests' data is moved
	l1            []uint64
	l1Dirty       map[int]struct{}
	reftable      []uint64
	reftableDirty map[int]struct{}
	reftableAt    uint64 // its offset
	reftableMoved bool   // the header does not say so yet
	cache         *cache
	meta          map[uint64]struct{} // host clusters that hold tables
	busy          []*claim            // guest clusters that are being allocated
	frees         []freed             // to lower the counts of, when nothing on disk refers to them
	dropped       []freed             // nothing does, but requests under way may still read there
	unused        []freed             // likewise, but only requests of the turn before
	end           uint64              // host clusters that the file has; what comes behind is new
	hole          uint64              // no cluster in front of it is free
	holesEnd      uint64              // the file's clusters when it was opened

	buffers  sync.Pool // of *[]byte, each of a cluster
	unpacked unpacked
}

// freed is a run of host clusters that have lost a reference.
type freed struct{ first, n uint64 }

// Open opens the image in f whose header is h. It does not take over f or
// backing when it fails. backing is nil when the header names none.
func Open(f Storage, h *Header, readOnly bool, backing Backing) (*Image, error) {
	if !readOnly {
		switch {
		case !f.Writable():
			return nil, hostfile.ErrReadOnly
		case h.Corrupt():
			return nil, h.corrupt("it is marked so, and can only be attached read-only")
		case h.Dirty():
			return nil, fmt.Errorf("disk image %q was not closed by its last user, which had put off its reference counts: run qemu-img check -r all on it first, or attach it read-only", h.path)
		}
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	im := &Image{
		file: f, header: h, backing: backing, readOnly: readOnly,
		reftableAt:    h.reftableOffset,
		cluster:       1 << h.ClusterBits,
		inL2:          h.ClusterBits - 3,
		perRef:        8 << h.ClusterBits >> h.refcountOrder,
		l1Dirty:       map[int]struct{}{},
		reftableDirty: map[int]struct{}{},
		meta:          map[uint64]struct{}{},
	}
	im.end = (size + im.cluster - 1) >> h.ClusterBits
	if f.Device() {
		im.end = size >> h.ClusterBits
	}
	im.holesEnd = im.end
	im.cache = newCache(f, min(maxPage, im.cluster))
	im.buffers.New = func() any {
		b := make([]byte, im.cluster)
		return &b
	}
	if im.l1, err = im.table(h.l1Offset, h.l1Entries*8); err != nil {
		return nil, err
	}
	if readOnly {
		return im, nil
	}
	if im.reftable, err = im.table(h.reftableOffset, h.reftableBytes); err != nil {
		return nil, err
	}
	im.autoclear.Store(h.autoclear != 0)
	return im, im.noteTables()
}

// table reads a table of 8-byte entries.
func (im *Image) table(off, n uint64) ([]uint64, error) {
	b := make([]byte, n)
	if err := im.file.ReadAt(b, off); err != nil {
		return nil, err
	}
	t := make([]uint64, n/8)
	for i := range t {
		t[i] = binary.BigEndian.Uint64(b[i*8:])
	}
	return t, nil
}

// noteTables collects which clusters hold tables, so that no guest's data is
// ever written there, whatever the image says.
func (im *Image) noteTables() error {
	h := im.header
	im.note(0, im.cluster)
	im.note(h.l1Offset, h.l1Entries*8)
	im.note(h.reftableOffset, h.reftableBytes)
	if h.Snapshots > 0 {
		im.note(h.snapshotOffset, 1)
	}
	for i, e := range im.l1 {
		if e&entryOffset == 0 {
			continue
		}
		off, err := im.l2Table(uint64(i))
		if err != nil {
			return err
		}
		im.note(off, im.cluster)
	}
	for i, e := range im.reftable {
		if e == 0 {
			continue
		}
		off, err := im.refBlock(uint64(i))
		if err != nil {
			return err
		}
		im.note(off, im.cluster)
	}
	return nil
}

func (im *Image) note(off, n uint64) {
	for c := off >> im.header.ClusterBits; c <= (off+n-1)>>im.header.ClusterBits; c++ {
		im.meta[c] = struct{}{}
	}
}

// Header returns the image's header as it was read.
func (im *Image) Header() *Header { return im.header }

// Size returns the disk's size in bytes.
func (im *Image) Size() uint64 { return im.header.Size }

// ReadOnly reports whether writes are refused.
func (im *Image) ReadOnly() bool { return im.readOnly }

// enter begins a request; the caller calls leave with its turn at its end.
func (im *Image) enter(off, n uint64, write bool) (turn int, err error) {
	if write && im.readOnly {
		return 0, hostfile.ErrReadOnly
	}
	if err := hostfile.Check(off, n, im.header.Size); err != nil {
		return 0, err
	}
	im.use.RLock()
	if im.closed {
		im.use.RUnlock()
		return 0, hostfile.ErrClosed
	}
	if write && im.autoclear.Load() {
		if err := im.clearFeatures(); err != nil {
			im.use.RUnlock()
			return 0, err
		}
	}
	return im.turns.enter(), nil
}

func (im *Image) leave(turn int) {
	im.turns.leave(turn)
	im.use.RUnlock()
}

// clearFeatures takes back what the image says of features that we do not keep
// up: dirty bitmaps, above all.
func (im *Image) clearFeatures() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if !im.autoclear.Load() {
		return nil
	}
	if err := im.file.WriteAt(make([]byte, 8), headerAutoclear); err != nil {
		return err
	}
	if err := im.file.Sync(); err != nil {
		return err
	}
	im.autoclear.Store(false)
	return nil
}

// Close flushes, waits for requests under way, and closes the image's file and
// its backing file.
func (im *Image) Close() error {
	im.use.Lock()
	if im.closed {
		im.use.Unlock()
		return nil
	}
	im.closed = true
	im.use.Unlock()
	var errs []error
	if !im.readOnly {
		// No request is left: the second commit lowers the counts of what the first
		// has let go of, and the third writes them.
		err := im.commit()
		for i := 0; i < 2 && err == nil && im.pending(); i++ {
			err = im.commit()
		}
		errs = append(errs, err)
	}
	im.unpacked.close()
	errs = append(errs, im.file.Close())
	if im.backing != nil {
		errs = append(errs, im.backing.Close())
	}
	return errors.Join(slices.DeleteFunc(errs, func(e error) bool { return e == nil })...)
}

func (im *Image) pending() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.cache.pinned > 0 || len(im.unused)+len(im.dropped) > 0
}
