package linux

import (
	"encoding/json"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// CachedFile is an inode of which the page cache has pages: a file, or a block
// device.
type CachedFile struct {
	// Path is up to the root of init's mount namespace, or up to the root of
	// its filesystem when that is mounted elsewhere or nowhere. A file that
	// was deleted, or never had a name, has " (deleted)" behind it. Empty when the
	// kernel has no name for it in its caches any more.
	Path string   `json:"path"`
	Type FileType `json:"type"`
	// FSType is the filesystem's type, Device what it is on (its s_id).
	FSType string `json:"fs_type"`
	Device string `json:"device"`
	// Dev is the filesystem's device number, RDev that of a block device.
	Dev   DeviceNumber `json:"dev"`
	RDev  DeviceNumber `json:"rdev"`
	Inode uint64       `json:"inode"`
	Links int          `json:"links"`
	Size  uint64       `json:"size"` // bytes
	// Pages are 4096 bytes each. Dirty ones are not written to disk yet; of
	// files that are in memory only (tmpfs) none is. Swapped ones are of tmpfs
	// and in swap, and not among Pages.
	Pages        uint64 `json:"pages_cached"`
	Bytes        uint64 `json:"bytes_cached"`
	PagesDirty   uint64 `json:"pages_dirty"`
	PagesSwapped uint64 `json:"pages_swapped"`
	Deleted      bool   `json:"deleted"`
	// Mounted: Path is one in init's mount namespace.
	Mounted bool `json:"mounted"`
	// KernelAddress is where the struct inode lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// MarshalJSON writes f with its strings made valid: see the package comment.
func (f CachedFile) MarshalJSON() ([]byte, error) {
	type plain CachedFile
	q := plain(f)
	q.Path, q.FSType, q.Device = jsonText(f.Path), jsonText(f.FSType), jsonText(f.Device)
	return json.Marshal(q)
}

// CachedFileList is what CachedFiles found, sorted by path, device and inode.
type CachedFileList struct {
	Files []CachedFile
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
