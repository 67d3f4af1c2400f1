package linux

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

const factsOSRelease = `# a comment
NAME="Facts"
PRETTY_NAME="Facts \"GNU\" 12 (\$x)"
VERSION_ID=12.5
`

// factsProgram builds testdata/facts once for all guests.
var factsProgram = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "facts-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "facts")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "./testdata/facts")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, &exec.Error{Name: string(text), Err: err}
	}
	return os.ReadFile(out)
})

// bootFacts returns the guest in which a kernel is asked about itself.
func bootFacts(t testing.TB, kind guestKind) *lab.Guest {
	t.Helper()
	kernel := kind.kernel(t)
	program, err := factsProgram()
	if err != nil {
		t.Fatal(err)
	}
	modules := []string{"dummy", "overlay", "zram"}
	if kind.suite == lab.Bullseye || kind.suite == lab.Bookworm {
		modules = kind.modules(t, modules, "lzo-rle") // what zram compresses with; later ones have it built in
	}
	return labtest.Shared(t, lab.Config{
		Name: "facts-" + kind.String(), Kernel: kernel, LA57: kind.la57, Memory: 256 * lab.MiB, Shared: true, KASLR: true,
		Append: "printk.devkmsg=on", Modules: modules,
		Files: []lab.File{{Path: "lab/facts", Mode: 0o755, Data: program}, {Path: "usr/lib/os-release", Data: []byte(factsOSRelease)}, {Path: "etc/os-release", Link: "../usr/lib/os-release"}},
	})
}

// factsSays runs a script in the guest and returns what it prints, all its bytes.
func factsSays(t testing.TB, g *lab.Guest, script string) []byte {
	t.Helper()
	out, err := g.Run(t.Context(), "( "+script+"\n) | gzip -c | base64")
	if err != nil {
		t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(out), ""))
	if err != nil {
		t.Fatalf("%v: %q", err, out)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return b
}

// factsLook calls look with the guest stopped.
func factsLook(t testing.TB, g *lab.Guest, look func(*Guest)) {
	t.Helper()
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer resume(t, g)
	guest, err := Open(t.Context(), openRAM(t, g), Options{})
	if err != nil {
		t.Fatal(err)
	}
	look(guest)
}
