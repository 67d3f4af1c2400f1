package qcow2

import (
	"encoding/binary"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

// kind is how a guest's cluster is stored.
type kind uint8

const (
	kindNone       kind = iota // not in this image: in its backing file, or zeros
	kindZero                   // zeros; host says where it can be put, or is 0
	kindData                   // at host
	kindCompressed             // as entry says
)

// extent is a run of bytes of the disk that are stored in the same way.
type extent struct {
	kind   kind
	n      uint64 // bytes
	host   uint64 // of the first byte (data; zero, when it has a place)
	copied bool   // can be written in place
	entry  uint64 // of the first cluster
}

// corrupt returns a *CorruptError.
func (im *Image) corrupt(format string, args ...any) error {
	return &CorruptError{im.header.path, fmt.Sprintf(format, args...)}
}

// checkTable checks an offset of a table, which is one cluster.
func (im *Image) checkTable(what string, off uint64) error {
	if off&(im.cluster-1) != 0 || off>>im.header.ClusterBits >= im.end {
		return im.corrupt("%s is at %#x", what, off)
	}
	return nil
}

// l2Table returns where the i-th L2 table is; 0 is nowhere.
func (im *Image) l2Table(i uint64) (uint64, error) {
	e := im.l1[i]
	if e&^(entryOffset|entryCopied) != 0 {
		return 0, im.corrupt("entry %d of L1 is %#x", i, e)
	}
	off := e & entryOffset
	if off == 0 {
		return 0, nil
	}
	return off, im.checkTable("an L2 table", off)
}

// entryPlace returns where the L2 entry of a guest's cluster is in the table at
// table.
func (im *Image) entryPlace(table, guest uint64) uint64 {
	return table + guest&(1<<im.inL2-1)*8
}

// classify checks an L2 entry, and says what it means.
func (im *Image) classify(guest, e uint64) (extent, error) {
	if e&entryCompressed != 0 {
		if e&entryCopied != 0 {
			return extent{}, im.corrupt("the L2 entry of cluster %d is %#x", guest, e)
		}
		return extent{kind: kindCompressed, entry: e}, nil
	}
	x := extent{kind: kindData, host: e & entryOffset, copied: e&entryCopied != 0, entry: e}
	rest := e &^ (entryOffset | entryCopied)
	switch {
	case rest == entryZero && im.header.Version >= 3:
		x.kind = kindZero
	case rest != 0:
		return extent{}, im.corrupt("the L2 entry of cluster %d is %#x", guest, e)
	case x.host == 0:
		x.kind = kindNone
	}
	if x.host&(im.cluster-1) != 0 || x.host == 0 && x.copied {
		return extent{}, im.corrupt("the L2 entry of cluster %d is %#x", guest, e)
	}
	return x, nil
}

// lookup says how the bytes from off on are stored: at most n, fewer where that
// changes. im.mu is held.
func (im *Image) lookup(off, n uint64) (extent, error) {
	bits := im.header.ClusterBits
	guest := off >> bits
	in := off & (im.cluster - 1)
	table, err := im.l2Table(guest >> im.inL2)
	if err != nil {
		return extent{}, err
	}
	if table == 0 {
		span := im.cluster << im.inL2
		return extent{kind: kindNone, n: min(n, span-off&(span-1))}, nil
	}
	place := im.entryPlace(table, guest)
	p, err := im.cache.get(place, pageL2)
	if err != nil {
		return extent{}, err
	}
	at := place & (im.cache.size - 1)
	x, err := im.classify(guest, binary.BigEndian.Uint64(p.data[at:]))
	if err != nil {
		return extent{}, err
	}
	x.n = im.cluster - in
	if x.kind == kindCompressed {
		x.n = min(x.n, n)
		return x, nil
	}
	// Join what follows in this page.
	for at += 8; at < im.cache.size && x.n < n; at += 8 {
		guest++
		y, err := im.classify(guest, binary.BigEndian.Uint64(p.data[at:]))
		if err != nil {
			break // it is told when it is its turn
		}
		if y.kind != x.kind || y.copied != x.copied ||
			x.host != 0 && y.host != x.host+in+x.n || x.host == 0 && y.host != 0 {
			break
		}
		x.n += im.cluster
	}
	x.n = min(x.n, n)
	if x.host != 0 {
		x.host += in
	}
	return x, nil
}

// ReadV fills iov from byte off of the disk on.
func (im *Image) ReadV(iov [][]byte, off uint64) error {
	n := hostfile.Len(iov)
	turn, err := im.enter(off, n, false)
	if err != nil {
		return err
	}
	defer im.leave(turn)
	for done := uint64(0); done < n; {
		im.mu.Lock()
		x, err := im.lookup(off+done, n-done)
		im.mu.Unlock()
		if err != nil {
			return err
		}
		if err := im.read(x, hostfile.Cut(iov, done, x.n), off+done); err != nil {
			return err
		}
		done += x.n
	}
	return nil
}

// read fills iov, which has x.n bytes, with those that x says are at off of the
// disk.
func (im *Image) read(x extent, iov [][]byte, off uint64) error {
	switch x.kind {
	case kindNone:
		return im.readBacking(iov, off)
	case kindZero:
		hostfile.Zero(iov)
		return nil
	case kindCompressed:
		return im.readCompressed(x.entry, iov, off&(im.cluster-1))
	}
	n, err := im.file.ReadSome(iov, x.host)
	if err == nil && n < x.n {
		// The file ends in its last cluster: what is behind was never written.
		hostfile.Zero(hostfile.Cut(iov, n, x.n-n))
	}
	return err
}

// readBacking fills iov from the backing file, with zeros behind its end.
func (im *Image) readBacking(iov [][]byte, off uint64) error {
	n := hostfile.Len(iov)
	have := im.inBacking(off, n)
	if have > 0 {
		if err := im.backing.ReadV(hostfile.Cut(iov, 0, have), off); err != nil {
			return err
		}
	}
	if have < n {
		hostfile.Zero(hostfile.Cut(iov, have, n-have))
	}
	return nil
}

// inBacking returns how many of n bytes at off the backing file has.
func (im *Image) inBacking(off, n uint64) uint64 {
	if im.backing == nil || off >= im.backing.Size() {
		return 0
	}
	return min(n, im.backing.Size()-off)
}
