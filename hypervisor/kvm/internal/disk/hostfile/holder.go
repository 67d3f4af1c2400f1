package hostfile

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// holder names a process that holds a lock of this file at byte at: "process 17
// (qemu-system-x86)", or "" when none can be told (other users' processes are
// not seen without root). The kernel does not say who owns an OFD lock; but it
// shows to each descriptor's owner the locks that it carries.
func holder(fd int, at int64) string {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return ""
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	self := os.Getpid()
	ours := fmt.Sprintf("/proc/%d/fdinfo/%d", self, fd)
	for _, p := range processes {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", p.Name(), "fdinfo")
		fds, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, d := range fds {
			name := filepath.Join(dir, d.Name())
			if name == ours {
				continue
			}
			info, err := os.ReadFile(name)
			if err != nil || !carries(string(info), file, at) {
				continue
			}
			if pid == self {
				return fmt.Sprintf("this process (%d) already", pid)
			}
			comm, err := os.ReadFile(filepath.Join("/proc", p.Name(), "comm"))
			if err != nil {
				return fmt.Sprintf("process %d", pid)
			}
			return fmt.Sprintf("process %d (%s)", pid, strings.Trim(strconv.Quote(strings.TrimSuffix(string(comm), "\n")), `"`))
		}
	}
	return ""
}

// carries reports whether a descriptor's fdinfo has an OFD lock of file that
// covers byte at: "lock: 1: OFDLCK ADVISORY READ -1 fe:00:17 100 101".
func carries(info, file string, at int64) bool {
	for line := range strings.Lines(info) {
		w := strings.Fields(line)
		if len(w) != 9 || w[0] != "lock:" || w[2] != "OFDLCK" || w[6] != file {
			continue
		}
		first, err := strconv.ParseInt(w[7], 10, 64)
		if err != nil || first > at {
			continue
		}
		last, err := strconv.ParseInt(w[8], 10, 64)
		if w[8] == "EOF" || err == nil && last >= at {
			return true
		}
	}
	return false
}
