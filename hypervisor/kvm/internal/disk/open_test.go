package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/disk/qcow2"
)

// TestOpenErrors: what cannot be opened says why, and what to do.
func TestOpenErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	file := func(name string, b []byte) {
		if err := os.WriteFile(at(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file("odd", make([]byte, 1000))
	file("empty", nil)
	file("text", bytes.Repeat([]byte("hello "), 512))
	file("short.qcow2", []byte("QFI\xfb\x00\x00\x00\x03"))
	file("vmdk", append([]byte("KDMV"), make([]byte, 1020)...))
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "create", "-q", "-f", "qcow2", at("good"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", at("extended"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data"), at("external"), "1M")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "--object", "secret,id=s,data=abc", at("luks"), "1M")
	qemuImg(t, "create", "-q", "-f", "raw", at("base"), "1M")
	overlay := func(name string, args ...string) {
		qemuImg(t, append(append([]string{"create", "-q", "-f", "qcow2", "-u"}, args...), at(name), "1M")...)
	}
	overlay("overlay", "-b", "base", "-F", "raw")
	overlay("lost", "-b", "nowhere", "-F", "raw")
	overlay("vmdkbase", "-b", "base", "-F", "vmdk")
	overlay("nbd", "-b", "nbd://host/x", "-F", "raw")
	overlay("json", "-b", `json:{"driver":"null-co"}`, "-F", "raw")
	overlay("loop1", "-b", "loop2", "-F", "qcow2")
	overlay("loop2", "-b", "loop1", "-F", "qcow2")
	overlay("self", "-b", "self", "-F", "qcow2")
	// The backing file's format is not recorded, and it has a backing file itself.
	overlay("guess", "-b", "overlay", "-F", "qcow2")
	patch(t, at("guess"), func(b []byte) { dropExtension(b, 0xe2792aca) })
	overlay("deep0", "-b", "base", "-F", "raw")
	for i := range maxDepth {
		overlay(fmt.Sprintf("deep%d", i+1), "-b", fmt.Sprintf("deep%d", i), "-F", "qcow2")
	}
	for name, bit := range map[string]byte{"dirty": 1, "corrupt": 2, "unknown": 32} {
		qemuImg(t, "create", "-q", "-f", "qcow2", at(name), "1M")
		patch(t, at(name), func(b []byte) { b[79] |= bit })
	}

	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"nowhere", Options{}, "check the path"},
		{".", Options{}, "a directory"},
		{"fifo", Options{ReadOnly: true}, "neither a regular file nor a block device"},
		{"odd", Options{Format: FormatRaw}, "not a multiple of 512"},
		{"empty", Options{}, "give it a size"},
		{"text", Options{Format: FormatQcow2}, "not in format qcow2"},
		{"good", Options{Format: "vdi"}, "not known"},
		{"good", Options{ID: strings.Repeat("x", 21)}, "at most 20"},
		{"good", Options{ID: "a\x1b"}, "printable"},
		{"short.qcow2", Options{}, "ends in its header"},
		{"vmdk", Options{}, "looks like vmdk"},
		{"extended", Options{Format: FormatQcow2}, "extended L2 entries, which is not supported"},
		{"external", Options{Format: FormatQcow2}, "an external data file, which is not supported"},
		{"luks", Options{Format: FormatQcow2}, "encryption, which is not supported"},
		{"overlay", Options{}, "give format=qcow2 if you trust the image"},
		{"overlay", Options{Format: FormatQcow2, NoBacking: true}, "not allowed here"},
		{"overlay", Options{Format: FormatQcow2, Backing: []*os.File{}}, "was not given"},
		{"lost", Options{Format: FormatQcow2}, "check the path"},
		{"vmdkbase", Options{Format: FormatQcow2}, `format "vmdk"`},
		{"nbd", Options{Format: FormatQcow2}, "not a plain path"},
		{"json", Options{Format: FormatQcow2}, "not a plain path"},
		{"loop1", Options{Format: FormatQcow2}, "its own backing file"},
		{"self", Options{Format: FormatQcow2}, "its own backing file"},
		{"guess", Options{Format: FormatQcow2}, "its format was guessed"},
		{fmt.Sprintf("deep%d", maxDepth), Options{Format: FormatQcow2}, "backing files: flatten"},
		{"dirty", Options{}, "qemu-img check -r all"},
		{"corrupt", Options{}, "read-only"},
		{"unknown", Options{}, "incompatible feature bit 5"},
	} {
		d, err := Open(at(c.name), c.o)
		if err == nil {
			d.Close()
			t.Errorf("%s, %+v: opened", c.name, c.o)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q has no %q", c.name, err, c.want)
		}
	}
	var feature *qcow2.FeatureError
	if _, err := Open(at("unknown"), Options{}); !errors.As(err, &feature) {
		t.Errorf("an unknown feature: %T", err)
	}
	if _, err := Open(at("nowhere"), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	// What can be read only can be read.
	for _, name := range []string{"dirty", "corrupt"} {
		d, err := Open(at(name), Options{ReadOnly: true})
		if err != nil {
			t.Errorf("%s, read-only: %v", name, err)
			continue
		}
		d.Close()
	}
	d, err := Open(at(fmt.Sprintf("deep%d", maxDepth-2)), Options{Format: FormatQcow2})
	if err != nil {
		t.Fatalf("a chain as long as it may be: %v", err)
	}
	d.Close()
}

