package proc

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// maxVMAs bounds the mappings that are looked at; vm.max_map_count is 65530
// by default.
const maxVMAs = 1 << 20

// VMA is one line of /proc/PID/maps.
type VMA struct {
	Start, End uint64 // bytes, host-virtual
	Perms      string // "rw-p"
	Offset     uint64 // of Start in the file
	Dev        string // "08:01"
	Inode      uint64 // 0: anonymous
	Path       string // as the kernel writes it; may end in " (deleted)"
}

// Size returns the length in bytes.
func (v VMA) Size() uint64 { return v.End - v.Start }

// Shared reports whether writes are seen by other mappings of the file.
func (v VMA) Shared() bool { return len(v.Perms) == 4 && v.Perms[3] == 's' }

// Plain reports whether the mapping is readable and writable and not
// executable, as the RAM of a guest is.
func (v VMA) Plain() bool { return strings.HasPrefix(v.Perms, "rw-") }

// continues reports whether v goes on where prev ends, in the same object.
func (v VMA) continues(prev VMA) bool {
	if v.Start != prev.End || v.Perms != prev.Perms || v.Inode != prev.Inode || v.Dev != prev.Dev {
		return false
	}
	return v.Inode == 0 || v.Offset == prev.Offset+prev.Size()
}

// Maps returns the process's mappings, in order of their addresses.
func (p *Process) Maps() ([]VMA, error) {
	b, err := p.ReadFile("maps", 0)
	if err != nil {
		return nil, err
	}
	if len(b) == 0 { // a zombie has no mappings, and a dead one no file
		if err := p.Ended(); err != nil {
			return nil, err
		}
	}
	return ParseMaps(b)
}

// ParseMaps parses the text of /proc/PID/maps.
func ParseMaps(b []byte) ([]VMA, error) {
	var vs []VMA
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 64<<10)
	for sc.Scan() {
		if len(vs) >= maxVMAs {
			return nil, fmt.Errorf("maps: more than %d lines", maxVMAs)
		}
		v, err := parseVMA(sc.Text())
		if err != nil {
			return nil, fmt.Errorf("maps: line %d: %w", len(vs)+1, err)
		}
		vs = append(vs, v)
	}
	return vs, sc.Err()
}

func parseVMA(line string) (v VMA, err error) {
	// 7f0000000000-7f0020000000 rw-p 00000000 00:01 1234   /path with blanks
	f := strings.SplitN(line, " ", 6)
	if len(f) < 5 {
		return v, fmt.Errorf("%d fields", len(f))
	}
	lo, hi, ok := strings.Cut(f[0], "-")
	if !ok {
		return v, fmt.Errorf("no address range")
	}
	if v.Start, err = strconv.ParseUint(lo, 16, 64); err != nil {
		return v, err
	}
	if v.End, err = strconv.ParseUint(hi, 16, 64); err != nil {
		return v, err
	}
	if v.End <= v.Start {
		return v, fmt.Errorf("empty range")
	}
	v.Perms, v.Dev = f[1], f[3]
	if v.Offset, err = strconv.ParseUint(f[2], 16, 64); err != nil {
		return v, err
	}
	if v.Inode, err = strconv.ParseUint(f[4], 10, 64); err != nil {
		return v, err
	}
	if len(f) == 6 {
		v.Path = strings.TrimLeft(f[5], " ")
	}
	return v, nil
}

// Runs returns the places where whole neighbouring mappings of one object add
// up to exactly size bytes. Advice and NUMA policy split what was one mapping.
func Runs(vs []VMA, size uint64) [][]VMA {
	var out [][]VMA
	for lo := 0; lo < len(vs); {
		hi := lo + 1
		for hi < len(vs) && vs[hi].continues(vs[hi-1]) {
			hi++
		}
		if vs[lo].Plain() {
			out = appendRuns(out, vs[lo:hi], size)
		}
		lo = hi
	}
	return out
}

// appendRuns finds the runs of exactly size bytes in one group of neighbours,
// with a window that only moves forward.
func appendRuns(out [][]VMA, group []VMA, size uint64) [][]VMA {
	a, sum := 0, uint64(0)
	for b := range group {
		sum += group[b].Size()
		for sum > size && a <= b {
			sum -= group[a].Size()
			a++
		}
		if sum == size && a <= b {
			out = append(out, group[a:b+1])
		}
	}
	return out
}

// Covering returns the neighbouring mappings of one object that hold
// [addr, addr+size), or nil when they do not.
func Covering(vs []VMA, addr, size uint64) []VMA {
	end := addr + size
	if end <= addr {
		return nil
	}
	for i, v := range vs {
		if addr < v.Start || addr >= v.End {
			continue
		}
		j := i
		for vs[j].End < end {
			if j+1 >= len(vs) || !vs[j+1].continues(vs[j]) {
				return nil
			}
			j++
		}
		return vs[i : j+1]
	}
	return nil
}
