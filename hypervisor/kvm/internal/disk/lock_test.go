package disk

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// holdWith starts a QEMU program that has an image open, and returns its PID
// once it has. ready is what it prints then, ask what it is asked to print it.
func holdWith(t *testing.T, ask, ready string, command ...string) int {
	t.Helper()
	path, err := exec.LookPath(command[0])
	if err != nil {
		labtest.Missing(t, "no %s here", command[0])
	}
	cmd := exec.CommandContext(t.Context(), path, command[1:]...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if _, err := io.WriteString(in, ask); err != nil {
		t.Fatal(err)
	}
	var seen bytes.Buffer
	r := bufio.NewReader(out)
	for !strings.Contains(seen.String(), ready) {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, &seen)
		}
		seen.WriteByte(b)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	return cmd.Process.Pid
}

func lockImage(t *testing.T, format string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image."+format)
	qemuImg(t, "create", "-q", "-f", format, path, "1M")
	return path
}

// TestQEMUHolds: QEMU has an image, and we want it.
func TestQEMUHolds(t *testing.T) {
	t.Parallel()
	for _, format := range []string{FormatRaw, FormatQcow2} {
		for _, theirs := range []struct {
			name     string
			readOnly bool
			command  func(path string) (ask, ready string, command []string)
		}{
			{"qemu-io", false, func(p string) (string, string, []string) {
				return "length\n", "1 MiB", []string{"qemu-io", "-f", format, p}
			}},
			{"qemu-io", true, func(p string) (string, string, []string) {
				return "length\n", "1 MiB", []string{"qemu-io", "-r", "-f", format, p}
			}},
			{"qemu-system-x86", false, func(p string) (string, string, []string) {
				return "info status\n", "VM status", systemEmulator("file=" + p + ",format=" + format + ",if=virtio")
			}},
			{"qemu-system-x86", true, func(p string) (string, string, []string) {
				return "info status\n", "VM status", systemEmulator("file=" + p + ",format=" + format + ",if=virtio,readonly=on")
			}},
		} {
			for _, readOnly := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%s/ro %v/ours ro %v", format, theirs.name, theirs.readOnly, readOnly), func(t *testing.T) {
					t.Parallel()
					path := lockImage(t, format)
					ask, ready, command := theirs.command(path)
					pid := holdWith(t, ask, ready, command...)
					d, err := Open(path, Options{Format: format, ReadOnly: readOnly})
					// qemu-io does not mind others that write to a raw image it reads.
					shares := theirs.name == "qemu-io" && format == FormatRaw
					if theirs.readOnly && (readOnly || shares) {
						if err != nil {
							t.Fatalf("goes together: %v", err)
						}
						d.Close()
						return
					}
					var locked *LockedError
					if !errors.Is(err, ErrLocked) || !errors.As(err, &locked) {
						t.Fatalf("error %v, want one that says that the image is in use", err)
					}
					want := fmt.Sprintf("process %d (%s)", pid, theirs.name)
					if locked.Holder != want && os.Geteuid() == 0 {
						t.Errorf("holder %q, want %q", locked.Holder, want)
					}
				})
			}
		}
	}
}

func systemEmulator(drive string) []string {
	return []string{"qemu-system-x86_64", "-accel", "tcg", "-M", "pc", "-m", "16", "-S", "-nodefaults",
		"-display", "none", "-monitor", "stdio", "-drive", drive}
}

// TestWeHold: we have an image, and QEMU wants it.
func TestWeHold(t *testing.T) {
	t.Parallel()
	for _, format := range []string{FormatRaw, FormatQcow2} {
		for _, readOnly := range []bool{false, true} {
			path := lockImage(t, format)
			d, err := Open(path, Options{Format: format, ReadOnly: readOnly})
			if err != nil {
				t.Fatal(err)
			}
			write := []string{"-f", format, "-c", "write 0 512", path}
			read := []string{"-r", "-f", format, "-c", "read 0 512", path}
			if out, err := program(t, "qemu-io", write...); err == nil || !bytes.Contains(out, []byte("lock")) {
				t.Errorf("%s, ro=%v: qemu-io can write: %v\n%s", format, readOnly, err, out)
			}
			if out, err := program(t, "qemu-io", read...); (err == nil) != (readOnly || format == FormatRaw) {
				t.Errorf("%s, ro=%v: qemu-io reads: %v\n%s", format, readOnly, err, out)
			}
			if out, err := program(t, systemEmulator("")[0], append(systemEmulator("file=" + path + ",format=" + format + ",if=virtio")[1:], "-no-shutdown")...); err == nil || !bytes.Contains(out, []byte("lock")) {
				t.Errorf("%s, ro=%v: qemu-system starts: %v\n%s", format, readOnly, err, out)
			}
			other, err := Open(path, Options{Format: format, ReadOnly: true})
			if readOnly {
				if err != nil {
					t.Errorf("%s: two readers: %v", format, err)
				} else {
					other.Close()
				}
				_, err = Open(path, Options{Format: format})
			}
			if !errors.Is(err, ErrLocked) || !strings.Contains(fmt.Sprint(err), "this process") {
				t.Errorf("%s: the second opening: %v", format, err)
			}
			d.Close()
			if out, err := program(t, "qemu-io", write...); err != nil {
				t.Errorf("%s: qemu-io after Close: %v\n%s", format, err, out)
			}
		}
	}
}

// TestBackingHeld: who writes to a backing file cannot while an overlay is used,
// and any number of overlays can be used.
func TestBackingHeld(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	qemuImg(t, "create", "-q", "-f", "raw", base, "1M")
	var overlays []string
	for i := range 3 {
		overlays = append(overlays, filepath.Join(dir, fmt.Sprint(i)))
		qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", overlays[i])
	}
	for _, o := range overlays[:2] {
		d, err := Open(o, Options{Format: FormatQcow2})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
	}
	qemuIO(t, overlays[2], "qcow2", "write 0 512")
	if _, err := Open(base, Options{Format: FormatRaw}); !errors.Is(err, ErrLocked) {
		t.Errorf("our writer: %v", err)
	}
	if out, err := program(t, "qemu-io", "-f", "raw", "-c", "write 0 512", base); err == nil {
		t.Errorf("qemu-io can write to the backing file\n%s", out)
	}
}

// TestLockHandedOver: a descriptor keeps its locks when it goes to another user.
func TestLockHandedOver(t *testing.T) {
	t.Parallel()
	path := lockImage(t, FormatQcow2)
	files, err := OpenFiles(path, Options{Format: FormatQcow2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Format: FormatQcow2}); !errors.Is(err, ErrLocked) {
		t.Errorf("while the file is handed over: %v", err)
	}
	d, err := OpenFile(files[0], Options{Format: FormatQcow2, Backing: files[1:]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Format: FormatQcow2}); !errors.Is(err, ErrLocked) {
		t.Errorf("when it is in use: %v", err)
	}
	d.Close()
	d, err = Open(path, Options{Format: FormatQcow2})
	if err != nil {
		t.Fatal(err)
	}
	d.Close()
}
