package qcow2

import (
	"encoding/binary"
	"errors"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

// claim is a run of guest clusters that get a new place: from when it is chosen
// until their entries say so. Others that want to change these wait for done.
type claim struct {
	first, n uint64
	done     chan struct{}
}

// WriteV writes iov from byte off of the disk on.
func (im *Image) WriteV(iov [][]byte, off uint64) error {
	n := hostfile.Len(iov)
	turn, err := im.enter(off, n, true)
	if err != nil {
		return err
	}
	defer im.leave(turn)
	return im.write(iov, off, n)
}

func (im *Image) write(iov [][]byte, off, n uint64) error {
	for done := uint64(0); done < n; {
		rest := hostfile.Cut(iov, done, n-done)
		size, err := im.writeSome(rest, off+done, n-done)
		if err != nil {
			return err
		}
		done += size
	}
	return nil
}

// lockForChange takes im.mu when there is room for more changed tables. Whoever
// holds im.mu changes a bounded number of pages, so the cache stays bounded.
func (im *Image) lockForChange() error {
	for {
		im.mu.Lock()
		if !im.cache.full() {
			return nil
		}
		im.mu.Unlock()
		if err := im.commit(); err != nil {
			return err
		}
	}
}

// waitFor gives im.mu back and waits when the guest's cluster is claimed.
func (im *Image) waitFor(guest uint64) bool {
	for _, c := range im.busy {
		if guest >= c.first && guest-c.first < c.n {
			im.mu.Unlock()
			<-c.done
			return true
		}
	}
	return false
}

// writeSome writes up to n bytes of iov, and returns how many.
func (im *Image) writeSome(iov [][]byte, off, n uint64) (uint64, error) {
	bits := im.header.ClusterBits
	for {
		if err := im.lockForChange(); err != nil {
			return 0, err
		}
		x, err := im.lookup(off, n)
		if err == nil && x.kind == kindData && x.copied {
			err = im.checkPlace(x.host, x.n)
			im.mu.Unlock()
			if err != nil {
				return 0, err
			}
			return x.n, im.file.WriteV(hostfile.Cut(iov, 0, x.n), x.host)
		}
		if err != nil {
			im.mu.Unlock()
			return 0, err
		}
		if im.waitFor(off >> bits) {
			continue
		}
		return im.place(iov, off, x)
	}
}

// checkPlace returns an error unless a guest's data may be at [host, host+n).
func (im *Image) checkPlace(host, n uint64) error {
	for c := host >> im.header.ClusterBits; c <= (host+n-1)>>im.header.ClusterBits; c++ {
		if _, table := im.meta[c]; table || c >= im.end {
			return im.corrupt("data are said to be in host cluster %d, which holds a table or does not exist", c)
		}
	}
	return nil
}

// place writes the first bytes of iov, which begin in a cluster that cannot be
// written in place, to new clusters. x is what is there. im.mu is held; place
// gives it back.
func (im *Image) place(iov [][]byte, off uint64, x extent) (uint64, error) {
	bits := im.header.ClusterBits
	first := off >> bits
	want := (off+x.n-1)>>bits - first + 1
	for _, c := range im.busy { // as far as they are free
		if c.first > first {
			want = min(want, c.first-first)
		}
	}
	host, n, fresh, err := im.newPlace(first, want, x)
	if err != nil {
		im.mu.Unlock()
		return 0, err
	}
	c := &claim{first: first, n: n, done: make(chan struct{})}
	im.busy = append(im.busy, c)
	im.mu.Unlock()

	size := min(x.n, (first+n)<<bits-off)
	err = im.fill(hostfile.Cut(iov, 0, size), off, size, x, host, fresh)

	im.mu.Lock()
	defer im.mu.Unlock()
	if err == nil {
		err = im.point(first, n, host|entryCopied)
	} else if !x.ownPlace() {
		for h := host >> bits; h < host>>bits+n; h++ {
			err = errors.Join(err, im.setCount(h, 0))
		}
	}
	for i := range im.busy {
		if im.busy[i] == c {
			im.busy = append(im.busy[:i], im.busy[i+1:]...)
			break
		}
	}
	close(c.done)
	return size, err
}

// ownPlace reports whether a cluster of zeros has a place of its own already.
func (x extent) ownPlace() bool { return x.kind == kindZero && x.copied }

// newPlace finds a run of host clusters for up to n guest clusters from first
// on, and makes their L2 table writable.
func (im *Image) newPlace(first, n uint64, x extent) (host, got uint64, fresh bool, err error) {
	if err := im.ownTable(first >> im.inL2); err != nil {
		return 0, 0, false, err
	}
	if x.ownPlace() {
		host = x.host &^ (im.cluster - 1)
		return host, n, false, im.checkPlace(host, n<<im.header.ClusterBits)
	}
	// The run stays in one page of the L2 table.
	perPage := im.cache.size / 8
	n = min(n, perPage-first%perPage)
	c, got, fresh, err := im.alloc(n)
	return c << im.header.ClusterBits, got, fresh, err
}

// ownTable makes the i-th L2 table one that can be changed: it exists, and
// nothing else refers to it.
func (im *Image) ownTable(i uint64) error {
	old, err := im.l2Table(i)
	if err != nil || old != 0 && im.l1[i]&entryCopied != 0 {
		return err
	}
	c, _, fresh, err := im.alloc(1)
	if err != nil {
		return err
	}
	off := c << im.header.ClusterBits
	if err = im.blank(c, fresh); err == nil && old != 0 {
		b := make([]byte, im.cluster)
		if err = im.file.ReadAt(b, old); err == nil {
			err = im.file.WriteAt(b, off)
		}
	}
	if err != nil {
		return errors.Join(err, im.setCount(c, 0))
	}
	if old != 0 {
		im.frees = append(im.frees, freed{old >> im.header.ClusterBits, 1})
	}
	im.note(off, im.cluster)
	im.l1[i] = off | entryCopied
	im.l1Dirty[int(i)] = struct{}{}
	return nil
}

// fill writes size bytes of iov, which are those at off of the disk, to the new
// clusters from host on, and what the first and the last of these have besides.
func (im *Image) fill(iov [][]byte, off, size uint64, x extent, host uint64, fresh bool) error {
	in := off & (im.cluster - 1)
	start := off - in
	tail := -(off + size) & (im.cluster - 1)
	if head, err := im.around(start, in, x, fresh); err != nil {
		return err
	} else if head != nil {
		defer im.buffers.Put(head)
		iov = append([][]byte{(*head)[:in]}, iov...)
		in = 0
	}
	if rest, err := im.around(off+size, tail, x, fresh); err != nil {
		return err
	} else if rest != nil {
		defer im.buffers.Put(rest)
		iov = append(iov[:len(iov):len(iov)], (*rest)[:tail])
	}
	return im.file.WriteV(iov, host+in)
}

// around returns the n bytes at off of the disk, as they are before a write, in
// a buffer of im.buffers; nil when there is nothing to write.
func (im *Image) around(off, n uint64, x extent, fresh bool) (*[]byte, error) {
	if n == 0 {
		return nil, nil
	}
	// The last cluster is not the first, perhaps, and what x says of the places of
	// others is not true of it: look again. Nothing changes it meanwhile.
	im.mu.Lock()
	y, err := im.lookup(off&^(im.cluster-1), im.cluster)
	im.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if fresh && (y.kind == kindZero || y.kind == kindNone && im.inBacking(off, n) == 0) {
		return nil, nil // there are zeros already
	}
	b := im.buffers.Get().(*[]byte)
	iov := [][]byte{(*b)[:n]}
	if y.kind == kindData {
		y.host += off & (im.cluster - 1)
	}
	y.n = n
	if err := im.read(y, iov, off); err != nil {
		im.buffers.Put(b)
		return nil, err
	}
	return b, nil
}

// point makes the entries of n guest clusters from first on name the clusters
// from e's on, and notes what their old ones were for the next Flush. e of zero
// clusters is the same for all.
func (im *Image) point(first, n uint64, e uint64) error {
	table := im.l1[first>>im.inL2] & entryOffset
	for i := range n {
		place := im.entryPlace(table, first+i)
		p, err := im.cache.get(place, pageL2)
		if err != nil {
			return err
		}
		at := place & (im.cache.size - 1)
		old, err := im.classify(first+i, binary.BigEndian.Uint64(p.data[at:]))
		if err != nil {
			return err
		}
		now := e
		if e&entryOffset != 0 {
			now += i << im.header.ClusterBits
		}
		binary.BigEndian.PutUint64(p.data[at:], now)
		im.cache.change(p)
		switch {
		case old.kind == kindCompressed:
			im.frees = append(im.frees, im.packedClusters(old.entry))
		case old.host != 0 && old.host != now&entryOffset:
			im.frees = append(im.frees, freed{old.host >> im.header.ClusterBits, 1})
		}
	}
	return nil
}
