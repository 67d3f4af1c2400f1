package qcow2

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

// unpacked is the compressed cluster that was read last: a guest reads it in
// pieces. What is at a place of the file for a compressed cluster stays there as
// long as the image is open.
type unpacked struct {
	mu    sync.Mutex
	entry uint64 // 0: none
	data  []byte
	zstd  *zstd.Decoder
	flate io.ReadCloser
}

func (u *unpacked) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.zstd != nil {
		u.zstd.Close()
	}
}

// packedPlace returns where the data of a compressed cluster are, and how many
// bytes there can be of them.
func (im *Image) packedPlace(entry uint64) (off, n uint64) {
	sizeBits := im.header.ClusterBits - 8
	x := 62 - sizeBits
	off = entry & (1<<x - 1)
	sectors := entry>>x&(1<<sizeBits-1) + 1
	return off, sectors*512 - off%512
}

// packedClusters returns the host clusters in which they are.
func (im *Image) packedClusters(entry uint64) freed {
	off, n := im.packedPlace(entry)
	first := off >> im.header.ClusterBits
	return freed{first, (off+n-1)>>im.header.ClusterBits - first + 1}
}

// readCompressed fills iov with the bytes from offset in on of a cluster.
func (im *Image) readCompressed(entry uint64, iov [][]byte, in uint64) error {
	u := &im.unpacked
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.entry != entry || entry == 0 {
		if err := im.unpack(entry); err != nil {
			return err
		}
	}
	hostfile.CopyOut(iov, u.data[in:])
	return nil
}

func (im *Image) unpack(entry uint64) error {
	off, n := im.packedPlace(entry)
	if off >= maxHostOffset || off == 0 {
		return im.corrupt("a compressed cluster is at %#x", off)
	}
	packed := make([]byte, n)
	got, err := im.file.ReadSome([][]byte{packed}, off)
	if err != nil {
		return err
	}
	u := &im.unpacked
	u.entry = 0
	if u.data == nil {
		u.data = make([]byte, im.cluster)
	}
	if err := im.decompress(u.data, packed[:got]); err != nil {
		return im.corrupt("the compressed cluster at %#x: %v", off, err)
	}
	u.entry = entry
	return nil
}

// decompress fills p, all of it, from packed, whose end may be other things.
func (im *Image) decompress(p, packed []byte) error {
	u := &im.unpacked
	var r io.Reader
	if im.header.zstd {
		if u.zstd == nil {
			d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderMaxMemory(16<<20))
			if err != nil {
				return err
			}
			u.zstd = d
		}
		if err := u.zstd.Reset(bytes.NewReader(packed)); err != nil {
			return err
		}
		r = u.zstd
	} else {
		if u.flate == nil {
			u.flate = flate.NewReader(nil)
		}
		if err := u.flate.(flate.Resetter).Reset(bytes.NewReader(packed), nil); err != nil {
			return err
		}
		r = u.flate
	}
	if n, err := io.ReadFull(r, p); err != nil {
		return fmt.Errorf("%d of %d bytes: %w", n, len(p), err)
	}
	return nil
}
