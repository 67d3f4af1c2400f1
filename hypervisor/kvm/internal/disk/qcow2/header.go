package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
)

// Magic is what an image begins with.
const Magic = "QFI\xfb"

// Limits, those of QEMU.
const (
	minClusterBits   = 9
	maxClusterBits   = 21
	maxL1Bytes       = 32 << 20
	maxReftableBytes = 8 << 20
	maxBackingName   = 1023
)

// Offsets of header fields that are written.
const (
	headerReftable  = 48 // offset (8 bytes) and clusters (4)
	headerAutoclear = 88
	headerSize2     = 72
	headerSize3     = 104
)

// Bits of incompatible_features.
const (
	featureDirty        = 1 << 0
	featureCorrupt      = 1 << 1
	featureExternalData = 1 << 2
	featureCompression  = 1 << 3
	featureExtendedL2   = 1 << 4
)

// Types of header extensions.
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe279_2aca
	extensionFeatureNames  = 0x6803_f857
)

// Header is what an image says of itself. It has been checked against the
// specification and this package's limits.
type Header struct {
	Version       int // 2 or 3
	Size          uint64
	ClusterBits   uint
	BackingFile   string // as it is in the image; "" is none
	BackingFormat string // "" when the image does not say
	Snapshots     uint32

	path           string
	l1Offset       uint64
	l1Entries      uint64
	reftableOffset uint64
	reftableBytes  uint64
	refcountOrder  uint // a count has 1<<refcountOrder bits
	snapshotOffset uint64
	incompatible   uint64
	autoclear      uint64
	zstd           bool
}

// Dirty reports whether the image's reference counts may be wrong: its last user
// died, and it was made with lazy_refcounts.
func (h *Header) Dirty() bool { return h.incompatible&featureDirty != 0 }

// Corrupt reports whether the image is marked as corrupt.
func (h *Header) Corrupt() bool { return h.incompatible&featureCorrupt != 0 }

// ReadHeader reads an image's header. It returns a *FeatureError when it uses
// what this package cannot do, and an error that wraps ErrCorrupt when it makes
// no sense.
func ReadHeader(f Storage) (*Header, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	first := make([]byte, min(size, 1<<maxClusterBits))
	if err := f.ReadAt(first, 0); err != nil {
		return nil, err
	}
	return parseHeader(f.Path(), first, size)
}

