package lab

import (
	"bufio"
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// Initramfs is an archive of files for a guest to boot from, in the "newc"
// format (Documentation/driver-api/early-userspace/buffer-format.rst). The same
// files make the same bytes. The zero value is empty and ready for use.
type Initramfs struct {
	entries map[string]entry
}

type entry struct {
	mode  uint32 // as st_mode
	major uint32 // of a device
	minor uint32
	data  []byte
	host  string // path of the file that holds the data, instead of data
}

// Bits of st_mode (include/uapi/linux/stat.h).
const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeLink = 0o120000
	modeChar = 0o020000
)

func (i *Initramfs) add(name string, e entry) {
	if i.entries == nil {
		i.entries = map[string]entry{}
	}
	name = strings.Trim(path.Clean("/"+name), "/")
	for d := path.Dir(name); d != "." && d != "/"; d = path.Dir(d) {
		if _, ok := i.entries[d]; !ok {
			i.entries[d] = entry{mode: modeDir | 0o755}
		}
	}
	i.entries[name] = e
}

// Mkdir adds a folder. Folders above it, and above all that the other methods
// add, are made as needed.
func (i *Initramfs) Mkdir(name string) { i.add(name, entry{mode: modeDir | 0o755}) }

// File adds a file with the given contents.
func (i *Initramfs) File(name string, mode fs.FileMode, data []byte) {
	i.add(name, entry{mode: modeFile | uint32(mode.Perm()), data: data})
}

// HostFile adds a copy of a file of this machine; it is read by WriteTo.
func (i *Initramfs) HostFile(name string, mode fs.FileMode, host string) {
	i.add(name, entry{mode: modeFile | uint32(mode.Perm()), host: host})
}

// Symlink adds a symbolic link.
func (i *Initramfs) Symlink(name, target string) {
	i.add(name, entry{mode: modeLink | 0o777, data: []byte(target)})
}

// Device adds a character device.
func (i *Initramfs) Device(name string, major, minor uint32) {
	i.add(name, entry{mode: modeChar | 0o600, major: major, minor: minor})
}

// WriteTo writes the archive.
func (i *Initramfs) WriteTo(w io.Writer) (int64, error) {
	cw := &countWriter{w: bufio.NewWriterSize(w, 1<<20)}
	ino := uint32(1)
	for _, name := range slices.Sorted(maps.Keys(i.entries)) {
		if err := i.entries[name].write(cw, name, ino); err != nil {
			return cw.n, fmt.Errorf("initramfs: %s: %w", name, err)
		}
		ino++
	}
	if err := (entry{}).write(cw, "TRAILER!!!", 0); err != nil {
		return cw.n, fmt.Errorf("initramfs: %w", err)
	}
	return cw.n, cw.w.Flush()
}

func (e entry) write(w *countWriter, name string, ino uint32) error {
	size := int64(len(e.data))
	var host *os.File
	if e.host != "" {
		f, err := os.Open(e.host)
		if err != nil {
			return err
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			return err
		}
		host, size = f, st.Size()
	}
	if size > 1<<32-1 {
		return errors.New("larger than the format allows (4 GiB)")
	}
	// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
	// rdevmajor, rdevminor, namesize, check
	fmt.Fprintf(w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		ino, e.mode, 0, 0, 1, 0, size, 0, 0, e.major, e.minor, len(name)+1, 0)
	fmt.Fprintf(w, "%s\x00", name)
	if err := w.pad(); err != nil {
		return err
	}
	if host != nil {
		n, err := io.CopyN(w, host, size)
		if err != nil {
			return fmt.Errorf("copied %d of %d bytes: %w", n, size, err)
		}
	} else if _, err := w.Write(e.data); err != nil {
		return err
	}
	return w.pad()
}

// countWriter counts what goes through it: the format pads to 4 bytes.
type countWriter struct {
	w *bufio.Writer
	n int64
}

func (c *countWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func (c *countWriter) pad() error {
	_, err := c.Write(make([]byte, (4-c.n%4)%4))
	return err
}

// StaticBusybox returns the path of this machine's static busybox.
func StaticBusybox() (string, error) {
	missing := &MissingError{What: "a static busybox", Package: "busybox-static"}
	p, err := exec.LookPath("busybox")
	if err != nil {
		return "", missing
	}
	file, err := os.Open(p)
	if err != nil {
		return "", missing
	}
	defer file.Close()
	f, err := elf.NewFile(file)
	if err != nil {
		return "", missing
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return "", missing
	}
	return p, nil
}

// Busybox adds this machine's static busybox as /bin/busybox, with a link in
// /bin for each of its commands.
func (i *Initramfs) Busybox() error {
	p, err := StaticBusybox()
	if err != nil {
		return err
	}
	out, err := exec.Command(p, "--list").Output() //nolint:noctx // ends at once, reads nothing
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	i.HostFile("bin/busybox", 0o755, p)
	for name := range bytes.FieldsSeq(out) {
		if n := string(name); n != "busybox" {
			i.Symlink("bin/"+n, "busybox")
		}
	}
	return nil
}
