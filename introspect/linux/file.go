package linux

import (
	"fmt"
	"strconv"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Octal is a number that the kernel prints in base 8: a file's mode, and the
// flags that it was opened with. Its text has a 0 in front.
type Octal uint32

func (o Octal) String() string { return "0" + strconv.FormatUint(uint64(o), 8) }

// MarshalText writes o as String does.
func (o Octal) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// DeviceNumber is the kernel's own dev_t (include/linux/kdev_t.h).
type DeviceNumber uint32

// Major returns the number of the driver.
func (d DeviceNumber) Major() uint32 { return uint32(d) >> minorBits }

// Minor returns the number of the device among those of its driver.
func (d DeviceNumber) Minor() uint32 { return uint32(d) & (1<<minorBits - 1) }

func (d DeviceNumber) String() string { return fmt.Sprintf("%d:%d", d.Major(), d.Minor()) }

// MarshalText writes d as MAJOR:MINOR, in base 10.
func (d DeviceNumber) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// FileRole is what a process has a file for.
type FileRole string

// Roles of files.
const (
	RoleOpen    FileRole = "fd"  // in its table of open files
	RoleProgram FileRole = "exe" // the program that it runs
)

// FileType is what a file is: one of the constants or, for an inode that belongs
// to no file system, the kernel's word for it: eventfd, eventpoll, inotify,
// timerfd, signalfd, pidfd, bpf-map, …
type FileType string

// Types of files.
const (
	TypeRegular   FileType = "reg"
	TypeDirectory FileType = "dir"
	TypeCharDev   FileType = "chr"
	TypeBlockDev  FileType = "blk"
	TypeFIFO      FileType = "fifo" // pipes with and without a name
	TypeSocket    FileType = "sock"
	TypeLink      FileType = "link"
	TypeUnknown   FileType = "unknown"
)

// File is a file that a process has open, or the program that it runs.
type File struct {
	PID  int      `json:"pid"`
	Comm string   `json:"comm"`
	Role FileRole `json:"role"`
	FD   int      `json:"fd"` // -1 when Role is not RoleOpen
	// Path is what readlink prints of /proc/PID/fd/FD for a process in the
	// file's own mount namespace: the path up to that namespace's root, with
	// " (deleted)" behind it, or a name such as pipe:[42] or
	// anon_inode:[eventfd]. Empty when it could not be read.
	Path string   `json:"path"`
	Type FileType `json:"type"`
	// Flags are the O_ flags of open(2), as /proc/PID/fdinfo prints them: with
	// O_CLOEXEC (02000000) as this fd has it.
	Flags Octal `json:"flags"`
	// Pos is where the next read or write begins, in bytes.
	Pos   int64        `json:"pos"`
	Inode uint64       `json:"inode"`
	Dev   DeviceNumber `json:"dev"`  // of the file system that it is on
	RDev  DeviceNumber `json:"rdev"` // that a chr or blk stands for
	// Deleted: the name that it was opened by is there no more, or it never
	// had one (memfd, O_TMPFILE). Pipes, sockets and the like are not deleted.
	Deleted bool `json:"deleted"`
	// Links is how many names the file has: 0 when it goes with its last user.
	Links int `json:"links"`
	// UID and GID own the file, as the first user namespace numbers them;
	// NoID where they could not be read.
	UID  int   `json:"uid"`
	GID  int   `json:"gid"`
	Mode Octal `json:"mode"` // permissions and type (S_IFMT), as stat has it
	Size int64 `json:"size"` // bytes
	// Times as stat has them, in UTC; zero where not known.
	ModTime    time.Time `json:"mtime,omitzero"`
	ChangeTime time.Time `json:"ctime,omitzero"`
	AccessTime time.Time `json:"atime,omitzero"`
	// MountNamespace is the inode number of the mount namespace that the file
	// was opened in; 0 for what is mounted in none (pipes, sockets, memfds,
	// and mounts that were detached).
	MountNamespace uint32 `json:"mnt_ns"`
	// KernelAddress is where the struct file lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// FileOptions say what Files lists.
type FileOptions struct {
	// PID, when it is not 0, is the only process whose files are listed.
	PID int
}

// FileList is what Files found, sorted by PID, role and FD.
type FileList struct {
	Files []File
	// Coverage tells what could not be read or believed.
	Coverage *introspect.Coverage
}
