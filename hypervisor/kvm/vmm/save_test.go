package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/control"
	"github.com/vantage-vmi/vantage/internal/lab"
)

// folder is a control.Folder in a folder of the test's.
type folder string

func (f folder) Create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(string(f), name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}
func (f folder) Open(name string) (*os.File, error) { return os.Open(filepath.Join(string(f), name)) }

// commands is a guest that does what it is told on its serial line, while work
// goes on behind.
const commands = "mount -t tmpfs tmp /tmp; n=0\n" +
	"( while :; do dd if=/dev/urandom of=/tmp/churn bs=64k count=16 2>/dev/null; cat /tmp/churn >/dev/null; done ) &\n" +
	"echo " + ready + "\nwhile read line; do eval \"$line\"; echo \"DONE $((n=n+1))\"; done"

// restored makes a machine of what is saved in folders, the newest first.
func restored(t *testing.T, change func(*Config), folders ...control.Folder) (*Machine, *console) {
	t.Helper()
	cfg, err := SavedConfig(folders[0])
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(cfg)
	}
	c := newConsole()
	res, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(*cfg, res, Options{Console: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the restored guest's console:\n%s", c)
		}
	})
	if err := m.Restore(t.Context(), folders, nil); err != nil {
		t.Fatal(err)
	}
	return m, c
}

// A guest under load is saved whole and then by what has changed; a clone of each
// goes on where it was, with its memory and its disk as they were, told by
// checksums that the guest itself makes.
func testSave(t *testing.T, k *lab.Kernel, cpus int) {
	dir := t.TempDir()
	image := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(image, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	whole, more := folder(filepath.Join(dir, "whole")), folder(filepath.Join(dir, "more"))
	for _, f := range []folder{whole, more} {
		if err := os.Mkdir(string(f), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	m, c := machine(t, Config{
		Memory: 256 << 20, CPUs: cpus, Kernel: k.Image, CommandLine: kernelLine,
		Disks:  []DiskConfig{{Path: image, Format: "raw"}},
		Initrd: initramfs(t, k, commands, "virtio_pci", "virtio_blk"),
	}, Options{})
	c.wait(t, ready, 1, bootTime)
	tell := func(m *Machine, c *console, line string, n int) string {
		t.Helper()
		before := len(c.String())
		m.Type([]byte(line + "\n"))
		c.wait(t, fmt.Sprintf("DONE %d", n), 1, time.Minute)
		return strings.ReplaceAll(c.String()[before:], "\r", "")
	}
	sum := func(s string) string {
		t.Helper()
		for f := range strings.FieldsSeq(s) {
			if len(f) == 64 {
				return f
			}
		}
		t.Fatalf("no checksum in %q", s)
		return ""
	}
	first := sum(tell(m, c, "dd if=/dev/urandom of=/tmp/keep bs=1M count=20 2>/dev/null; sha256sum /tmp/keep", 1))
	tell(m, c, "dd if=/tmp/keep of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null", 2)
	start := time.Now()
	if err := m.Save(t.Context(), whole, nil, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("saved in %v", time.Since(start))
	second := sum(tell(m, c, "dd if=/dev/urandom of=/tmp/keep2 bs=1M count=3 2>/dev/null; sha256sum /tmp/keep2", 3))
	if err := m.Save(t.Context(), more, whole, nil); err != nil {
		t.Fatal(err)
	}
	size := func(f folder) int64 {
		st, err := os.Stat(filepath.Join(string(f), "memory"))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	if w, i := size(whole), size(more); i > w*3/4 || i < 3<<20 {
		t.Errorf("whole it has %d bytes, what has changed %d", w, i)
	}
	if err := m.Close(); err != nil { // the clones want its disk
		t.Fatal(err)
	}

	clone, cc := restored(t, func(c *Config) { c.Name = "clone" }, whole)
	if err := clone.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The shell's own counter goes on: 3 comes next.
	if got := sum(tell(clone, cc, "sha256sum /tmp/keep", 3)); got != first {
		t.Errorf("the clone's file has %s, want %s", got, first)
	}
	if got := sum(tell(clone, cc, "dd if=/dev/vda bs=1M count=4 2>/dev/null | sha256sum; head -c 4194304 /tmp/keep | sha256sum", 4)); !strings.Contains(cc.String()[strings.Index(cc.String(), got)+64:], got) {
		t.Errorf("disk and file differ in the clone:\n%s", cc)
	}
	if err := clone.Close(); err != nil {
		t.Fatal(err)
	}

	again, ac := restored(t, nil, more, whole)
	if err := again.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := sum(tell(again, ac, "sha256sum /tmp/keep2", 4)); got != second {
		t.Errorf("after the second save the file has %s, want %s", got, second)
	}
	if got := sum(tell(again, ac, "sha256sum /tmp/keep", 5)); got != first {
		t.Errorf("what had not changed has %s, want %s", got, first)
	}
	tell(again, ac, "sync", 6)
	// It can be reset, as if it had been booted here.
	if err := again.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	ac.wait(t, ready, 1, bootTime)
}
