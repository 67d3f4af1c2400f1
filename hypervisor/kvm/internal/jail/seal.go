package jail

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Seal lets this process, all of its threads and those to come, do nothing any
// more but what a machine that runs has to. What else it tries fails with EPERM,
// and the host's audit log says so.
func Seal() error {
	// No one of our user may look into this process or stop it.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	p, err := assemble(policy(os.Getpid()))
	if err != nil {
		return err
	}
	if err := install(p); err != nil {
		return fmt.Errorf("sandbox: seccomp: %w", err)
	}
	return nil
}
