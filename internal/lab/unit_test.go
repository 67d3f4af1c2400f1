package lab

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestDebianSource(t *testing.T) {
	const deb822 = `# a comment
Types: deb
# where this came from
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
`
	const oneLine = `
# deb http://old.example/debian bookworm main
deb http://security.debian.org/debian-security bookworm-security main
deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian/ bookworm main contrib # ours
`
	for name, c := range map[string]struct {
		file, text string
		uri, sig   string
	}{
		"deb822":   {"sources.list.d/debian.sources", deb822, "http://mirror.example/debian", "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"},
		"one line": {"sources.list", oneLine, "https://mirror.example/debian/", "Signed-By: /k.gpg\n"},
		"disabled": {"sources.list.d/x.sources", "Enabled: no\n" + deb822[len("# a comment\n"):], "", ""},
		"other":    {"sources.list.d/x.list", "deb https://deb.nodesource.com/node_20.x nodistro main\n", "", ""},
	} {
		root := t.TempDir()
		path := filepath.Join(root, "etc/apt", c.file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := debianSource(root)
		if c.uri == "" {
			if !errors.Is(err, ErrMissing) {
				t.Errorf("%s: %+v, %v", name, s, err)
			}
			continue
		}
		if err != nil || s.uri != c.uri {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		list := s.sourcesList(Trixie)
		if !strings.Contains(list, "Suites: trixie\n") || !strings.Contains(list, c.sig) {
			t.Errorf("%s: list\n%s", name, list)
		}
	}
}

func TestFindKernel(t *testing.T) {
	root := t.TempDir()
	for _, f := range []string{
		"boot/vmlinuz-6.1.0-9-cloud-amd64", "lib/modules/6.1.0-9-cloud-amd64/x",
		"boot/vmlinuz-6.1.0-50-cloud-amd64", "lib/modules/6.1.0-50-cloud-amd64/x",
		"boot/vmlinuz-6.12.1+deb13-amd64", "usr/lib/modules/6.12.1+deb13-amd64/x",
		"boot/vmlinuz-6.99.0-rt-amd64", "usr/lib/modules/6.99.0-rt-amd64/x",
		"usr/lib/modules/7.2.13+deb14-cloud-amd64/vmlinuz",
		"boot/vmlinuz-9.0.0-1-cloud-amd64", // its modules are gone
	} {
		p := filepath.Join(root, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for flavour, want := range map[Flavour]string{Cloud: "7.2.13+deb14-cloud-amd64", Generic: "6.12.1+deb13-amd64"} {
		k, err := InstalledKernel(root, flavour)
		if err != nil || k.Release != want {
			t.Errorf("%s: %+v, %v", flavour, k, err)
		}
	}
	if _, err := InstalledKernel(root, "cloud-arm64"); !errors.Is(err, ErrMissing) {
		t.Errorf("no kernel: %v", err)
	}
}

func TestVersionLess(t *testing.T) {
	order := []string{"5.10.0-32", "6.1.0-9", "6.1.0-50", "6.12.1", "6.12.107", "7.0"}
	for i := range order {
		for j := range order {
			if versionLess(order[i], order[j]) != (i < j) {
				t.Errorf("%s < %s", order[i], order[j])
			}
		}
	}
}

// A suite that does not exist names itself in the error.
func TestFetchKernelUnreachable(t *testing.T) {
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get") // and so no kernel either
	}
	t.Setenv("VANTAGE_CACHE", t.TempDir())
	_, err := FetchKernel(t.Context(), "no-such-suite", Cloud)
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no-such-suite") {
		t.Errorf("error %v", err)
	}
}

func TestInitramfsIsDeterministic(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("no cpio to compare with")
	}
	make1 := func(names ...string) []byte {
		var i Initramfs
		for _, n := range names {
			i.File(n, 0o640, []byte("content of "+n))
		}
		i.Symlink("bin/sh", "busybox")
		i.Device("dev/console", 5, 1)
		var b bytes.Buffer
		if n, err := i.WriteTo(&b); err != nil || n != int64(b.Len()) {
			t.Fatalf("%d of %d bytes: %v", n, b.Len(), err)
		}
		return b.Bytes()
	}
	a, b := make1("etc/a", "etc/deep/b"), make1("etc/deep/b", "etc/a")
	if !bytes.Equal(a, b) {
		t.Error("the order of adding changes the archive")
	}
	cmd := exec.Command("cpio", "-tv", "--quiet")
	cmd.Stdin = bytes.NewReader(a)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		names = append(names, f[0]+" "+strings.Join(f[8:], " "))
	}
	want := []string{"drwxr-xr-x bin", "lrwxrwxrwx bin/sh -> busybox", "drwxr-xr-x dev", "crw------- dev/console",
		"drwxr-xr-x etc", "-rw-r----- etc/a", "drwxr-xr-x etc/deep", "-rw-r----- etc/deep/b"}
	for i, w := range want { // a device's line has another number of fields
		if i >= len(names) || !strings.HasPrefix(names[i], w[:10]) || !strings.HasSuffix(names[i], w[strings.LastIndexByte(w, ' '):]) {
			t.Fatalf("cpio lists\n%s\nwant %q", out, want)
		}
	}
}

