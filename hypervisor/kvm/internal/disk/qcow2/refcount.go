package qcow2

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// maxHostOffset keeps host offsets in the 56 bits that tables have for them.
const maxHostOffset = 1 << 56

// refBlock returns where the i-th block of counts is; 0 is nowhere: all of its
// counts are 0.
func (im *Image) refBlock(i uint64) (uint64, error) {
	if i >= uint64(len(im.reftable)) {
		return 0, nil
	}
	e := im.reftable[i]
	if e&^reftableOffset != 0 {
		return 0, im.corrupt("entry %d of the refcount table is %#x", i, e)
	}
	if e == 0 {
		return 0, nil
	}
	return e, im.checkTable("a refcount block", e)
}

// count returns the reference count of a host cluster.
func (im *Image) count(c uint64) (uint64, error) {
	p, index, err := im.countPage(c)
	if err != nil || p == nil {
		return 0, err
	}
	return getCount(p.data, index, im.header.refcountOrder), nil
}

// countPage returns the page that has the count of a host cluster, and its index
// there; nil when there is no block for it.
func (im *Image) countPage(c uint64) (*page, uint64, error) {
	block, err := im.refBlock(c / im.perRef)
	if err != nil || block == 0 {
		return nil, 0, err
	}
	perPage := im.cache.size * 8 >> im.header.refcountOrder
	in := c % im.perRef
	p, err := im.cache.get(block+in/perPage*im.cache.size, pageRefcount)
	return p, in % perPage, err
}

// getCount returns count i of a block of counts of 1<<order bits.
func getCount(b []byte, i uint64, order uint) uint64 {
	be := binary.BigEndian
	switch order {
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(be.Uint16(b[i*2:]))
	case 5:
		return uint64(be.Uint32(b[i*4:]))
	case 6:
		return be.Uint64(b[i*8:])
	}
	bit := i << order
	return uint64(b[bit/8]) >> (bit % 8) & (1<<(1<<order) - 1)
}

// putCount sets it.
func putCount(b []byte, i uint64, order uint, v uint64) {
	be := binary.BigEndian
	switch order {
	case 3:
		b[i] = byte(v)
	case 4:
		be.PutUint16(b[i*2:], uint16(v))
	case 5:
		be.PutUint32(b[i*4:], uint32(v))
	case 6:
		be.PutUint64(b[i*8:], v)
	default:
		bit := i << order
		mask := byte(1<<(1<<order)-1) << (bit % 8)
		b[bit/8] = b[bit/8]&^mask | byte(v)<<(bit%8)&mask
	}
}

// setCount sets the count of a host cluster whose block is there.
func (im *Image) setCount(c, v uint64) error {
	p, index, err := im.countPage(c)
	if err != nil {
		return err
	}
	if p == nil {
		return im.corrupt("host cluster %d has no refcount block", c)
	}
	putCount(p.data, index, im.header.refcountOrder, v)
	im.cache.change(p)
	return nil
}

// drop lowers the counts of clusters that have lost a reference.
func (im *Image) drop(f freed) error {
	for c := f.first; c < f.first+f.n; c++ {
		v, err := im.count(c)
		if err != nil {
			return err
		}
		if v == 0 {
			continue // it was wrong before: a leak at worst
		}
		if err := im.setCount(c, v-1); err != nil {
			return err
		}
	}
	return nil
}

// noSpace is returned when the image cannot grow.
func (im *Image) noSpace(why string) error {
	return fmt.Errorf("disk image %q cannot grow: %s: %w", im.header.path, why, unix.ENOSPC)
}

// alloc takes between 1 and n host clusters that lie in one run, and counts one
// reference to each. fresh says that the file has only zeros there. im.mu is
// held.
func (im *Image) alloc(n uint64) (first, got uint64, fresh bool, err error) {
	first, got, err = im.findHole(n)
	if err != nil {
		return 0, 0, false, err
	}
	if got == 0 {
		if im.file.Device() {
			return 0, 0, false, im.noSpace("the block device is full")
		}
		if first, got, err = im.extend(n); err != nil {
			return 0, 0, false, err
		}
		fresh = true
	}
	for c := first; c < first+got; c++ {
		if _, table := im.meta[c]; table {
			return 0, 0, false, im.corrupt("host cluster %d holds a table, but is counted as free", c)
		}
		if err := im.setCount(c, 1); err != nil {
			return 0, 0, false, err
		}
	}
	return first, got, fresh, nil
}

// holeSteps bounds how many counts are looked at for one allocation: a full
// image is not searched from its beginning to its end at one go.
const holeSteps = 1 << 16

// findHole looks for a run of free clusters inside the file as it was when it
// was opened. It looks at each cluster once: what is freed later is for the next
// to open the image.
func (im *Image) findHole(n uint64) (first, got uint64, err error) {
	for steps := 0; im.hole < im.holesEnd && (steps < holeSteps || im.file.Device()); steps++ {
		v, err := im.count(im.hole)
		if err != nil {
			return 0, 0, err
		}
		_, table := im.meta[im.hole] // that its count is 0 is for qemu-img check to say
		if v != 0 || table {
			if got > 0 {
				break
			}
			im.hole++
			continue
		}
		if got == 0 {
			made, err := im.needBlock(im.hole)
			if err != nil {
				return 0, 0, err
			}
			if made {
				continue // it may be in this very cluster
			}
			first = im.hole
		} else if im.hole%im.perRef == 0 {
			break // perhaps without a block
		}
		im.hole++
		if got++; got == n {
			break
		}
	}
	return first, got, nil
}

