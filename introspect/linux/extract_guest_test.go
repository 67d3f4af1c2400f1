package linux

import (
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// buildCoreProc compiles testdata/coreproc.c for guests.
func buildCoreProc(t testing.TB) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "coreproc")
	text, err := exec.CommandContext(t.Context(), "gcc", "-static", "-no-pie", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread",
		"-fno-omit-frame-pointer", "-o", out, "testdata/coreproc.c").CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		labtest.Missing(t, "no gcc here")
	}
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return out
}

// startCoreProc runs the program in the guest, its own file removed, and
// returns it.
func startCoreProc(t *testing.T, g *lab.Guest, guest *Guest, args string) Process {
	t.Helper()
	out, err := g.Run(t.Context(), `cp /bin/coreproc /tmp/prog && : > /tmp/core.out
/tmp/prog /srv/deep/dir/numbers `+args+` > /tmp/core.out 2>&1 &
until grep -q CORE-PID /tmp/core.out; do sleep 0.1; done; rm /tmp/prog; cat /tmp/core.out`)
	if err != nil {
		t.Fatal(err)
	}
	_, word, _ := strings.Cut(out, "CORE-PID ")
	pid, err := strconv.Atoi(strings.TrimSpace(word))
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	t.Cleanup(func() {
		if _, err := g.Run(t.Context(), fmt.Sprintf("kill -9 %d; sleep 0.2", pid)); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
	})
	l, err := guest.Processes(t.Context(), ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Processes {
		if p.PID == pid {
			return p
		}
	}
	t.Fatalf("process %d is not there", pid)
	return Process{}
}

// contentSum writes c into a hash, or into the file at path too.
func contentSum(t *testing.T, c *Content, path string) (string, *ContentCoverage) {
	t.Helper()
	h := sha256.New()
	var cov *ContentCoverage
	var err error
	if path == "" {
		cov, err = c.WriteTo(t.Context(), h, nil)
	} else {
		f, ferr := os.Create(path)
		if ferr != nil {
			t.Fatal(ferr)
		}
		defer f.Close()
		done := uint64(0)
		cov, err = c.WriteTo(t.Context(), f, func(n uint64) { done = n })
		if done != c.Size {
			t.Errorf("%s: %d bytes, %d told", c.Path, c.Size, done)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range cov.Problems.Problems() {
		t.Errorf("%s: %v", c.Path, p)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), cov
}

func testExtract(t *testing.T, g *lab.Guest, guest *Guest) {
	p := startCoreProc(t, g, guest, "")
	exe, err := guest.Exe(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "program")
	if _, cov := contentSum(t, exe, program); !cov.Complete() || exe.Path != "/tmp/prog (deleted)" {
		t.Errorf("%s: %+v", exe.Path, cov)
	}
	sum := func(c *Content, what string) {
		t.Helper()
		want := pagesSum(t, g, fmt.Sprintf("/proc/%d/%s", p.PID, what))
		if got, cov := contentSum(t, c, ""); got != want || !cov.Complete() {
			t.Errorf("%s: %s, want %s; %+v", what, got, want, cov)
		}
	}
	sum(exe, "exe")
	for fd, path := range map[int]string{50: "/memfd:known memfd (deleted)", 51: "/tmp/gone (deleted)"} {
		c, err := guest.OpenFile(t.Context(), p, fd)
		if err != nil {
			t.Error(err)
			continue
		}
		if c.Path != path {
			t.Errorf("file %d is %q, want %q", fd, c.Path, path)
		}
		sum(c, fmt.Sprintf("fd/%d", fd))
	}
	if _, err := guest.OpenFile(t.Context(), p, 49); !errors.Is(err, ErrNoFile) {
		t.Errorf("file 49: %v", err)
	}
	testOverlay(t, g, guest)
	testAreas(t, g, guest, p)
	testCore(t, guest, p, program)
}

// testAreas compares memory areas with what the process's own /proc/PID/mem says.
func testAreas(t *testing.T, g *lab.Guest, guest *Guest, p Process) {
	for _, a := range []struct{ start, at, pages uint64 }{
		{0x1000_0000_0000, 0x1000_0000_5000, 64}, // anonymous, from a page in it
		{0x1300_0000_0000, 0x1300_0000_0000, 128},
		{0x1400_0000_0000, 0x1400_0000_0000, 16},
	} {
		c, v, err := guest.Area(t.Context(), p, hypervisor.VirtAddr(a.at))
		if err != nil {
			t.Error(err)
			continue
		}
		if uint64(v.Start) != a.start || c.Size != a.pages*4096 {
			t.Errorf("area at %v has %d bytes", v.Start, c.Size)
		}
		// What is compared is as it is before the guest reads, which touches pages.
		got, cov := contentSum(t, c, "")
		out, err := g.Run(t.Context(), fmt.Sprintf("dd if=/proc/%d/mem bs=4096 skip=%d count=%d 2>/dev/null | sha256sum", p.PID, a.start>>12, a.pages))
		if err != nil {
			t.Fatal(err)
		}
		if want, _, _ := strings.Cut(out, " "); got != want || !cov.Complete() || cov.PagesTotal != a.pages {
			t.Errorf("area at %v: %s, want %s; %+v", v.Start, got, want, cov)
		}
	}
	c, _, err := guest.Area(t.Context(), p, 0x1100_0000_0000)
	if err != nil {
		t.Fatal(err)
	}
	var want []byte // PROT_NONE: no one in the guest can read it
	for i := range 4 * 4096 {
		want = append(want, byte(2+i*31+(i>>12)*7))
	}
	if got, cov := contentSum(t, c, ""); got != fmt.Sprintf("%x", sha256.Sum256(want)) || !cov.Complete() {
		t.Errorf("PROT_NONE: %s, %+v", got, cov)
	}
	if _, _, err := guest.Area(t.Context(), p, 0x1000); !errors.Is(err, ErrNoFile) {
		t.Errorf("no area: %v", err)
	}
}

// testCore opens a core in gdb and in debug/elf.
func testCore(t *testing.T, guest *Guest, p Process, program string) {
	c, err := guest.Core(t.Context(), p, CoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "core")
	_, cov := contentSum(t, c, file)
	if c.Size > 16<<20 || cov.PagesRead < 32 {
		t.Errorf("a core of %d bytes, %+v", c.Size, cov)
	}
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Type != elf.ET_CORE || f.Machine != elf.EM_X86_64 || f.Progs[0].Type != elf.PT_NOTE {
		t.Errorf("%+v", f.FileHeader)
	}
	end := uint64(0)
	found := map[uint64]bool{}
	for _, s := range f.Progs[1:] {
		if s.Type != elf.PT_LOAD || s.Vaddr < end || s.Filesz > s.Memsz {
			t.Errorf("segment %+v", s.ProgHeader)
		}
		end = s.Vaddr + s.Memsz
		found[s.Vaddr] = true
	}
	for _, at := range []uint64{0x1000_0000_0000, 0x1100_0000_0000, 0x1200_0000_0000, 0x1200_0000_0000 + 500<<20, 0x1300_0000_0000} {
		if !found[at] {
			t.Errorf("no segment begins at %#x", at)
		}
	}
	gdb, err := exec.LookPath("gdb")
	if err != nil {
		labtest.Missing(t, "gdb: %v", err)
	}
	cmd := exec.CommandContext(t.Context(), gdb, "-nx", "-batch", "-ex", "set print thread-events off", "-ex", "info threads",
		"-ex", "thread apply all info registers rip r12 r13 orig_rax", "-ex", "thread apply all p $pc == (long)&main_waits || $pc == (long)&other_waits", "-ex", "bt", "-ex", "p/x known", "-ex", "x/1xb 0x100000001003",
		"-ex", "x/1xb 0x110000000005", "-ex", "info auxv", "-ex", "info proc mappings", "-ex", "p $fs_base != 0", program, file)
	cmd.Env = append(os.Environ(), "DEBUGINFOD_URLS=", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("gdb: %v\n%s", err, out)
	}
	byteAt := func(seed, i int) string { return fmt.Sprintf("0x%02x", byte(seed+i*31+(i>>12)*7)) }
	for _, want := range []string{
		"0x11110000", "0x11112222", "0x22220000", "0x22221111", "= 0x123456789abcdef",
		"0x100000001003:\t" + byteAt(1, 0x1003), "0x110000000005:\t" + byteAt(2, 5), "third", "second", "first", "main (argc=",
		"AT_ENTRY", "/srv/deep/dir/numbers", "0x130000000000", "0x22 ", fmt.Sprintf("LWP %d", p.PID),
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("gdb does not say %q", want)
		}
	}
	if n := strings.Count(string(out), " = 1\n"); n != 3 {
		t.Errorf("gdb says yes %d times, want 3: the instructions of both threads, and fs_base", n)
	}
	if strings.Contains(string(out), "corrupt") {
		t.Error("gdb says that something is corrupt")
	}
	if t.Failed() {
		t.Logf("gdb:\n%s", out)
	}
}

// testOverlay takes out a program that lies on an overlay, as a container's does.
func testOverlay(t *testing.T, g *lab.Guest, guest *Guest) {
	out, err := g.Run(t.Context(), `mkdir -p /tmp/o/l /tmp/o/u /tmp/o/w /tmp/o/m && cp /bin/busybox /tmp/o/l/sleep &&
mount -t overlay -o lowerdir=/tmp/o/l,upperdir=/tmp/o/u,workdir=/tmp/o/w overlay /tmp/o/m || exit 1
/tmp/o/m/sleep 1000 & echo OVERLAY-PID $!; sleep 0.3`)
	if err != nil {
		t.Fatal(err)
	}
	_, word, _ := strings.Cut(out, "OVERLAY-PID ")
	pid, err := strconv.Atoi(strings.TrimSpace(word))
	if err != nil {
		t.Fatal(err)
	}
	l, err := guest.Processes(t.Context(), ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Processes {
		if p.PID != pid {
			continue
		}
		c, err := guest.Exe(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if got, cov := contentSum(t, c, ""); got != pagesSum(t, g, "/bin/busybox") || !cov.Complete() || c.Path != "/tmp/o/m/sleep" {
			t.Errorf("program on an overlay: %s, %s, %+v", c.Path, got, cov)
		}
	}
	if _, err := guest.CachedFile(t.Context(), "/tmp/o/m/sleep"); !errors.Is(err, errOverlay) {
		t.Errorf("a file of an overlay: %v", err)
	}
	if _, err := g.Run(t.Context(), fmt.Sprintf("kill -9 %d; sleep 0.2; umount /tmp/o/m", pid)); err != nil {
		t.Error(err)
	}
}
