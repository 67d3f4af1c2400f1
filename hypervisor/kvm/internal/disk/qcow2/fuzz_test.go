package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

// seeds are small images that qemu-img and qemu-io have made.
func seeds(f *testing.F) [][]byte {
	paths, err := filepath.Glob("testdata/*.qcow2")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no images in testdata: %v", err)
	}
	var images [][]byte
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		images = append(images, b)
	}
	return images
}

// ones is a backing file.
type ones struct{ size uint64 }

func (o ones) Size() uint64 { return o.size }
func (o ones) Close() error { return nil }
func (o ones) ReadV(iov [][]byte, off uint64) error {
	if err := hostfile.Check(off, hostfile.Len(iov), o.size); err != nil {
		return err
	}
	for _, b := range iov {
		for i := range b {
			b[i] = 1
		}
	}
	return nil
}

// FuzzImage opens images of any content and does what a guest might with them.
// They may lie about everything; what is asked of us is to end, with an error
// or without, and to use no more memory than the limits allow.
func FuzzImage(f *testing.F) {
	ops := []byte{0, 0, 0, 8, 1, 0, 2, 8, 2, 0, 9, 3, 3, 0, 40, 80, 4, 0, 1, 1, 5, 0, 0, 0, 1, 0, 100, 9, 0, 0, 0, 200, 6, 0, 0, 0, 1, 1, 0, 8, 5, 0, 0, 0}
	for _, image := range seeds(f) {
		f.Add(image, ops)
	}
	f.Fuzz(func(t *testing.T, image, ops []byte) {
		for _, readOnly := range []bool{true, false} {
			m := newMemory(image)
			m.limit, m.later = 16<<20, nil
			h, err := ReadHeader(m)
			if err != nil {
				return
			}
			var below Backing
			if h.BackingFile != "" {
				below = ones{h.Size / 3 &^ 511}
			}
			im, err := Open(m, h, readOnly, below)
			if err != nil {
				return
			}
			for o := ops; len(o) >= 4; o = o[4:] {
				operate(im, o)
			}
			if err := im.Close(); readOnly && err != nil {
				t.Errorf("close: %v", err)
			}
			if readOnly && !bytes.Equal(m.now, image) {
				t.Error("reading has changed the image")
			}
		}
	})
}

// operate does one operation of four bytes: which, where (512 bytes each, from
// the front, or from the end for the upper half), how much.
func operate(im *Image, o []byte) {
	at := uint64(binary.BigEndian.Uint16(o[1:]))
	n := uint64(o[3]) * 128
	off := at * 512
	if at >= 1<<15 {
		off = im.Size() - (1<<16-at)*512
	}
	buf := make([]byte, n)
	iov := [][]byte{buf[:n/3], buf[n/3:]}
	var err error
	switch o[0] % 7 {
	case 0:
		err = im.ReadV(iov, off)
	case 1:
		for i := range buf {
			buf[i] = 0xee
		}
		err = im.WriteV(iov, off)
	case 2:
		err = im.Discard(off, n)
	case 3:
		err = im.WriteZeroes(off, n, true)
	case 4:
		err = im.WriteZeroes(off, n*100, false)
	case 5:
		err = im.Flush()
	case 6:
		err = im.ReadV(iov, off&^4095)
	}
	if err != nil && err.Error() == "" {
		panic(errors.New("an error that says nothing"))
	}
}

// FuzzHeader parses headers of any content.
func FuzzHeader(f *testing.F) {
	for _, image := range seeds(f) {
		f.Add(image[:min(len(image), 1024)], uint64(len(image)))
	}
	f.Fuzz(func(t *testing.T, first []byte, size uint64) {
		h, err := parseHeader("image", first, size)
		if err != nil {
			return
		}
		if h.Size == 0 || h.Size%512 != 0 || h.l1Entries*8 > maxL1Bytes || h.reftableBytes > maxReftableBytes ||
			len(h.BackingFile) > maxBackingName || h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits {
			t.Errorf("accepted: %+v", h)
		}
	})
}
