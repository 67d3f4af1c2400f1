package jail

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pathBeneath is struct landlock_path_beneath_attr, which is packed.
type pathBeneath [12]byte

// landlockABI returns the version of Landlock's ABI.
func landlockABI() (int, error) {
	v, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if e != 0 {
		return 0, e
	}
	return int(v), nil
}

func landlockCreate(a *rulesetAttr, size uintptr) (int, error) {
	// SAFETY: the kernel reads size bytes of a, which has 24, during the call.
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(a)), size, 0)
	if e != 0 {
		return -1, e
	}
	unix.CloseOnExec(int(fd))
	return int(fd), nil
}

func landlockAllow(set, dir int, access uint64) error {
	var b pathBeneath
	binary.NativeEndian.PutUint64(b[:], access)
	binary.NativeEndian.PutUint32(b[8:], uint32(dir))
	// SAFETY: the kernel reads the 12 bytes of b during the call.
	_, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(set), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&b)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}