// parseHeader parses the first cluster of an image, of which first may have more
// or (where the file ends) less.
func parseHeader(path string, first []byte, fileSize uint64) (*Header, error) {
	h := &Header{path: path}
	if !bytes.HasPrefix(first, []byte(Magic)) {
		return nil, fmt.Errorf("disk image %q is not in format qcow2: give format=raw if it is a raw one", path)
	}
	if len(first) < headerSize2 {
		return nil, h.corrupt("the file ends in its header")
	}
	be := binary.BigEndian
	h.Version = int(be.Uint32(first[4:]))
	if h.Version != 2 && h.Version != 3 {
		return nil, &FeatureError{path, []string{"version " + strconv.Itoa(h.Version) + " of the format"}}
	}
	bits := be.Uint32(first[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return nil, h.corrupt("cluster_bits is %d", bits)
	}
	h.ClusterBits = uint(bits)
	first = first[:min(uint64(len(first)), 1<<bits)]
	h.Size = be.Uint64(first[24:])
	h.l1Entries = uint64(be.Uint32(first[36:]))
	h.l1Offset = be.Uint64(first[40:])
	h.reftableOffset = be.Uint64(first[headerReftable:])
	h.reftableBytes = uint64(be.Uint32(first[headerReftable+8:])) << bits
	h.Snapshots = be.Uint32(first[60:])
	h.snapshotOffset = be.Uint64(first[64:])
	h.refcountOrder = 4
	length := uint64(headerSize2)
	if h.Version >= 3 {
		if len(first) < headerSize3 {
			return nil, h.corrupt("the file ends in its header")
		}
		h.incompatible = be.Uint64(first[72:])
		h.autoclear = be.Uint64(first[headerAutoclear:])
		h.refcountOrder = uint(be.Uint32(first[96:]))
		length = uint64(be.Uint32(first[100:]))
		if length < headerSize3 || length%8 != 0 || length > uint64(len(first)) {
			return nil, h.corrupt("header_length is %d", length)
		}
	}
	if err := h.backing(first); err != nil {
		return nil, err
	}
	names, err := h.extensions(first, length)
	if err != nil {
		return nil, err
	}
	if err := h.features(first, length, names); err != nil {
		return nil, err
	}
	return h, h.geometry(fileSize)
}

func (h *Header) corrupt(format string, args ...any) error {
	return &CorruptError{h.path, fmt.Sprintf(format, args...)}
}

// backing reads the backing file's name.
func (h *Header) backing(first []byte) error {
	off, n := binary.BigEndian.Uint64(first[8:]), uint64(binary.BigEndian.Uint32(first[16:]))
	if off == 0 {
		return nil
	}
	if n == 0 || n > maxBackingName {
		return h.corrupt("the backing file's name has %d bytes", n)
	}
	if off > uint64(len(first)) || n > uint64(len(first))-off {
		return h.corrupt("the backing file's name is at %#x", off)
	}
	h.BackingFile = string(first[off : off+n])
	return nil
}

// featureName names an incompatible feature's bit.
type featureName struct {
	bit  int
	name string
}

// extensions reads the header extensions from offset at on.
func (h *Header) extensions(first []byte, at uint64) ([]featureName, error) {
	end := uint64(len(first))
	if off := binary.BigEndian.Uint64(first[8:]); off != 0 {
		end = min(end, off)
	}
	var names []featureName
	for at+8 <= end {
		kind := binary.BigEndian.Uint32(first[at:])
		n := uint64(binary.BigEndian.Uint32(first[at+4:]))
		at += 8
		if kind == extensionEnd {
			break
		}
		if n > end-at {
			return nil, h.corrupt("header extension %#x has %d bytes", kind, n)
		}
		data := first[at : at+n]
		switch kind {
		case extensionBackingFormat:
			if n > 64 {
				return nil, h.corrupt("the backing file's format has %d bytes", n)
			}
			h.BackingFormat = string(data)
		case extensionFeatureNames:
			for ; len(data) >= 48; data = data[48:] {
				if data[0] == 0 { // of the incompatible ones
					names = append(names, featureName{int(data[1]), string(bytes.TrimRight(data[2:48], "\x00"))})
				}
			}
		}
		at += (n + 7) &^ 7
	}
	return names, nil
}

// features refuses what this package cannot do.
func (h *Header) features(first []byte, length uint64, names []featureName) error {
	var refused []string
	if method := binary.BigEndian.Uint32(first[32:]); method != 0 {
		refused = append(refused, "encryption")
	}
	if h.incompatible&featureExternalData != 0 {
		refused = append(refused, "an external data file")
	}
	if h.incompatible&featureExtendedL2 != 0 {
		refused = append(refused, "extended L2 entries")
	}
	var compression byte
	if h.Version >= 3 && length > headerSize3 {
		compression = first[headerSize3]
	}
	switch {
	case h.incompatible&featureCompression == 0:
	case compression == 1:
		h.zstd = true
	default:
		refused = append(refused, "compression type "+strconv.Itoa(int(compression)))
	}
	for bit := range 64 {
		if bit < 5 || h.incompatible>>bit&1 == 0 {
			continue
		}
		name := "incompatible feature bit " + strconv.Itoa(bit)
		for _, n := range names {
			if n.bit == bit && n.name != "" {
				name += " (" + strconv.Quote(n.name) + ")"
				break
			}
		}
		refused = append(refused, name)
	}
	if refused != nil {
		return &FeatureError{h.path, refused}
	}
	if h.refcountOrder > 6 {
		return h.corrupt("refcount_order is %d", h.refcountOrder)
	}
	return nil
}

// geometry checks sizes and places of the tables.
func (h *Header) geometry(fileSize uint64) error {
	cluster := uint64(1) << h.ClusterBits
	if h.Size == 0 || h.Size%512 != 0 {
		return h.corrupt("the disk's size is %d: not a multiple of 512", h.Size)
	}
	perTable := cluster / 8 * cluster // bytes of the disk per L2 table
	need := (h.Size-1)/perTable + 1
	switch {
	case h.l1Entries*8 > maxL1Bytes:
		return h.corrupt("the L1 table has %d entries", h.l1Entries)
	case h.l1Entries < need:
		return h.corrupt("the L1 table has %d entries, the disk's size needs %d", h.l1Entries, need)
	case h.l1Offset == 0 || h.l1Offset%cluster != 0 || h.l1Offset > fileSize || h.l1Entries*8 > fileSize-h.l1Offset:
		return h.corrupt("the L1 table is at %#x", h.l1Offset)
	case h.reftableBytes == 0 || h.reftableBytes > maxReftableBytes:
		return h.corrupt("the refcount table has %d bytes", h.reftableBytes)
	case h.reftableOffset == 0 || h.reftableOffset%cluster != 0 || h.reftableOffset >= fileSize:
		return h.corrupt("the refcount table is at %#x", h.reftableOffset)
	case h.Snapshots > 0 && (h.snapshotOffset == 0 || h.snapshotOffset%cluster != 0 || h.snapshotOffset >= fileSize):
		return h.corrupt("the snapshot table is at %#x", h.snapshotOffset)
	}
	return nil
}
