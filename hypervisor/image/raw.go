package image

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Where QEMU's machines split RAM around the hole below 4 GiB: from `from` bytes
// of RAM on, `low` bytes lie below the hole and the rest from 4 GiB on
// (hw/i386/pc_piix.c, pc_q35.c; without max-ram-below-4g).
const (
	pcHoleFrom  = 0xe000_0000
	pcLow       = 0xc000_0000
	q35HoleFrom = 0xb000_0000
	q35Low      = 0x8000_0000
	aboveHole   = 1 << 32
)

// parseRaw takes the file as guest RAM, byte by byte from address 0.
func (s *source) parseRaw(hole string) (*parsed, error) {
	size := uint64(s.size)
	im := &parsed{}
	if tail := size % hypervisor.PageSize; tail != 0 {
		im.warnings = append(im.warnings, fmt.Sprintf("raw memory ends within a page: its last %d bytes are a part of one", tail))
	}
	var from, low uint64
	switch hole {
	case "pc":
		from, low = pcHoleFrom, pcLow
	case "q35":
		from, low = q35HoleFrom, q35Low
	}
	if hole == "" || size < from {
		if hole == "" && size >= q35HoleFrom {
			im.warnings = append(im.warnings, "raw memory this large has a hole below 4 GiB in most VMs; hole=pc or hole=q35 takes it into account")
		}
		im.segments = []segment{{size: size, have: size}}
		return im, nil
	}
	im.segments = []segment{
		{size: low, have: low},
		{phys: aboveHole, size: size - low, off: int64(low), have: size - low},
	}
	return im, nil
}
