package linux

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// pagesInit makes the files that the tests of cached files look for.
const pagesInit = `
mkdir -p /srv/deep/dir /mnt/disk /mnt/bind
seq 1 200000 > /srv/deep/dir/numbers
echo 'PRETTY_NAME="Lab Linux 1"' > /srv/os-release
ln -s ../srv/os-release /etc/os-release
ln -s /srv/deep /etc/long-way-to-a-directory-so-that-the-target-is-not-inline-1234567890
seq 5 90000 > /tmp/on-tmpfs
dd if=/dev/zero of=/tmp/sparse bs=1 count=0 seek=1048576 2>/dev/null
echo middle | dd of=/tmp/sparse bs=1 seek=500000 conv=notrunc 2>/dev/null
: > /tmp/empty
mount -t ext4 /dev/vda /mnt/disk || echo NO DISK
cat /mnt/disk/big > /dev/null
dd if=/mnt/disk/half of=/dev/null bs=4096 count=8 2>/dev/null
mount --bind /srv /mnt/bind
mount -t tmpfs over /mnt/bind/deep
echo over > /mnt/bind/deep/file
`

// pagesDisk makes an ext4 image with the files big and half.
func pagesDisk(t testing.TB) string {
	t.Helper()
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		labtest.Missing(t, "mkfs.ext4 (package e2fsprogs): %v", err)
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"big": 3<<20 + 77, "half": 8 << 20} {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(i>>12) ^ byte(i*7)
		}
		if err := os.WriteFile(filepath.Join(tree, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	img := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(img, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 32<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs, "-q", "-F", "-d", tree, img).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	return img
}

func bootPages(t testing.TB, kind guestKind) *lab.Guest {
	t.Helper()
	disk := pagesDisk(t)
	k := kind.kernel(t)
	zram, _ := swapModules(kind.suite)
	return labtest.Boot(t, lab.Config{
		Name: "pages-" + kind.String(), Kernel: k, LA57: kind.la57, Shared: true, KASLR: true, Init: pagesInit, Memory: 256 * lab.MiB,
		Modules:   kind.modules(t, []string{"virtio_blk", "overlay"}, append(zram, "virtio_pci", "ext4", "crc32c_generic")...),
		Files:     []lab.File{{Path: "bin/coreproc", Mode: 0o755, Host: buildCoreProc(t)}, {Path: "bin/swapproc", Mode: 0o755, Host: buildSwapProc(t)}},
		ExtraArgs: []string{"-drive", "if=none,id=disk,format=raw,snapshot=on,file=" + disk, "-device", "virtio-blk-pci,drive=disk"},
	})
}

// sum returns the guest's own word for the SHA-256 of a file.
func pagesSum(t testing.TB, g *lab.Guest, path string) string {
	t.Helper()
	out, err := g.Run(t.Context(), "sha256sum "+path)
	if err != nil {
		t.Fatal(err)
	}
	sum, _, _ := strings.Cut(out, " ")
	return strings.TrimSpace(sum)
}

func TestCachedFiles(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g := bootPages(t, kind)
			guest := openLive(t, g)
			t.Run("files", func(t *testing.T) { testCachedContents(t, g, guest) })
			t.Run("list", func(t *testing.T) { testCachedList(t, g, guest) })
			t.Run("extract", func(t *testing.T) { testExtract(t, g, guest) })
			_, algorithms := swapModules(kind.suite)
			for _, algorithm := range algorithms {
				t.Run("zram "+algorithm, func(t *testing.T) { testZram(t, g, guest, kind.suite, algorithm) })
			}
		})
	}
}

func testCachedContents(t *testing.T, g *lab.Guest, guest *Guest) {
	for path, want := range map[string]string{
		"/srv/deep/dir/numbers": "", "/tmp/on-tmpfs": "", "/tmp/sparse": "", "/tmp/empty": "", "/bin/busybox": "", "/mnt/disk/big": "",
		"/etc/os-release": "/srv/os-release",
		"/etc/long-way-to-a-directory-so-that-the-target-is-not-inline-1234567890/dir/numbers": "/srv/deep/dir/numbers",
		"/mnt/bind/deep/file": "", "/mnt/bind/deep/../os-release": "/mnt/bind/os-release", "/../srv//./os-release": "/srv/os-release",
	} {
		c, err := guest.CachedFile(t.Context(), path)
		if err != nil {
			t.Error(err)
			continue
		}
		if want == "" {
			want = path
		}
		h := sha256.New()
		cov, err := c.WriteTo(t.Context(), h, nil)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got := fmt.Sprintf("%x", h.Sum(nil)); got != pagesSum(t, g, path) || c.Path != want || !cov.Complete() || cov.PagesTotal != (c.Size+4095)/4096 {
			t.Errorf("%s: %s, %d bytes, %s, %+v, %v", path, c.Path, c.Size, got, cov, cov.Problems.Problems())
		}
	}
	for _, path := range []string{"/srv/none", "/none/none", "/tmp/on-tmpfs2", "/tmp/on-tmpf"} {
		if _, err := guest.CachedFile(t.Context(), path); err == nil || !strings.Contains(err.Error(), ErrNotCached.Error()) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := guest.CachedFile(t.Context(), "/srv/deep"); err == nil {
		t.Error("a directory is taken for a file")
	}
	b, cov, err := guest.ReadCached(t.Context(), "/etc/os-release", 4096)
	if err != nil || !cov.Complete() || string(b) != "PRETTY_NAME=\"Lab Linux 1\"\n" {
		t.Errorf("%q, %v", b, err)
	}
	if b, _, err := guest.ReadCached(t.Context(), "/srv/deep/dir/numbers", 4); err != nil || string(b) != "1\n2\n" {
		t.Errorf("%q, %v", b, err)
	}
	testHalfCached(t, guest)
}

// testHalfCached reads a file of which the guest has read only the beginning.
func testHalfCached(t *testing.T, guest *Guest) {
	c, err := guest.CachedFile(t.Context(), "/mnt/disk/half")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	cov, err := c.WriteTo(t.Context(), &b, nil)
	if err != nil || !cov.Problems.Complete() {
		t.Fatal(err, cov.Problems.Problems())
	}
	if b.Len() != 8<<20 || cov.PagesTotal != 2048 || cov.PagesRead < 8 || cov.PagesMissing < 100 || cov.PagesRead+cov.PagesMissing != 2048 {
		t.Errorf("%d bytes, %+v", b.Len(), cov)
	}
	missing := uint64(0)
	gone := map[uint64]bool{}
	for _, m := range cov.Missing {
		missing += m.Size / 4096
		for at := m.Offset; at < m.Offset+m.Size; at += 4096 {
			gone[at] = true
		}
	}
	if missing != cov.PagesMissing {
		t.Errorf("%d pages are named of %d", missing, cov.PagesMissing)
	}
	for i, c := range b.Bytes() {
		want := byte(i>>12) ^ byte(i*7)
		if gone[uint64(i)&^4095] {
			want = 0
		}
		if c != want {
			t.Fatalf("byte %d is %#x, want %#x", i, c, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.WriteTo(ctx, &b, nil); err == nil {
		t.Error("a context that has ended is not obeyed")
	}
}
