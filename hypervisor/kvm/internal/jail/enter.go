package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Paths in the jail's root.
const (
	programPath = "/machine"
	libraryPath = "/lib"
)

// Limits of a jailed process, beyond which it has gone wrong.
const (
	maxFiles   = 8192
	maxThreads = 4096 // of its user
)

// Enter is called first of all by a program that Prepare may have started. There
// it does not return, but executes the program anew, in the jail; an error says
// why it could not. Elsewhere it returns nil.
func Enter() error {
	text := os.Getenv(envSpec)
	if text == "" {
		return nil
	}
	var s spec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	// From here on everything is this thread's, which the new program begins with.
	runtime.LockOSThread()
	return fmt.Errorf("sandbox: %w", enter(&s))
}

func enter(s *spec) error {
	p, err := self()
	if err != nil {
		return err
	}
	if err := newRoot(p); err != nil {
		return err
	}
	if err := limits(); err != nil {
		return err
	}
	if err := dropRights(s.UID); err != nil {
		return err
	}
	if err := landlock(); err != nil {
		return err
	}
	// Only what was handed over crosses.
	if err := unix.CloseRange(uint(s.Files), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close files: %w", err)
	}
	env := []string{envInside + "=1", "LD_LIBRARY_PATH=" + libraryPath, "GOTRACEBACK=none"}
	err = unix.Exec(programPath, s.Args, env)
	return fmt.Errorf("execute the program in its jail: %w", err)
}

// envInside tells the program that it is in the jail.
const envInside = "VANTAGE_JAILED"

// Inside reports whether this process was started by Enter.
func Inside() bool { return os.Getenv(envInside) != "" }

func limits() error {
	for what, l := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_NPROC: maxThreads} {
		var now unix.Rlimit
		if err := unix.Getrlimit(what, &now); err != nil {
			return fmt.Errorf("limit %d: %w", what, err)
		}
		l = min(l, now.Max)
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: l, Max: l}); err != nil {
			return fmt.Errorf("limit %d: %w", what, err)
		}
	}
	return nil
}

// dropRights makes this thread the user uid (-1: it stays who it is), without any
// capability and without a way to any (capabilities(7), prctl(2)).
func dropRights(uid int) error {
	for c := uintptr(0); ; c++ {
		in, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // above the last that the kernel knows
		}
		if err != nil {
			return fmt.Errorf("capability %d: %w", c, err)
		}
		if in == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("drop ambient capabilities: %w", err)
	}
	if uid >= 0 {
		// Raw calls: package syscall's would let all threads do it, which are
		// about to end.
		for _, call := range []struct {
			name string
			nr   uintptr
			n    uintptr
		}{{"setresgid", unix.SYS_SETRESGID, uintptr(uid)}, {"setresuid", unix.SYS_SETRESUID, uintptr(uid)}} {
			if call.nr == unix.SYS_SETRESGID {
				if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); e != 0 {
					return fmt.Errorf("setgroups: %w", e)
				}
			}
			if _, _, e := unix.RawSyscall(call.nr, call.n, call.n, call.n); e != 0 {
				return fmt.Errorf("%s %d: %w", call.name, uid, e)
			}
		}
	}
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	return nil
}
