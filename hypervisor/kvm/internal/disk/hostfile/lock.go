package hostfile

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// QEMU tells other processes what it does with an image by locks on single bytes
// of it (block/file-posix.c, seen in /proc/locks): byte 100+P is locked by who
// uses permission P, byte 200+P by who lets no one else use P. All are shared
// locks, so that any number can hold them; who wants to know looks for others'
// with F_OFD_GETLK. They belong to the open file description (OFD), so they go
// with a descriptor that is passed to another process, and end with it, however
// that process ends. We use the same bytes in the same way.
const (
	usesBase   = 100
	deniesBase = 200
)

// Permissions: QEMU's BLK_PERM_* by bit number.
const (
	permRead   = 0 // CONSISTENT_READ
	permWrite  = 1
	permResize = 3
)

// Lock says to other processes that the image is used: read, and written to when
// write is set. No other may write to it meanwhile; others that read are let in
// as long as we only read. It returns a *LockedError when that does not go
// together with what others do. Locks end with Close.
//
// On filesystems without such locks it does nothing, as QEMU does.
func (f *File) Lock(write bool) error {
	uses, denies := []int64{permRead}, []int64{permWrite, permResize}
	if write {
		uses = append(uses, permWrite, permResize)
	}
	return f.do(func(fd int) error {
		// First ours, then look for others': of two that do this at the same time
		// at least one sees the other.
		for _, at := range lockBytes(uses, denies) {
			switch err := setLock(fd, at, unix.F_RDLCK); {
			case err == nil:
			case noLocks(err):
				return nil
			default:
				unlock(fd, uses, denies)
				return fmt.Errorf("lock %q: %w", f.path, err)
			}
		}
		// Who writes what we deny, and who denies what we use.
		for _, at := range lockBytes(denies, uses) {
			l := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
			if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l); err != nil {
				unlock(fd, uses, denies)
				return fmt.Errorf("lock %q: %w", f.path, err)
			}
			if l.Type != unix.F_UNLCK {
				unlock(fd, uses, denies)
				return fmt.Errorf("disk image %q: %w", f.path, &LockedError{Path: f.path, Write: write, Holder: holder(fd, at)})
			}
		}
		return nil
	})
}

// lockBytes returns the bytes at which uses and denies are told.
func lockBytes(uses, denies []int64) []int64 {
	var at []int64
	for _, p := range uses {
		at = append(at, usesBase+p)
	}
	for _, p := range denies {
		at = append(at, deniesBase+p)
	}
	return at
}

func unlock(fd int, uses, denies []int64) {
	for _, at := range lockBytes(uses, denies) {
		_ = setLock(fd, at, unix.F_UNLCK) // it ends with the descriptor at the latest
	}
}

func setLock(fd int, at int64, kind int16) error {
	for {
		err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Start: at, Len: 1})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// noLocks reports whether a filesystem says that it has no locks.
func noLocks(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) ||
		errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOLCK)
}
