package linux

import (
	"encoding/json"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// Mount is a mounted filesystem, or a part of one, in one mount namespace.
type Mount struct {
	Namespace uint32 `json:"mnt_namespace"` // its inode number, as in the links /proc/PID/ns/mnt
	ID        int    `json:"id"`            // as in /proc/PID/mountinfo
	ParentID  int    `json:"parent_id"`
	// Device is the number of the filesystem's device, or that of none
	// (0:N) where it has none.
	Device DeviceNumber `json:"device"`
	// Root is the directory of the filesystem that is mounted: "/" unless it is
	// a bind mount of a part.
	Root string `json:"root"`
	// Target is where it is mounted, up to the root of its mount namespace.
	Target string `json:"target"`
	// Source is what was mounted, in the words of who mounted it: "/dev/sda1",
	// "tmpfs".
	Source string `json:"source"`
	FSType string `json:"fstype"` // "ext4", "fuse.sshfs"
	// Options are those of the mount ("rw,nosuid,relatime") and SuperOptions those
	// of the filesystem that all filesystems have ("rw,sync"); what else a
	// filesystem may be told is known to it alone.
	Options      string `json:"options"`
	SuperOptions string `json:"super_options"`
	// KernelAddress is where the struct mount lies.
	KernelAddress hypervisor.VirtAddr `json:"kernel_address"`
}

// MarshalJSON writes m with its strings made valid: see the package comment.
func (m Mount) MarshalJSON() ([]byte, error) {
	type plain Mount
	q := plain(m)
	for _, s := range []*string{&q.Source, &q.Target, &q.FSType, &q.Root} {
		*s = jsonText(*s)
	}
	return json.Marshal(q)
}

// MountList is what Mounts found, in the order of the mounts' ids.
type MountList struct {
	Mounts   []Mount
	Coverage *introspect.Coverage
}

// Flags of a mount (include/linux/mount.h).
const (
	mntNoSUID      = 0x01
	mntNoDev       = 0x02
	mntNoExec      = 0x04
	mntNoATime     = 0x08
	mntNoDirATime  = 0x10
	mntRelATime    = 0x20
	mntReadOnly    = 0x40
	mntNoSymFollow = 0x80
	// mntCursor marks what is no mount but a reader's place in the list, from
	// 5.8 to 6.7.
	mntCursor = 0x1000_0000
)

// Flags of a filesystem (include/linux/fs.h).
const (
	sbReadOnly    = 1 << 0
	sbSynchronous = 1 << 4
	sbMandLock    = 1 << 6
	sbDirSync     = 1 << 7
	sbLazyTime    = 1 << 25
)

type mountFlag struct {
	bit  uint64
	name string
}

// mountOptions writes flags as show_mountinfo (fs/proc_namespace.c) does.
func mountOptions(flags uint64) string {
	return mountFlags(flags, mntReadOnly, []mountFlag{
		{mntNoSUID, "nosuid"}, {mntNoDev, "nodev"}, {mntNoExec, "noexec"}, {mntNoATime, "noatime"},
		{mntNoDirATime, "nodiratime"}, {mntRelATime, "relatime"}, {mntNoSymFollow, "nosymfollow"},
	})
}

// superOptions writes the flags of a filesystem as show_sb_opts does.
func superOptions(flags uint64) string {
	return mountFlags(flags, sbReadOnly, []mountFlag{
		{sbSynchronous, "sync"}, {sbDirSync, "dirsync"}, {sbMandLock, "mand"}, {sbLazyTime, "lazytime"},
	})
}

func mountFlags(flags, readOnly uint64, names []mountFlag) string {
	var b strings.Builder
	b.WriteString("rw")
	if flags&readOnly != 0 {
		b.Reset()
		b.WriteString("ro")
	}
	for _, f := range names {
		if flags&f.bit != 0 {
			b.WriteByte(',')
			b.WriteString(f.name)
		}
	}
	return b.String()
}
