package profile

import (
	"encoding/binary"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Where a search of all memory found the kernel is kept with the profile, for
// memory that does not change (hypervisor.Identified): the same search of the
// same bytes would find the same again. What is there is read and checked as
// any other find.

const placeKind = "place"

// placeDigest names what is kept of f's memory; false: nothing can be.
func (f *finder) placeDigest() (digest, bool) {
	m, ok := f.mem.(hypervisor.Identified)
	if !ok || f.cache == nil {
		return digest{}, false
	}
	id := m.Identity()
	return f.cache.digest(placeKind, []byte(id)), id != ""
}

// remembered returns the image that an earlier search found; nil: none.
func (f *finder) remembered() *image {
	d, ok := f.placeDigest()
	if !ok {
		return nil
	}
	b := f.cache.load(placeKind, d)
	if len(b) != 8 {
		return nil
	}
	im, err := readImage(f.mem, hypervisor.PhysAddr(leUint64(b)))
	if err != nil || !im.holdsItsTable() {
		return nil
	}
	return im
}

// remember keeps where the image was found.
func (f *finder) remember() {
	if d, ok := f.placeDigest(); ok {
		f.cache.store(placeKind, d, binary.LittleEndian.AppendUint64(nil, uint64(f.image.table)))
	}
}