func TestModuleOrder(t *testing.T) {
	if testing.Short() {
		t.Skip("fetches a kernel: not with -short")
	}
	for _, s := range []Suite{Bookworm, Trixie} { // plain and compressed
		k, err := FetchKernel(t.Context(), s, Cloud)
		if errors.Is(err, ErrUnreachable) && os.Getenv("CI") == "" {
			t.Skip(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		mods, err := k.Modules(t.Context(), "kvm-amd")
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, m := range mods {
			names = append(names, m.Name)
		}
		i, j := slices.Index(names, "irqbypass"), slices.Index(names, "kvm")
		if i < 0 || j < i || names[len(names)-1] != "kvm_amd" {
			t.Errorf("%s: %v", s, names)
		}
		if _, err := k.Modules(t.Context(), "no-such-module"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: no such module: %v", s, err)
		}
	}
}

func TestLockFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.lock")
	release, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := lockFile(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("held lock: %v", err)
	}
	release()
	release, err = lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	release()
}

func TestTail(t *testing.T) {
	in := "one\ntwo \x1b[31m\"é\"\n" + strings.Repeat("x", 300) + "\n"
	if got, want := tail(in, 2), "two \\x1b[31m\"é\"\n"+strings.Repeat("x", maxTailLine)+"…"; got != want {
		t.Errorf("tail: %q, want %q", got, want)
	}
}

func TestParseMtree(t *testing.T) {
	const text = `FlatView #0
 AS "I/O", root: io
 Root memory region: io
  0000000000000000-000000000000ffff (prio 0, ram): not this

FlatView #1
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): ram KVM
  00000000000a0000-00000000000bffff (prio 1, i/o): vga
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  0000000000100000-00000000bfffffff (prio 0, ram): ram @0000000000100000 KVM
  0000000100000000-000000013fffffff (prio 0, ram): ram @00000000c0000000 KVM

FlatView #2
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): twice
`
	want := []PhysRange{
		{0, 0xa0000, 0, "ram"},
		{0x100000, 0xbff00000, 0x100000, "ram"},
		{0x100000000, 0x40000000, 0xc0000000, "ram"},
	}
	if got := parseMtree(text); !slices.Equal(got, want) {
		t.Errorf("got %+v", got)
	}
}

func TestParseTestOutput(t *testing.T) {
	const text = `=== RUN   TestA
    a_test.go:1: hello
=== RUN   TestA/sub
=== RUN   TestSkipped
    a_test.go:2: why
--- SKIP: TestSkipped (0.00s)
=== NAME  TestA/sub
    a_test.go:3: broken
--- FAIL: TestA (1.20s)
    --- FAIL: TestA/sub (0.10s)
=== RUN   TestDies
panic: oh
`
	want := []NestedTest{
		{"TestSkipped", OutcomeSkip, "    a_test.go:2: why\n"},
		{"TestA", OutcomeFail, "    a_test.go:1: hello\n"},
		{"TestA/sub", OutcomeFail, "    a_test.go:3: broken\n"},
		{"TestDies", OutcomeNone, "panic: oh\n"},
	}
	if got := parseTestOutput(text); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestTruthBytes(t *testing.T) {
	tr, err := ParseTruth(`{"kind":"process","pid":7,"comm":"\u00c3\u00a9\u001b\u00ff","cmdline":"a\u0000\u0000b\u0000","start_ticks":150}` + "\nnoise\n")
	if err != nil {
		t.Fatal(err)
	}
	p, ok := tr.Process(7)
	if !ok || p.Comm != "\xc3\xa9\x1b\xff" || !slices.Equal(p.Args(), []string{"a", "", "b"}) {
		t.Errorf("%+v", p)
	}
	s := System{ClkTck: 100, Realtime: 1_000_000_000_000_000_000, Boottime: 10_000_000_000}
	if got, want := s.Start(p), time.Unix(999999991, 500_000_000).UTC(); !got.Equal(want) {
		t.Errorf("start %v, want %v", got, want)
	}
	if _, err := ParseTruth("{\"kind\":\"surprise\"}\n"); err == nil {
		t.Error("unknown kind: no error")
	}
}

func TestBuildPackages(t *testing.T) {
	const record = "Depends: linux-headers-6.1.0-50-common (= 6.1.176-1), linux-kbuild-6.1 (>= 6.1), linux-compiler-gcc-12-x86, libc6, zlib1g (>= 1)\n"
	if got := depends(record, buildPackage); !slices.Equal(got, []string{"linux-headers-6.1.0-50-common", "linux-kbuild-6.1"}) {
		t.Errorf("%q", got)
	}
	if got := depends(record, buildLibrary); !slices.Equal(got, []string{"libc6", "zlib1g"}) {
		t.Errorf("%q", got)
	}
}

// The compiler's script drops what the compiler does not know, and only that.
func TestCompilerScript(t *testing.T) {
	if _, err := exec.LookPath("gcc"); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	cc := filepath.Join(dir, "cc")
	if err := os.WriteFile(cc, compilerScript, 0o755); err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(dir, "a.c")
	if err := os.WriteFile(src, []byte("int a = WORD;\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), cc, "-fno-such-thing", "-DWORD='a b'", "-E", "-Wno-such-error", src).Output()
	if err != nil || !strings.Contains(string(out), "int a = 'a b';") {
		t.Errorf("%q, %v", out, err)
	}
	if err := exec.CommandContext(t.Context(), cc, "-c", "-fno-such-thing", filepath.Join(dir, "no.c")).Run(); err == nil {
		t.Error("a failure of the compiler is lost")
	}
}
