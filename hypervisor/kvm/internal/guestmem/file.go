package guestmem

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// NewFile returns a file of size zero bytes in the host's memory, without a name.
//
// A memfd has huge pages only where the administrator has switched them on for all
// shared memory (shmem_enabled), and without them a guest pays for each page that
// it touches with an exit of its own, and for its memory with two levels more of
// page tables. A tmpfs of our own may have them always; to mount one takes rights
// that who starts machines has and the process of a machine has not. So the file is
// made by the former, of a mount that no one else can see.
func NewFile(size uint64) (*os.File, error) {
	fd, err := hugeFile()
	if err != nil {
		// Without the right, or on a kernel without huge pages: the guest is slower.
		if fd, err = unix.MemfdCreate("vantage-guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
			return nil, fmt.Errorf("memfd_create: %w", err)
		}
	}
	f := os.NewFile(uintptr(fd), "guest memory")
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("guest memory of %d bytes: %w", size, err)
	}
	// No one can take it away under the guest. A file of a tmpfs cannot be sealed,
	// but clients get it for reading alone.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	return f, nil
}

// hugeFile makes a file on a tmpfs with huge pages (Documentation/admin-guide/mm/
// transhuge.rst) that is mounted nowhere.
func hugeFile() (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fs) }()
	for _, o := range [][2]string{{"huge", "advise"}, {"size", "0"}, {"mode", "700"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(mount) }()
	return unix.Openat(mount, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
}
