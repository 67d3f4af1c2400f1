// Package monitor reads the text that QEMU's human monitor prints: `info mtree
// -f`, `gpa2hva`, `info registers -a`.
//
// The text is QEMU's, not the guest's, but names in it are of the VM's starter
// and its form differs between versions: what is not understood is passed
// over, and everything is bounded. The package must not import any other
// package of Vantage but hypervisor.
package monitor

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const (
	maxRegions = 1 << 16
	maxLine    = 4096
)

// Region is one line of a flat view: bytes of one memory region.
type Region struct {
	Start, End hypervisor.PhysAddr // End is one past the last byte
	Type       string              // "ram", "rom", "i/o", "nv-ram", …
	Name       string              // of the memory region: for RAM its backend's id
	Offset     uint64              // of Start in the region, bytes
}

// RAM reports whether the guest reads plain memory here. "rom" is RAM that is
// write-protected at the moment, or a ROM: the name tells.
func (r Region) RAM() bool { return r.Type == "ram" || r.Type == "rom" }

// ErrNoFlatView is returned when the text has no flat view of system memory.
var ErrNoFlatView = errors.New("info mtree: no flat view of system memory")

// FlatView returns the regions of the flat view whose root is "system", in
// order of address, from the text of `info mtree -f`.
func FlatView(text string) ([]Region, error) {
	in := false
	var rs []Region
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		trim := strings.TrimSpace(line)
		if root, ok := strings.CutPrefix(trim, "Root memory region: "); ok {
			in = root == "system"
			continue
		}
		if !in {
			continue
		}
		if trim == "" || strings.HasPrefix(trim, "FlatView") {
			if len(rs) > 0 {
				return rs, nil
			}
			in = false
			continue
		}
		r, ok := parseRegion(trim)
		if !ok {
			continue
		}
		if n := len(rs); n > 0 && r.Start < rs[n-1].End {
			return nil, fmt.Errorf("info mtree: region at %v overlaps the one before", r.Start)
		}
		if rs = append(rs, r); len(rs) > maxRegions {
			return nil, fmt.Errorf("info mtree: more than %d regions", maxRegions)
		}
	}
	if len(rs) == 0 {
		return nil, ErrNoFlatView
	}
	return rs, nil
}

// parseRegion reads
//
//	0000000000100000-000000001fffffff (prio 0, ram): pc.ram @0000000000100000 KVM
func parseRegion(line string) (Region, bool) {
	var r Region
	if len(line) > maxLine {
		return r, false
	}
	addrs, rest, ok := strings.Cut(line, " (prio ")
	if !ok {
		return r, false
	}
	lo, hi, ok := strings.Cut(addrs, "-")
	if !ok {
		return r, false
	}
	start, err1 := strconv.ParseUint(lo, 16, 64)
	last, err2 := strconv.ParseUint(hi, 16, 64)
	if err1 != nil || err2 != nil || last < start || last+1 == 0 {
		return r, false
	}
	prio, name, ok := strings.Cut(rest, "): ")
	if !ok {
		return r, false
	}
	_, kind, ok := strings.Cut(prio, ", ")
	if !ok {
		return r, false
	}
	// The accelerator's name follows where it knows the region.
	name = strings.TrimSuffix(name, " KVM")
	if i := strings.LastIndex(name, " @"); i >= 0 {
		off, err := strconv.ParseUint(name[i+2:], 16, 64)
		if err == nil {
			r.Offset, name = off, name[:i]
		}
	}
	r.Start, r.End = hypervisor.PhysAddr(start), hypervisor.PhysAddr(last+1)
	r.Type, r.Name = kind, name
	return r, true
}

// HostAddress returns the address in QEMU's process and the region's name from
// the text of `gpa2hva`.
func HostAddress(text string) (hva uint64, name string, err error) {
	// Host virtual address for 0x100000 (pc.ram) is 0x7f0000100000
	text = strings.TrimSpace(text)
	head, addr, ok := strings.Cut(text, ") is 0x")
	i := strings.IndexByte(head, '(')
	if !ok || i < 0 {
		return 0, "", fmt.Errorf("gpa2hva: %.128q", text)
	}
	hva, err = strconv.ParseUint(addr, 16, 64)
	if err != nil {
		return 0, "", fmt.Errorf("gpa2hva: %w", err)
	}
	return hva, head[i+1:], nil
}
