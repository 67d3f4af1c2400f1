package linux

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
)

func testCachedList(t *testing.T, g *lab.Guest, guest *Guest) {
	p := startCoreProc(t, g, guest, "")
	out, err := g.Run(t.Context(), `sync; echo 100000 > /proc/sys/vm/dirty_writeback_centisecs
dd if=/dev/urandom of=/mnt/disk/dirty bs=4096 count=9 2>/dev/null
stat -c 'STAT %n %i %s' /srv/deep/dir/numbers /tmp/on-tmpfs /tmp/sparse /mnt/disk/big /mnt/disk/dirty /mnt/bind/deep/file /bin/busybox
cat /proc/meminfo`)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A test that ends here must not leave a guest behind that answers nobody.
	defer func() { _ = g.Resume(context.WithoutCancel(t.Context())) }()
	l, err := guest.CachedFiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := guest.CachedFile(t.Context(), "/mnt/disk/half")
	if err != nil {
		t.Fatal(err)
	}
	_, half := contentSum(t, c, "")
	if err := g.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Coverage.Problems() {
		t.Errorf("not covered: %v", p)
	}
	byPath := map[string]CachedFile{}
	total := uint64(0)
	for _, f := range l.Files {
		byPath[f.Path] = f
		total += f.Pages
		if f.Pages == 0 && f.PagesSwapped == 0 || f.Bytes != f.Pages*4096 || f.PagesDirty > f.Pages {
			t.Errorf("%+v", f)
		}
	}
	kernel := uint64(0)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) == 4 && f[0] == "STAT":
			got, ok := byPath[f[1]]
			size, _ := strconv.ParseUint(f[3], 10, 64)
			pages, dirty := (size+4095)/4096, uint64(0)
			switch f[1] {
			case "/tmp/sparse":
				pages = 1
			case "/mnt/disk/dirty":
				dirty = 9
			}
			if !ok || fmt.Sprint(got.Inode) != f[2] || got.Size != size || got.Pages != pages || got.PagesDirty != dirty ||
				got.Type != TypeRegular || !got.Mounted || got.Deleted || got.Links != 1 {
				t.Errorf("%s: %+v", line, got)
			}
		case len(f) == 3 && (f[0] == "Cached:" || f[0] == "Buffers:"):
			n, _ := strconv.ParseUint(f[1], 10, 64)
			kernel += n / 4
		}
	}
	// The kernel's sum is not exact: each CPU keeps a part of it to itself.
	if d := int64(total) - int64(kernel); d < -300 || d > 300 {
		t.Errorf("%d pages, the kernel counts %d", total, kernel)
	}
	for path, pages := range map[string]uint64{"/memfd:known memfd (deleted)": 74, "/tmp/gone (deleted)": 25, "/dev/zero (deleted)": 9} {
		if f := byPath[path]; !f.Deleted || f.Pages != pages {
			t.Errorf("%s: %+v", path, f)
		}
	}
	if f := byPath["/mnt/disk/half"]; f.Pages != half.PagesRead || f.FSType != "ext4" || f.Device != "vda" {
		t.Errorf("%d pages were read of %+v", half.PagesRead, f)
	}
	_ = p
}
