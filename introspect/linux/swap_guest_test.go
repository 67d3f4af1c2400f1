package linux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func buildSwapProc(t testing.TB) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "swapproc")
	text, err := exec.CommandContext(t.Context(), "gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", out, "testdata/swapproc.c").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		labtest.Missing(t, "no gcc here")
	}
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return out
}

// swapPage is page i of what the program fills.
func swapPage(i int) []byte {
	const page = 4096
	p := make([]byte, page)
	x := uint32(i)*2654435761 + 12345
	next := func() uint32 {
		x = x*1664525 + 1013904223
		return x
	}
	switch i % 6 {
	case 0:
		for j := range p {
			p[j] = "the quick brown fox "[(i+j+j/97)%20]
		}
	case 1:
		for j := range p {
			p[j] = byte(next() >> 24)
		}
	case 2:
		for j := range p {
			p[j] = byte(0x40 + i%32)
		}
	case 3:
		for j := range page / 2 {
			p[j] = byte(next() >> 24)
		}
	case 5:
		for j := 0; j < page; j += 37 + i {
			var b [4]byte
			binary.LittleEndian.PutUint32(b[:], next())
			copy(p[j:], b[:])
		}
	}
	return p
}

// swapModules are what a guest of suite needs for compressed swap, and the
// algorithms that it then has. Kernels without the types of modules (until 5.10)
// are not read.
func swapModules(suite lab.Suite) (modules, algorithms []string) {
	switch suite {
	case lab.Bullseye:
		return nil, nil
	case lab.Bookworm:
		return []string{"lzo", "lzo-rle", "lz4", "zstd", "zram"}, []string{"lzo", "lzo-rle", "lz4", "zstd"}
	case lab.Trixie:
		return []string{"zram"}, []string{"lz4", "lz4hc", "zstd", "deflate"}
	}
	return []string{"zram"}, []string{"lz4", "zstd"}
}

// Pages that the guest has swapped to compressed memory are read back, with each
// algorithm that its kernel has.
func testZram(t *testing.T, g *lab.Guest, guest *Guest, suite lab.Suite, algorithm string) {
	out, err := g.Run(t.Context(), fmt.Sprintf(`swapoff /dev/zram0 2>/dev/null; echo 1 > /sys/block/zram0/reset
echo %s > /sys/block/zram0/comp_algorithm && echo 32M > /sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0 || exit 1
: > /tmp/out; swapproc > /tmp/out & until grep -q SWAP-PID /tmp/out; do sleep 0.1; done; cat /tmp/out; cat /proc/swaps`, algorithm))
	if err != nil {
		t.Fatal(err)
	}
	_, word, _ := strings.Cut(out, "SWAP-PID ")
	pid, err := strconv.Atoi(strings.Fields(word)[0])
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := g.Run(t.Context(), fmt.Sprintf("kill -9 %d; sleep 0.2; swapoff /dev/zram0", pid)); err != nil {
			t.Error(err)
		}
	}()
	l, err := guest.Processes(t.Context(), ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var p Process
	for _, q := range l.Processes {
		if q.PID == pid {
			p = q
		}
	}
	area, _, err := guest.Area(t.Context(), p, 0x1500_0000_0000)
	if err != nil {
		t.Fatal(err)
	}
	file, err := guest.OpenFile(t.Context(), p, 50)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*Content{area, file} {
		var b bytes.Buffer
		cov, err := c.WriteTo(t.Context(), &b, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range cov.Problems.Problems() {
			t.Error(p)
		}
		if cov.PagesTotal != 300 || cov.PagesFromSwap < 200 || cov.PagesMissing > 50 || suite != lab.Sid && cov.PagesMissing != 0 {
			t.Errorf("%s: %+v", c.Path, cov)
		}
		t.Logf("%s: %d pages from swap, %d missing", c.Path, cov.PagesFromSwap, cov.PagesMissing)
		for i := range 300 {
			if got := b.Bytes()[i*4096 : i*4096+4096]; !bytes.Equal(got, swapPage(i)) {
				t.Errorf("%s: page %d is wrong: %x…", c.Path, i, got[:32])
				break
			}
		}
	}
	swaps, cov, err := guest.Swaps(t.Context())
	if err != nil || !cov.Complete() || len(swaps) != 1 {
		t.Fatal(swaps, err, cov.Problems())
	}
	s := swaps[0]
	if want := fmt.Sprintf("%s partition %d %d", s.Name, s.Size/1024, s.Used/1024); s.Disk != "zram0" || !s.Compressed ||
		!strings.Contains(strings.Join(strings.Fields(out), " "), want) {
		t.Errorf("%+v, want %s", s, out)
	}
}
