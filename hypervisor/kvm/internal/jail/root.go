package jail

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// program is what a process needs of the filesystem to be executed again: paths
// in the jail, and the files that belong there.
type program struct {
	files map[string]*os.File // by path in the jail
}

// self finds this very program's file and the libraries that it has mapped: what
// the dynamic linker took for this process it takes for the next.
func self() (_ *program, err error) {
	p := &program{files: map[string]*os.File{}}
	if p.files[programPath], err = ourFile(); err != nil {
		return nil, err
	}
	exe, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer exe.Close()
	interp, err := interpreter(exe)
	if err != nil {
		return nil, fmt.Errorf("this program's file: %w", err)
	}
	if interp == "" {
		return p, nil // static
	}
	if p.files[interp], err = openPath(interp); err != nil {
		return nil, err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	paths, err := mappedFiles(maps)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		name, err := soname(path)
		if err != nil {
			return nil, err
		}
		if name == "" {
			continue
		}
		at := filepath.Join(libraryPath, name)
		if p.files[at] != nil {
			continue
		}
		if p.files[at], err = openPath(path); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// ourFile opens this program's file by its path: the link in /proc leads into the
// mount namespace that the program was started in, of which nothing can be mounted
// here.
func ourFile() (*os.File, error) {
	path, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	running, err := os.Stat("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	there, err := os.Stat(path)
	if err != nil || !os.SameFile(running, there) {
		return nil, fmt.Errorf("%s is another program by now: start that one", path)
	}
	return openPath(path)
}

func openPath(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// interpreter returns the path of a program's dynamic linker; "": it is static.
func interpreter(r io.ReaderAt) (string, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return "", err
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, min(p.Filesz, unix.PathMax))
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", err
		}
		path, _, _ := strings.Cut(string(b), "\x00")
		if !filepath.IsAbs(path) || filepath.Clean(path) != path {
			return "", fmt.Errorf("dynamic linker %q", path)
		}
		return path, nil
	}
	return "", nil
}

// mappedFiles returns the files with code in /proc/PID/maps (proc_pid_maps(5)).
func mappedFiles(r io.Reader) ([]string, error) {
	var paths []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		// Six columns; the path may have blanks in it.
		f := strings.Fields(lines.Text())
		i := strings.IndexByte(lines.Text(), '/')
		if len(f) < 6 || i < 0 || !strings.Contains(f[1], "x") {
			continue
		}
		path := lines.Text()[i:]
		if strings.HasSuffix(path, " (deleted)") {
			return nil, fmt.Errorf("%s was replaced while this program runs: start it again", strings.TrimSuffix(path, " (deleted)"))
		}
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths, lines.Err()
}

// soname returns the name by which programs ask for a library; "": it is none.
func soname(path string) (string, error) {
	f, err := elf.Open(path)
	var bad *elf.FormatError
	if errors.As(err, &bad) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("library %s: %w", path, err)
	}
	defer f.Close()
	names, err := f.DynString(elf.DT_SONAME)
	if err != nil || len(names) == 0 {
		return "", nil // a program, not a library
	}
	if strings.ContainsRune(names[0], '/') {
		return "", fmt.Errorf("library %s calls itself %q", path, names[0])
	}
	return names[0], nil
}

// places are folders that every system has, one of which the new root is put on
// top of until it is the root.
func places() []string { return []string{"/sys", "/mnt", "/tmp", "/dev"} }

// newRoot makes a root of this process's mount namespace in which there is nothing
// but p, and all of that read-only.
func newRoot(p *program) error {
	// What we mount stays ours, whatever the host's mounts propagate.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	var root string
	var err error
	for _, root = range places() {
		if err = unix.Mount("machine", root, "tmpfs", flags, "size=64k,nr_inodes=64,mode=755"); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("mount a root: %w", err)
	}
	for at, f := range p.files {
		if err := bind(filepath.Join(root, at), f); err != nil {
			return fmt.Errorf("%s in the new root: %w", f.Name(), err)
		}
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|flags, ""); err != nil {
		return fmt.Errorf("make the root read-only: %w", err)
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("change to the new root: %w", err)
	}
	err = unix.PivotRoot(".", ".")
	switch {
	case err == nil:
		// The old root lies on top of the new one (pivot_root(2), NOTES).
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount the old root: %w", err)
		}
	case errors.Is(err, unix.EINVAL):
		// An initramfs cannot be pivoted away from; it can be covered.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move the new root: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("change root: %w", err)
		}
	default:
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return fmt.Errorf("change to the new root: %w", err)
	}
	return nil
}

// bind makes the file f appear at path, read-only.
func bind(path string, f *os.File) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	empty, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o555)
	if err != nil {
		return err
	}
	empty.Close()
	source := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	if err := unix.Mount(source, path, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	// Flags that the file's own filesystem has must stay, when we are not root.
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV)
	for _, keep := range [...][2]uintptr{
		{unix.ST_NOEXEC, unix.MS_NOEXEC}, {unix.ST_NOATIME, unix.MS_NOATIME},
		{unix.ST_NODIRATIME, unix.MS_NODIRATIME}, {unix.ST_RELATIME, unix.MS_RELATIME},
	} {
		if uintptr(st.Flags)&keep[0] != 0 {
			flags |= keep[1]
		}
	}
	return unix.Mount("", path, "", flags, "")
}
