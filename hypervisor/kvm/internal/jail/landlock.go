package jail

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// What Landlock can handle since which version of its ABI (Documentation/
// userspace-api/landlock.rst).
const (
	landlockABI1 = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE |
		unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR |
		unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR |
		unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	landlockNet   = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	landlockScope = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
)

// rulesetAttr is struct landlock_ruleset_attr (linux/landlock.h).
type rulesetAttr struct {
	accessFS  uint64
	accessNet uint64 // from ABI 4 on
	scoped    uint64 // from ABI 6 on
}

// attrOf returns what a ruleset of an ABI can handle, and how many bytes of the
// struct that ABI has.
func attrOf(abi int) (a rulesetAttr, size uintptr) {
	a.accessFS, size = landlockABI1, 8
	if abi >= 2 {
		a.accessFS |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		a.accessFS |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		a.accessNet, size = landlockNet, 16
	}
	if abi >= 5 {
		a.accessFS |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		a.scoped, size = landlockScope, 24
	}
	return a, size
}

// landlock restricts this thread, where the host has Landlock: of the filesystem
// it may read and execute what is in the root that newRoot has made, through no
// folder that some file descriptor still names; no TCP; no signals and no abstract
// sockets to the outside.
func landlock() error {
	abi, err := landlockABI()
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil // not in this kernel, or not switched on (lsm=)
	}
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	attr, size := attrOf(abi)
	set, err := landlockCreate(&attr, size)
	if err != nil {
		return fmt.Errorf("landlock: make a ruleset: %w", err)
	}
	defer unix.Close(set)
	root, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("landlock: %w", err)
	}
	defer unix.Close(root)
	if err := landlockAllow(set, root, unix.LANDLOCK_ACCESS_FS_EXECUTE|unix.LANDLOCK_ACCESS_FS_READ_FILE); err != nil {
		return fmt.Errorf("landlock: allow the program: %w", err)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(set), 0, 0); e != 0 {
		return fmt.Errorf("landlock: %w", e)
	}
	return nil
}
