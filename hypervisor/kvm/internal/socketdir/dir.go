package socketdir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

const (
	socketSuffix = ".sock"
	lockSuffix   = ".lock"
	// below is the folder in root's or a user's runtime folder.
	below = "vantage/vms"
	// runtimeRoot and runtimeUsers are the usual places (file-hierarchy(7)).
	runtimeRoot  = "/run"
	runtimeUsers = "/run/user"
)

var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// CheckName tells whether a machine may have this name.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q: want 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first", name)
	}
	return nil
}

// Dir is a folder of sockets.
type Dir string

// Default returns the folder of who we are: root's, or the user's own.
func Default() (Dir, error) {
	uid := os.Geteuid()
	if uid == 0 {
		return Dir(filepath.Join(runtimeRoot, below)), nil
	}
	base := os.Getenv("XDG_RUNTIME_DIR")
	if base == "" {
		base = filepath.Join(runtimeUsers, strconv.Itoa(uid))
		if st, err := os.Stat(base); err != nil || owner(st) != uid {
			return "", errors.New("no place for the VM's socket: set XDG_RUNTIME_DIR to a folder of your own, or run as root")
		}
	}
	if !filepath.IsAbs(base) {
		return "", fmt.Errorf("XDG_RUNTIME_DIR %q: want an absolute path", base)
	}
	return Dir(filepath.Join(base, below)), nil
}

// All returns the folders that may have VMs whose sockets we can use: our own,
// and for root those of all users.
func All() ([]Dir, error) {
	own, err := Default()
	if err != nil {
		return nil, nil //nolint:nilerr // no place, no VMs
	}
	dirs := []Dir{own}
	if os.Geteuid() != 0 {
		return dirs, nil
	}
	users, err := filepath.Glob(filepath.Join(runtimeUsers, "*", below))
	if err != nil {
		return nil, err
	}
	for _, u := range users {
		dirs = append(dirs, Dir(u))
	}
	return dirs, nil
}

// Socket returns the path of the socket of a machine of this name.
func (d Dir) Socket(name string) string { return filepath.Join(string(d), name+socketSuffix) }

func (d Dir) lock(name string) string { return filepath.Join(string(d), name+lockSuffix) }

// Split returns folder and name of a socket's path.
func Split(path string) (Dir, string, error) {
	name, ok := strings.CutSuffix(filepath.Base(path), socketSuffix)
	if !ok {
		return "", "", fmt.Errorf("%s: want a path that ends in %s", path, socketSuffix)
	}
	return Dir(filepath.Dir(path)), name, CheckName(name)
}

// Names returns the names that have a socket here, sorted. A folder that is not
// there has none.
func (d Dir) Names() ([]string, error) {
	es, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sockets of VMs: %w", err)
	}
	var names []string
	for _, e := range es {
		name, ok := strings.CutSuffix(e.Name(), socketSuffix)
		if ok && e.Type()&fs.ModeSocket != 0 && CheckName(name) == nil {
			names = append(names, name)
		}
	}
	return names, nil
}

// Check tells whether the socket of name can be trusted to be what it looks like:
// no one but its owner can have put it there, and that is root, or who we are. For
// root it may be any user: that one's VM is then as much in that one's hands as
// anything else of theirs, and is treated as hostile.
func (d Dir) Check(name string) error {
	dir, err := os.Stat(string(d))
	if err != nil {
		return fmt.Errorf("sockets of VMs: %w", err)
	}
	socket, err := os.Lstat(d.Socket(name))
	if err != nil {
		return fmt.Errorf("socket of VM %s: %w", name, err)
	}
	uid := os.Geteuid()
	of := owner(dir)
	switch {
	case dir.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s: others can write there: it is not looked at", d)
	case socket.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("%s: not a socket", d.Socket(name))
	case owner(socket) != of && owner(socket) != 0:
		return fmt.Errorf("%s: owned by user %d in a folder of user %d", d.Socket(name), owner(socket), of)
	case of != uid && of != 0 && uid != 0:
		return fmt.Errorf("%s: owned by user %d: %w", d, of, os.ErrPermission)
	}
	return nil
}

func owner(st fs.FileInfo) int {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}