// patch changes the first bytes of a file.
func patch(t *testing.T, path string, change func(b []byte)) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// dropExtension turns a header extension into one that no one knows.
func dropExtension(b []byte, kind uint32) {
	i := bytes.Index(b, binary.BigEndian.AppendUint32(nil, kind))
	copy(b[i:], "none")
}

// TestProbe: a guest that is given a raw disk cannot make something else of it.
func TestProbe(t *testing.T) {
	t.Parallel()
	secret := writeFile(t, "secret", bytes.Repeat([]byte("secret! "), 1<<14))
	evil := filepath.Join(t.TempDir(), "evil")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", evil, "128k")
	header, err := os.ReadFile(evil)
	if err != nil {
		t.Fatal(err)
	}
	disk := writeFile(t, "disk", make([]byte, 1<<20))

	d, err := Open(disk, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, write := range []func() error{
		func() error { return d.WriteV([][]byte{header[:512]}, 0) },
		func() error { return d.WriteV([][]byte{header[:3], header[3:512]}, 0) },
		func() error { return d.WriteV([][]byte{header}, 0) },
		func() error {
			return errors.Join(d.WriteV([][]byte{header[2:512]}, 2), d.WriteV([][]byte{header[:2]}, 0))
		},
	} {
		if err := write(); !errors.Is(err, ErrProbed) {
			t.Errorf("a qcow2 header on a raw disk: %v", err)
		}
	}
	// What a guest does write there is fine.
	mbr := append(bytes.Repeat([]byte{0xeb}, 510), 0x55, 0xaa)
	if err := errors.Join(d.WriteV([][]byte{mbr}, 0), d.WriteV([][]byte{header}, 512), d.WriteZeroes(0, 1024, true),
		d.Discard(0, 4096), d.WriteV([][]byte{mbr, mbr}, 256), d.Close()); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(disk); err != nil || !bytes.Equal(b[256:1280], append(mbr, mbr...)) {
		t.Errorf("the disk is not as it was written: %v", err)
	}
	// With the format given it is the guest's to write, and stays raw.
	d, err = Open(disk, Options{Format: FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.WriteV([][]byte{header}, 0), d.Close()); err != nil {
		t.Error(err)
	}
	d, err = Open(disk, Options{Format: FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(header))
	if err := errors.Join(d.ReadV([][]byte{got}, 0), d.Close()); err != nil || !bytes.Equal(got, header) {
		t.Errorf("a raw disk with a qcow2 header: %v", err)
	}
	// And who then guesses does not open the host's file.
	if _, err := Open(disk, Options{}); err == nil || !strings.Contains(err.Error(), "guessed") {
		t.Errorf("guessed: %v", err)
	}
}

// TestPassedFiles: a chain is opened by a process that may, and used by one that
// opens nothing.
func TestPassedFiles(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		if k.name != "chain" && k.name != "onqcow2" && k.name != "v3" && k.name != "raw" {
			continue
		}
		model := pattern(1<<20, 5)
		path, format := k.make(t, model)
		files, err := OpenFiles(path, Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		// The names are of no use any more.
		if err := os.RemoveAll(filepath.Dir(path)); err != nil {
			t.Fatal(err)
		}
		d, err := OpenFile(files[0], Options{Format: format, Backing: files[1:], ID: "disk-0"})
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(model))
		if err := errors.Join(d.ReadV([][]byte{got}, 0), d.WriteV([][]byte{got}, 0), d.Close()); err != nil {
			t.Fatal(err)
		}
		sameBytes(t, k.name, got, model)
		if d.ID() != "disk-0" {
			t.Errorf("id %q", d.ID())
		}
	}
	// One file too many is a mistake, and is closed.
	path := writeFile(t, "raw", make([]byte, 512))
	extra, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, Options{Format: FormatRaw, Backing: []*os.File{extra}}); err == nil || !strings.Contains(err.Error(), "1 more backing files") {
		t.Errorf("an extra file: %v", err)
	}
	if err := extra.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("the extra file: %v", err)
	}
	// A descriptor that cannot be written through.
	ro, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(ro, Options{Format: FormatRaw}); err == nil || !strings.Contains(err.Error(), "not open for reading and writing") {
		t.Errorf("a descriptor for reading: %v", err)
	}
}

func TestBackingPath(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ image, name, want string }{
		{"/a/b/top.qcow2", "base.raw", "/a/b/base.raw"},
		{"/a/b/top.qcow2", "../c/base.raw", "/a/c/base.raw"},
		{"/a/b/top.qcow2", "/x/base.raw", "/x/base.raw"},
		{"top.qcow2", "base", "base"},
		{"/a/top", "file:base", "/a/base"},
		{"/a/top", "file:/x/base", "/x/base"},
		{"/a/top", "./with:colon", "/a/with:colon"},
		{"/a/top", "with:colon", ""},
		{"/a/top", "json:{}", ""},
		{"/a/top", "ssh://host/x", ""},
		{"/a/top", "fd:3", ""},
		{"/a/top", "a\x00b", ""},
	} {
		got, err := backingPath(c.image, c.name)
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%q in %q: %q, %v; want %q", c.name, c.image, got, err, c.want)
		}
	}
}