// extend takes clusters behind the file's end.
func (im *Image) extend(n uint64) (first, got uint64, err error) {
	for tries := 0; ; tries++ {
		if tries > holeSteps {
			return 0, 0, im.corrupt("clusters behind the file's end are counted as used")
		}
		made, err := im.needBlock(im.end)
		if err != nil {
			return 0, 0, err
		}
		if made {
			continue
		}
		v, err := im.count(im.end)
		if err != nil {
			return 0, 0, err
		}
		if v == 0 {
			break
		}
		im.end++
	}
	first = im.end
	for got < n && im.end<<im.header.ClusterBits < maxHostOffset {
		if got > 0 {
			if im.end%im.perRef == 0 {
				break
			}
			v, err := im.count(im.end)
			if err != nil {
				return 0, 0, err
			}
			if v != 0 {
				break
			}
		}
		got++
		im.end++
	}
	if got == 0 {
		return 0, 0, im.noSpace("it is as large as the format allows")
	}
	return first, got, nil
}

// needBlock makes the block for the count of host cluster c, when there is none
// yet. The block is the first of the clusters that it counts: they are all free.
func (im *Image) needBlock(c uint64) (made bool, err error) {
	i := c / im.perRef
	block, err := im.refBlock(i)
	if err != nil || block != 0 {
		return false, err
	}
	if i >= uint64(len(im.reftable)) {
		return true, im.growReftable(i + 1)
	}
	at := i * im.perRef
	if err := im.newBlock(i, at); err != nil {
		return false, err
	}
	return true, nil
}

// newBlock makes host cluster at the i-th block of counts: all zero, but its own.
func (im *Image) newBlock(i, at uint64) error {
	if _, table := im.meta[at]; table {
		return im.corrupt("host cluster %d holds a table, but is counted as free", at)
	}
	fresh := at >= im.end && !im.file.Device()
	if fresh {
		im.end = at + 1
	}
	if err := im.blank(at, fresh); err != nil {
		return err
	}
	off := at << im.header.ClusterBits
	im.reftable[i] = off
	if err := im.setCount(at, 1); err != nil {
		im.reftable[i] = 0
		return err
	}
	im.reftableDirty[int(i)] = struct{}{}
	im.note(off, im.cluster)
	return nil
}

// blank makes a host cluster, to which nothing refers, zeros and part of the file.
// fresh says that it lies behind what the file had.
func (im *Image) blank(c uint64, fresh bool) error {
	off := c << im.header.ClusterBits
	im.cache.forget(off, im.cluster)
	if fresh {
		return im.file.Grow(off + im.cluster)
	}
	return im.file.WriteAt(make([]byte, im.cluster), off)
}

// growReftable gives the refcount table need entries or more. It moves to the
// file's end, together with the blocks for its own clusters; the next Flush
// makes the header name it.
func (im *Image) growReftable(need uint64) error {
	if im.file.Device() {
		return im.noSpace("its refcount table cannot grow on a block device")
	}
	need = max(need, uint64(len(im.reftable))*3/2)
	start, bits := im.end, im.header.ClusterBits
	var clusters, blocks uint64
	var missing []uint64
	for {
		clusters = (need*8 + im.cluster - 1) >> bits
		end := start + clusters + blocks
		missing = missing[:0]
		for i := start / im.perRef; i <= (end-1)/im.perRef; i++ {
			if i >= uint64(len(im.reftable)) || im.reftable[i] == 0 {
				missing = append(missing, i)
			}
		}
		if uint64(len(missing)) <= blocks && (end-1)/im.perRef < need {
			break
		}
		blocks = max(blocks, uint64(len(missing)))
		need = max(need, (end-1)/im.perRef+1)
	}
	end := start + clusters + blocks
	if clusters<<bits > maxReftableBytes || end > maxHostOffset>>bits {
		return im.noSpace("it is as large as the format allows")
	}
	if err := im.file.Grow(end << bits); err != nil {
		return err
	}
	old := im.reftable
	im.reftable = make([]uint64, clusters<<bits/8)
	copy(im.reftable, old)
	im.cache.forget(start<<bits, (end-start)<<bits)
	for n, i := range missing {
		im.reftable[i] = (start + clusters + uint64(n)) << bits
	}
	im.end = end
	for c := start; c < end-(blocks-uint64(len(missing))); c++ {
		if err := im.setCount(c, 1); err != nil {
			im.reftable = old // what was counted is lost: a leak
			return err
		}
	}
	im.note(start<<bits, (end-start)<<bits)
	im.frees = append(im.frees, freed{im.reftableAt >> bits, uint64(len(old)) * 8 >> bits})
	im.reftableAt, im.reftableMoved = start<<bits, true
	return nil
}
