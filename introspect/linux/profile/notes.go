package profile

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const (
	// bannerMark is how linux_banner begins (init/version.c).
	bannerMark = "Linux version "
	maxBanner  = 1024
	maxBanners = 1024 // how many that look like one are looked at
	maxNotes   = 64 << 10
	// ntGNUBuildID is NT_GNU_BUILD_ID (elf.h).
	ntGNUBuildID  = 3
	maxBuildIDLen = 64
)

var errNoBanner = errors.New("no banner in the image")

// readBanner fills in Banner and Release.
func (k *Kernel) readBanner(im *image) {
	var b []byte
	if s, err := k.Symbols.Lookup("linux_banner"); err == nil {
		if off, ok := im.offset(s.Addr); ok {
			b, _ = im.copy(off, min(maxBanner, im.size-off))
		}
	}
	if !bytes.HasPrefix(b, []byte(bannerMark)) {
		b, _ = searchBanner(im)
	}
	k.Banner = firstLine(b)
	if rest, ok := strings.CutPrefix(k.Banner, bannerMark); ok {
		k.Release, _, _ = strings.Cut(rest, " ")
	}
}

// searchBanner finds the banner in the image without its symbol.
func searchBanner(im *image) ([]byte, error) {
	for _, sp := range im.searched() {
		b, err := im.view(sp.off, min(sp.size, maxRodata))
		if err != nil {
			continue
		}
		var banner []byte
		if hypervisor.Guard(func() { banner = bannerIn(b) }) == nil && banner != nil {
			return banner, nil
		}
	}
	return nil, errNoBanner
}

// bannerIn returns a copy of what follows the first banner in b.
func bannerIn(b []byte) []byte {
	// Format strings begin the same, but no number follows.
	at := 0
	for range maxBanners {
		i := bytes.Index(b[at:], []byte(bannerMark))
		if i < 0 {
			break
		}
		at += i + len(bannerMark)
		if at < len(b) && b[at] >= '0' && b[at] <= '9' {
			return append([]byte(bannerMark), b[at:min(len(b), at+maxBanner)]...)
		}
	}
	return nil
}

// firstLine returns b up to a newline or NUL.
func firstLine(b []byte) string {
	if i := bytes.IndexAny(b, "\n\x00"); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// readBuildID returns the kernel's GNU build-id, or "" when it has none.
func readBuildID(im *image, syms *Symbols) string {
	b := between(im, syms, "__start_notes", "__stop_notes", maxNotes)
	id, err := buildIDIn(b)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(id)
}

// between returns a copy of what lies between two symbols; nil when that cannot
// be had.
func between(im *image, syms *Symbols, start, stop string, limit uint64) []byte {
	lo, err := syms.Lookup(start)
	if err != nil {
		return nil
	}
	hi, err := syms.Lookup(stop)
	if err != nil || hi.Addr < lo.Addr || uint64(hi.Addr-lo.Addr) > limit {
		return nil
	}
	off, ok := im.offset(lo.Addr)
	if !ok {
		return nil
	}
	b, _ := im.copy(off, uint64(hi.Addr-lo.Addr))
	return b
}

// buildIDIn finds the build-id among ELF notes.
func buildIDIn(notes []byte) ([]byte, error) {
	for len(notes) >= 12 {
		nameLen := uint64(binary.LittleEndian.Uint32(notes))
		descLen := uint64(binary.LittleEndian.Uint32(notes[4:]))
		typ := binary.LittleEndian.Uint32(notes[8:])
		desc := 12 + (nameLen+3)&^3
		end := desc + (descLen+3)&^3
		if end > uint64(len(notes)) {
			return nil, fmt.Errorf("ELF note of %d bytes: %d are there", end, len(notes))
		}
		if typ == ntGNUBuildID && string(notes[12:12+nameLen]) == "GNU\x00" && descLen > 0 && descLen <= maxBuildIDLen {
			return notes[desc : desc+descLen], nil
		}
		notes = notes[end:]
	}
	return nil, errors.New("no build-id among the ELF notes")
}

// contentID stands for the build-id of a kernel that has none.
func contentID(banner string, syms *Symbols, btf []byte) string {
	h := sha256.New()
	for _, p := range [][]byte{[]byte(banner), syms.names, btf} {
		s := sha256.Sum256(p)
		h.Write(s[:])
	}
	return "h-" + hex.EncodeToString(h.Sum(nil)[:20])
}

// findBTF returns a copy of the kernel's BTF. It returns ErrNoBTF when there is
// none.
func findBTF(im *image, syms *Symbols) ([]byte, error) {
	lo, errLo := syms.Lookup("__start_BTF")
	hi, errHi := syms.Lookup("__stop_BTF")
	if errLo == nil && errHi == nil {
		off, ok := im.offset(lo.Addr)
		if !ok || hi.Addr < lo.Addr || uint64(hi.Addr-lo.Addr) > im.size-off {
			return nil, &SanityError{Symbol: lo.Name, Addr: lo.Addr, Want: "BTF in the kernel's image"}
		}
		if hi.Addr == lo.Addr {
			return nil, ErrNoBTF
		}
		return copyBTF(im, off, uint64(hi.Addr-lo.Addr))
	}
	// No symbols for data: by the magic number.
	for _, sp := range im.searched() {
		b, err := im.view(sp.off, min(sp.size, maxRodata))
		if err != nil {
			continue
		}
		tries := 0
		for at := 0; tries < 16; tries++ {
			i := -1
			if fault := hypervisor.Guard(func() { i = bytes.Index(b[at:], btfMark) }); fault != nil || i < 0 {
				break
			}
			at += i
			if blob, err := copyBTF(im, sp.off+uint64(at), sp.size-uint64(at)); err == nil {
				return blob, nil
			}
			at += len(btfMark)
		}
	}
	return nil, ErrNoBTF
}

// copyBTF copies the blob at offset off of im, which ends at most limit bytes
// further on.
func copyBTF(im *image, off, limit uint64) ([]byte, error) {
	head, err := im.copy(off, min(btfHeaderLen, limit))
	if err != nil {
		return nil, err
	}
	h, err := parseBTFHeader(head, limit)
	if err != nil {
		return nil, err
	}
	return im.copy(off, h.size())
}
