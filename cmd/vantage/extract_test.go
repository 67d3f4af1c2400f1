package main

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestOutFile(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "out")
	var want []byte
	for _, n := range []int{1, 4095, 4096, 4097, 100000} {
		want = append(want, bytes.Repeat([]byte{1}, n)...)
		want = append(want, make([]byte, n)...)
	}
	write := func(force bool, chunk int) error {
		o, err := createOut(name, force)
		if err != nil {
			return err
		}
		for b := want; len(b) > 0; b = b[min(len(b), chunk):] {
			if _, err := o.Write(b[:min(len(b), chunk)]); err != nil {
				return err
			}
		}
		return o.commit()
	}
	for i, chunk := range []int{1000, 4096, 65536, 1 << 20} {
		if err := write(i > 0, chunk); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("by %d: %d bytes, %v, want %d", chunk, len(got), err, len(want))
		}
	}
	if err := write(false, 1<<20); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("a file is replaced: %v", err)
	}
	// One that came there while it was written.
	name = filepath.Join(dir, "late")
	o, err := createOut(name, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.commit(); err == nil {
		t.Error("a file that came later is replaced")
	}
	if o, err = createOut(filepath.Join(dir, "never"), false); err != nil {
		t.Fatal(err)
	}
	if err := o.abandon(); err != nil {
		t.Error(err)
	}
	if es, _ := os.ReadDir(dir); len(es) != 2 {
		t.Errorf("left behind: %v", es)
	}
}

func TestFileNames(t *testing.T) {
	for in, want := range map[string]string{
		"/etc/passwd": "passwd", "/a/b c\x1b[2J": "b_c__2J", "/": "_", "..": "extracted", "/x/.hidden": "hidden", "": "extracted",
		"/" + strings.Repeat("n", 300): strings.Repeat("n", 100), "-rf": "rf",
	} {
		if got := fileName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestExtractFlags(t *testing.T) {
	for _, args := range []string{
		"", "--exe", "--pid 1", "--pid 1 --exe --fd 3", "--map 1", "--pid 1 --core c -o d", "--pid 1 --core=", "--file=",
		"--file /x --output=", "--file /x -o - --pause",
	} {
		if r := vantage(t, append([]string{"extract", "vm"}, strings.Fields(args)...)...); r.status != exitFailed || strings.Contains(r.stderr, "vm\"") {
			t.Errorf("%q: status %d, %s", args, r.status, r.stderr)
		}
	}
}

// What the command takes out of a guest is what the guest has, and a thread that
// runs has the registers of its CPU.
func TestExtract(t *testing.T) {
	g := labtest.Boot(t, lab.Config{
		Name: "extract", Kernel: labtest.Kernel(t, lab.Trixie), Shared: true, KASLR: true, QMP: true,
		Init: "seq 1 5000 > /srv-file\n(while :; do :; done) &\necho $! > /spinner\n",
	})
	t.Chdir(t.TempDir())
	sum := func(path string) string {
		t.Helper()
		out, err := g.Run(t.Context(), "sha256sum "+path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(out)[0]
	}
	pid, err := g.Run(t.Context(), "cat /spinner")
	if err != nil {
		t.Fatal(err)
	}
	pid = strings.TrimSpace(pid)
	for _, c := range []struct{ args, out, path, want string }{
		{"--file /srv-file", "srv-file", "/srv-file", sum("/srv-file")},
		{"--pid " + pid + " --file /srv-file -o named", "named", "/srv-file", sum("/srv-file")},
		{"--pid " + pid + " --exe --pause", "pid-" + pid + ".exe", "/bin/busybox", sum("/bin/busybox")},
	} {
		r := vantage(t, append(append([]string{"extract", g.Name()}, strings.Fields(c.args)...), "--json")...)
		if r.status != exitOK {
			t.Errorf("%s: status %d: %s", c.args, r.status, r.stderr)
			continue
		}
		o := objects(t, r.stdout)[0]
		b, err := os.ReadFile(c.out)
		if err != nil {
			t.Error(err)
		}
		h := sha256.Sum256(b)
		if o["sha256"] != c.want || hex.EncodeToString(h[:]) != c.want || o["path"] != c.path || o["output"] != c.out || o["pages_missing"] != 0.0 {
			t.Errorf("%s: %v, want %s", c.args, o, c.want)
		}
	}
	if r := vantage(t, "extract", g.Name(), "--file", "/srv-file"); r.status != exitFailed || !strings.Contains(r.stderr, "--force") {
		t.Errorf("status %d: %s", r.status, r.stderr)
	}
	var seq strings.Builder
	for i := range 5000 {
		fmt.Fprintln(&seq, i+1)
	}
	if r := vantage(t, "extract", g.Name(), "--file", "/srv-file", "-o", "-"); r.status != exitOK || r.stdout != seq.String() || !strings.Contains(r.stderr, "sha256") {
		t.Errorf("status %d, %d bytes, %s", r.status, len(r.stdout), r.stderr)
	}
	if r := vantage(t, "extract", g.Name(), "--pid", pid, "--core", "core", "--pause", "--json"); r.status != exitOK {
		t.Errorf("core: status %d: %s", r.status, r.stderr)
	} else {
		checkSpinner(t)
	}
	if r := vantage(t, "extract", g.Name(), "--pid", pid, "--core", "core", "--force"); r.status == exitFailed {
		t.Errorf("core: status %d: %s", r.status, r.stderr)
	}
	if es, err := os.ReadDir("."); err != nil || len(es) != 4 {
		t.Errorf("%v, %v", es, err)
	}
}

// checkSpinner looks into the core of a program that ran: it has an instruction
// pointer in its own code.
func checkSpinner(t *testing.T) {
	t.Helper()
	f, err := elf.Open("core")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	notes := make([]byte, 512)
	if _, err := f.Progs[0].ReadAt(notes, 0); err != nil {
		t.Fatal(err)
	}
	const rip = 20 + 112 + 16*8 // behind the note's header, in struct elf_prstatus
	ip := binary.LittleEndian.Uint64(notes[rip:])
	for _, p := range f.Progs[1:] {
		if ip >= p.Vaddr && ip < p.Vaddr+p.Filesz && p.Flags&elf.PF_X != 0 {
			return
		}
	}
	t.Errorf("instruction pointer %#x is in no code", ip)
}
