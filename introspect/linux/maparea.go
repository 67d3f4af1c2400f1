package linux

import (
	"encoding/json"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Area is one mapping of a process with what its pages are: an entry of
// /proc/PID/smaps. Counts are of pages of 4 KiB.
type Area struct {
	PID    int                 `json:"pid"`
	Start  hypervisor.VirtAddr `json:"start"`
	End    hypervisor.VirtAddr `json:"end"`    // one past the last byte
	Perms  string              `json:"perms"`  // rwx, and p for private or s for shared
	Offset uint64              `json:"offset"` // in the file, bytes
	// Path is as VMA has it.
	Path string `json:"path"`
	// Inode and Dev are of the file that is mapped; 0 for anonymous memory.
	Inode uint64       `json:"inode"`
	Dev   DeviceNumber `json:"dev"`
	// Deleted: the file's name is there no more, or it never had one (memfd,
	// shared anonymous memory).
	Deleted bool `json:"deleted"`
	Anon    bool `json:"anon"` // no file is behind it
	// Flags are the two letters for each bit of vm_flags that smaps prints
	// (VmFlags), in the order of the bits.
	Flags []string `json:"flags"`

	// Resident pages are in RAM. The zero page is not counted, nor memory of
	// devices; unlike in smaps, huge pages of hugetlbfs are.
	Resident uint64 `json:"resident"`
	// Swapped pages are out.
	Swapped uint64 `json:"swapped"`
	// Dirty pages of Resident were written to since they were last in step with
	// the disk or with swap.
	Dirty uint64 `json:"dirty"`
	// Anonymous pages of Resident belong to no file: of a private mapping of a
	// file, those that the process has its own copy of.
	Anonymous uint64 `json:"anonymous"`
	// Modified pages are the copies in a private mapping of a file that are not,
	// byte for byte, what the page cache has at their place: what was written
	// there, and what cannot be compared because either is not in RAM.
	Modified uint64 `json:"modified"`
	// ModifiedExec is Modified where the mapping is executable: code that is
	// not the file's. Breakpoints and uprobes do it too.
	ModifiedExec uint64 `json:"modified_exec"`
}

// Size returns the mapping's length in bytes.
func (a Area) Size() uint64 { return uint64(a.End - a.Start) }

// MarshalJSON writes a with its strings made valid: see the package comment.
func (a Area) MarshalJSON() ([]byte, error) {
	type plain Area
	q := plain(a)
	q.Path = jsonText(a.Path)
	if q.Flags == nil {
		q.Flags = []string{}
	}
	return json.Marshal(q)
}

// MapOptions say what Maps tells of a process's memory.
type MapOptions struct {
	// NoPages leaves the counts of pages out: no page table is read.
	NoPages bool
}

// AreaList is what Maps found, sorted by address.
type AreaList struct {
	Areas []Area
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
