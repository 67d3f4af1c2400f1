package disk

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// TestFullFilesystem: a write that the host has no room for fails, the image
// stays sound, and goes on when there is room again.
func TestFullFilesystem(t *testing.T) {
	labtest.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cluster := range []string{"64k", "512"} {
		path := filepath.Join(dir, "image"+cluster)
		qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size="+cluster, path, "64M")
		d, err := Open(path, Options{Format: FormatQcow2})
		if err != nil {
			t.Fatal(err)
		}
		b := bytes.Repeat([]byte{0x5a}, 64<<10)
		written := uint64(0)
		for ; written < 64<<20; written += uint64(len(b)) {
			if err = d.WriteV([][]byte{b}, written); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("cluster %s: after %d bytes: %v", cluster, written, err)
		}
		flushErr := d.Flush()
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(); err != nil {
			t.Errorf("cluster %s: flush with room again (it was %v): %v", cluster, flushErr, err)
		}
		if err := d.WriteV([][]byte{b}, written); err != nil {
			t.Errorf("cluster %s: write with room again: %v", cluster, err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		check(t, path)
		got := content(t, path)[:written+uint64(len(b))]
		sameBytes(t, "cluster "+cluster, got, bytes.Repeat([]byte{0x5a}, len(got)))
		if err := errors.Join(os.Remove(path), os.WriteFile(ballast, make([]byte, 2<<20), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBlockDevice: raw and qcow2 disks on a block device of the host.
func TestBlockDevice(t *testing.T) {
	labtest.NeedRoot(t)
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		labtest.Missing(t, "no loop devices here: %v", err)
	}
	file := writeFile(t, "device", make([]byte, 4<<20))
	out, err := exec.CommandContext(t.Context(), "losetup", "--show", "-f", file).CombinedOutput()
	if err != nil {
		labtest.Missing(t, "losetup: %v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
			t.Errorf("losetup -d: %v: %s", err, out)
		}
	})
	d, err := Open(device, Options{Format: FormatRaw})
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != 4<<20 {
		t.Errorf("size %d", d.Size())
	}
	model := pattern(4<<20, 8)
	err = errors.Join(d.WriteV([][]byte{model}, 0), d.WriteZeroes(8192, 12288, true), d.WriteZeroes(1<<20+512, 512, false),
		d.Discard(2<<20, 65536), d.Flush())
	if err != nil {
		t.Fatal(err)
	}
	clear(model[8192 : 8192+12288])
	clear(model[1<<20+512 : 1<<20+1024])
	got := make([]byte, len(model))
	if err := errors.Join(d.ReadV([][]byte{got}, 0), d.Close()); err != nil {
		t.Fatal(err)
	}
	copy(model[2<<20:2<<20+65536], got[2<<20:])
	sameBytes(t, "raw", got, model)

	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", device, "64M")
	d, err = Open(device, Options{Format: FormatQcow2})
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{0xc3}, 5<<10) // two clusters, the second in part
	n := uint64(0)
	for ; ; n++ {
		if err = d.WriteV([][]byte{b}, n*16384); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.ENOSPC) || n < 400 {
		t.Errorf("after %d writes: %v", n, err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, device)
	got = make([]byte, n*16384)
	want := make([]byte, n*16384)
	for i := range n {
		copy(want[i*16384:], b)
	}
	d, err = Open(device, Options{Format: FormatQcow2})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.ReadV([][]byte{got}, 0), d.Close()); err != nil {
		t.Fatal(err)
	}
	sameBytes(t, "qcow2", got, want)
}

// TestSnapshotsStay: what internal snapshots hold is not changed by writes.
func TestSnapshotsStay(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		if k.name != "snapshots" {
			continue
		}
		path, format := k.make(t, pattern(1<<20, 2))
		snapshot := func(name string) []byte {
			out := filepath.Join(t.TempDir(), "out")
			qemuImg(t, "convert", "-l", name, "-f", "qcow2", "-O", "raw", path, out)
			b, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		one, two := snapshot("one"), snapshot("two")
		d, err := Open(path, Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.WriteV([][]byte{make([]byte, 300<<10)}, 512), d.Discard(400<<10, 100<<10),
			d.WriteZeroes(600<<10, 90<<10, true), d.Close()); err != nil {
			t.Fatal(err)
		}
		check(t, path)
		sameBytes(t, "the first snapshot", snapshot("one"), one)
		sameBytes(t, "the second snapshot", snapshot("two"), two)
		// Going back, and away with them, works on what we have left.
		qemuImg(t, "snapshot", "-a", "one", path)
		qemuImg(t, "snapshot", "-d", "two", path)
		check(t, path)
		sameBytes(t, "gone back to", content(t, path), one)
	}
}

// TestBitmapsAreTakenBack: QEMU's dirty bitmaps are not kept up, so the image
// does not claim that they are.
func TestBitmapsAreTakenBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "image")
	qemuImg(t, "create", "-q", "-f", "qcow2", path, "1M")
	qemuImg(t, "bitmap", "--add", path, "b0")
	for i, want := range []bool{false, true} {
		d, err := Open(path, Options{Format: FormatQcow2})
		if err != nil {
			t.Fatal(err)
		}
		if want {
			err = d.WriteV([][]byte{make([]byte, 512)}, 0)
		}
		if err := errors.Join(err, d.Close()); err != nil {
			t.Fatal(err)
		}
		out := qemuImg(t, "info", path)
		if gone := !bytes.Contains(out, []byte("b0")) || bytes.Contains(out, []byte("inconsistent")); gone != want {
			t.Errorf("opening %d: bitmaps gone: %v\n%s", i, gone, out)
		}
	}
	check(t, path)
}

// TestSparse: what a guest gives back goes back to the host.
func TestSparse(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		if k.name != "raw" && k.name != "v3" && k.name != "v2" {
			continue
		}
		path, format := k.make(t, pattern(4<<20, 6))
		d, err := Open(path, Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		blocks := func() int64 {
			var st unix.Stat_t
			if err := errors.Join(d.Flush(), unix.Stat(path, &st)); err != nil {
				t.Fatal(err)
			}
			return st.Blocks * 512
		}
		full := blocks()
		if err := d.Discard(1<<20, 1<<20); err != nil {
			t.Fatal(err)
		}
		discarded := blocks()
		if err := d.WriteZeroes(2<<20, 1<<20, true); err != nil {
			t.Fatal(err)
		}
		zeroed := blocks()
		if full < 4<<20 || discarded > full-1<<20 || zeroed > full-2<<20 {
			t.Errorf("%s: %d bytes on the host, %d after Discard of 1 MiB, %d after WriteZeroes of another", k.name, full, discarded, zeroed)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
