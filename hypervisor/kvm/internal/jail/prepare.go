package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// envSpec holds the spec of the process that Enter is called in.
const envSpec = "VANTAGE_JAIL"

// UIDs of machines that root runs: a range that no distribution gives to anything
// (systemd's UIDS-GIDS document: 1879048192 to 2147483647 is free).
const (
	uidBase = 0x7000_0000
	uidMask = 0x0fff_ffff
)

// spec is what the new process is told.
type spec struct {
	UID   int      `json:"uid"` // to become; -1: it stays who it is
	Args  []string `json:"args"`
	Files int      `json:"files"` // the first so many descriptors are kept
}

// UID returns the user that the machine of this name runs as under root. Names that
// have the same one (1 of 268 million pairs) are no better and no worse off than
// two machines of one user.
func UID(name string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(name)) // never fails
	return uidBase + int(h.Sum32()&uidMask)
}

// Prepare makes cmd, which is this very program ("/proc/self/exe") and calls Enter,
// start in a jail: as a user of its own when we are root, in namespaces of its own.
// cmd's files must be set before. Its environment is replaced.
func Prepare(cmd *exec.Cmd, name string) error {
	s := spec{UID: -1, Args: cmd.Args, Files: 3 + len(cmd.ExtraFiles)}
	attr := cmd.SysProcAttr
	if attr == nil {
		attr = &syscall.SysProcAttr{}
		cmd.SysProcAttr = attr
	}
	attr.Cloneflags |= syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC |
		syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | unix.CLONE_NEWCGROUP
	if uid := os.Geteuid(); uid == 0 {
		s.UID = UID(name)
	} else {
		// Without root only a user namespace gives the right to the others. It
		// knows one user, who is who we are.
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
		attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	cmd.Env = []string{envSpec + "=" + string(b)}
	return nil
}

// Explain adds what to do to the error of a command's start that Prepare prepared.
func Explain(err error) error {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EUSERS) {
		return fmt.Errorf("%w: this host does not let the machine have namespaces of its own: run as root, "+
			"allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "+
			"kernel.apparmor_restrict_unprivileged_userns), or do without the sandbox (--sandbox=off)", err)
	}
	return err
}

// Overflow is the user as which those appear that our user namespace does not
// know; ok: we are in one that does not know all.
func Overflow() (uid uint32, ok bool) {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0, false
	}
	var inside, outside, size uint64
	if _, err := fmt.Sscan(string(b), &inside, &outside, &size); err != nil || size == 1<<32-1 {
		return 0, false
	}
	var overflow uint32 = 65534
	if b, err := os.ReadFile("/proc/sys/kernel/overflowuid"); err == nil {
		if _, err := fmt.Sscan(string(b), &overflow); err != nil {
			return 65534, true
		}
	}
	return overflow, true
}
