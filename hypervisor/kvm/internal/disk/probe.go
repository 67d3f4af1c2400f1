package disk

import (
	"bytes"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/hostfile"
)

const sectorSize = 512

// magics are what image formats that other programs guess begin with.
var magics = [...]struct {
	format string
	at     int
	magic  string
}{
	{FormatQcow2, 0, "QFI\xfb"},
	{"qed", 0, "QED\x00"},
	{"vmdk", 0, "KDMV"},
	{"vmdk", 0, "COWD"},
	{"vmdk", 0, "# Disk DescriptorFile"},
	{"vhdx", 0, "vhdxfile"},
	{"vpc", 0, "conectix"},
	{"vdi", 0x40, "\x7f\x10\xda\xbe"},
	{"parallels", 0, "WithoutFreeSpace"},
	{"parallels", 0, "WithouFreSpacExt"},
	{"luks", 0, "LUKS\xba\xbe"},
	{"dmg", 0, "koly"},
	{"bochs", 0, "Bochs Virtual HD Image"},
	{"cloop", 0, "#!/bin/sh\n#V2.0 Format\n"},
}

// formatOf names the format that a disk's first sector looks like, or "".
func formatOf(sector []byte) string {
	for _, m := range magics {
		if len(sector) >= m.at && bytes.HasPrefix(sector[m.at:], []byte(m.magic)) {
			return m.format
		}
	}
	return ""
}

// probe guesses a format: qcow2 or raw. What looks like another format is
// refused: a guest that is given the container for a disk is of no use.
func probe(f *hostfile.File) (string, error) {
	var sector [sectorSize]byte
	if err := f.ReadAt(sector[:], 0); err != nil {
		return "", err
	}
	switch format := formatOf(sector[:]); format {
	case "":
		return FormatRaw, nil
	case FormatQcow2:
		return FormatQcow2, nil
	default:
		return "", fmt.Errorf("disk image %q looks like %s, which is not supported: convert it (qemu-img convert -O qcow2), or give format=raw if these are the disk's own bytes", f.Path(), format)
	}
}
