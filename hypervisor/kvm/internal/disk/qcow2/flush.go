package qcow2

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

// Flush returns when all writes that have returned are on stable storage.
func (im *Image) Flush() error {
	im.use.RLock()
	defer im.use.RUnlock()
	if im.closed {
		return hostfile.ErrClosed
	}
	if im.readOnly {
		return nil
	}
	return im.commit()
}

// changes is what one commit writes: copies, as the tables go on changing.
type changes struct {
	pages   []*page
	counts  []write // pages of refcount blocks
	l2      []write // pages of L2 tables
	moved   *write  // the refcount table, when it has moved
	header  []byte  // what then goes to headerReftable
	entries []write // of the refcount table, when it has not moved
	l1      []write

	l1Dirty       map[int]struct{}
	reftableDirty map[int]struct{}
	frees         []freed
}

type write struct {
	off  uint64
	data []byte
}

// commit writes what has changed, in the order that the package's comment has.
func (im *Image) commit() error {
	im.flushing.Lock()
	defer im.flushing.Unlock()
	im.mu.Lock()
	c := im.collect()
	im.mu.Unlock()
	err := im.writeOut(c)
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, p := range c.pages {
		if err != nil {
			im.cache.change(p)
		}
		im.cache.written(p)
	}
	if err != nil {
		im.restore(c)
		return err
	}
	return im.release(c.frees)
}

// release lowers the counts of clusters that have been let go of, once no
// request can be reading them any more. frees are those to which nothing on disk
// refers since now. im.mu and im.flushing are held.
func (im *Image) release(frees []freed) error {
	im.dropped = append(im.dropped, frees...)
	if len(im.dropped)+len(im.unused) == 0 || !im.turns.over() {
		return nil
	}
	old := im.unused
	im.unused, im.dropped = im.dropped, nil
	im.turns.next()
	for _, f := range old {
		if err := im.drop(f); err != nil {
			return err // the others are a leak
		}
	}
	return nil
}

// collect takes what has changed. im.mu is held.
func (im *Image) collect() *changes {
	c := &changes{
		pages: im.cache.take(), l1Dirty: im.l1Dirty,
		reftableDirty: im.reftableDirty, frees: im.frees,
	}
	for _, p := range c.pages {
		w := write{p.off, slices.Clone(p.data)}
		if p.kind == pageRefcount {
			c.counts = append(c.counts, w)
		} else {
			c.l2 = append(c.l2, w)
		}
	}
	for i := range im.l1Dirty {
		c.l1 = append(c.l1, write{im.header.l1Offset + uint64(i)*8, entryBytes(im.l1[i])})
	}
	if im.reftableMoved {
		table := make([]byte, len(im.reftable)*8)
		for i, e := range im.reftable {
			binary.BigEndian.PutUint64(table[i*8:], e)
		}
		c.moved = &write{im.reftableAt, table}
		c.header = binary.BigEndian.AppendUint32(entryBytes(im.reftableAt), uint32(uint64(len(table))>>im.header.ClusterBits))
	} else {
		for i := range im.reftableDirty {
			c.entries = append(c.entries, write{im.reftableAt + uint64(i)*8, entryBytes(im.reftable[i])})
		}
	}
	if len(c.l1Dirty) > 0 {
		im.l1Dirty = map[int]struct{}{}
	}
	if len(c.reftableDirty) > 0 {
		im.reftableDirty = map[int]struct{}{}
	}
	im.reftableMoved, im.frees = false, nil
	return c
}

// restore puts back what could not be written. im.mu is held.
func (im *Image) restore(c *changes) {
	for i := range c.l1Dirty {
		im.l1Dirty[i] = struct{}{}
	}
	for i := range c.reftableDirty {
		im.reftableDirty[i] = struct{}{}
	}
	im.reftableMoved = im.reftableMoved || c.moved != nil
	im.frees = append(im.frees, c.frees...)
}

// writeOut writes changes. im.flushing is held.
func (im *Image) writeOut(c *changes) error {
	if err := im.writeAll(c.counts); err != nil {
		return err
	}
	if c.moved != nil {
		if err := im.writeAll([]write{*c.moved}); err != nil {
			return err
		}
	}
	if err := im.file.Sync(); err != nil {
		return err
	}
	var err error
	switch {
	case c.moved != nil:
		err = errors.Join(im.file.WriteAt(c.header, headerReftable), im.file.Sync())
	case len(c.entries) > 0:
		err = errors.Join(im.writeAll(c.entries), im.file.Sync())
	}
	if err != nil {
		return err
	}
	if len(c.l2)+len(c.l1) == 0 {
		return nil
	}
	if err := errors.Join(im.writeAll(c.l2), im.writeAll(c.l1)); err != nil {
		return err
	}
	return im.file.Sync()
}

// writeAll writes ws: those that follow each other at once.
func (im *Image) writeAll(ws []write) error {
	slices.SortFunc(ws, func(a, b write) int {
		if a.off < b.off {
			return -1
		}
		return 1
	})
	for len(ws) > 0 {
		iov := [][]byte{ws[0].data}
		end := ws[0].off + uint64(len(ws[0].data))
		n := 1
		for n < len(ws) && ws[n].off == end {
			iov = append(iov, ws[n].data)
			end += uint64(len(ws[n].data))
			n++
		}
		if err := im.file.WriteV(iov, ws[0].off); err != nil {
			return err
		}
		ws = ws[n:]
	}
	return nil
}

func entryBytes(e uint64) []byte { return binary.BigEndian.AppendUint64(nil, e) }
