package linux

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// buildOpenFiles compiles testdata/openfiles.c for guests.
func buildOpenFiles(t testing.TB) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		labtest.Missing(t, "no gcc here")
	}
	out := filepath.Join(t.TempDir(), "openfiles")
	text, err := exec.CommandContext(t.Context(), gcc, "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", out, "testdata/openfiles.c").CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, text)
	}
	return out
}

// runOpenFiles boots a guest and runs the program in it.
func runOpenFiles(t *testing.T, kind guestKind) (*lab.Guest, []string) {
	t.Helper()
	g := labtest.Boot(t, lab.Config{
		Name: "files-" + kind.String(), Kernel: kind.kernel(t), LA57: kind.la57, Shared: true, KASLR: true,
		Files:   []lab.File{{Path: "bin/openfiles", Mode: 0o755, Host: buildOpenFiles(t)}},
		Modules: []string{"loop"},
	})
	out, err := g.Run(t.Context(), `mkdir -p /dev/pts && mount -t devpts devpts /dev/pts
		echo madvise >/sys/kernel/mm/transparent_hugepage/enabled
		openfiles; true`)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		lines = append(lines, strings.TrimSpace(s.Text()))
	}
	if !slices.Contains(lines, "END") {
		t.Fatalf("the program did not come to its end: %s", out)
	}
	return g, lines
}

// fileTruth is a File as the program printed it, by its words.
func fileTruth(t *testing.T, words []string) map[string]string {
	t.Helper()
	if len(words) != 18 {
		t.Fatalf("%d words: %q", len(words), words)
	}
	path, err := hex.DecodeString(words[4])
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{"path": string(path)}
	for i, k := range []string{"flags", "pos", "inode", "dev", "rdev", "links", "uid", "gid", "mode", "size", "mtime", "ctime", "atime"} {
		m[k] = words[5+i]
	}
	return m
}

func seenFile(f *File) map[string]string {
	at := func(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
	return map[string]string{
		"path": f.Path, "flags": strconv.FormatUint(uint64(f.Flags), 8), "pos": fmt.Sprint(f.Pos), "inode": fmt.Sprint(f.Inode),
		"dev": f.Dev.String(), "rdev": f.RDev.String(), "links": fmt.Sprint(f.Links), "uid": fmt.Sprint(f.UID), "gid": fmt.Sprint(f.GID),
		"mode": strconv.FormatUint(uint64(f.Mode), 8), "size": fmt.Sprint(f.Size),
		"mtime": at(f.ModTime), "ctime": at(f.ChangeTime), "atime": at(f.AccessTime),
	}
}

// What processes have open is what readlink, stat and fdinfo say of it in the
// guest, field by field.
func TestFiles(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g, lines := runOpenFiles(t, kind)
			guest := openLive(t, g)
			t.Run("files", func(t *testing.T) { compareFiles(t, guest, lines) })
			t.Run("maps", func(t *testing.T) { compareMaps(t, guest, lines) })
		})
	}
}

func compareFiles(t *testing.T, guest *Guest, lines []string) {
	l, err := guest.Files(t.Context(), FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Coverage.Problems() {
		t.Errorf("not covered: %v", p)
	}
	got := map[string]*File{}
	for i := range l.Files {
		f := &l.Files[i]
		got[fmt.Sprintf("%d %s %d", f.PID, f.Role, f.FD)] = f
	}
	types := map[FileType]int{}
	var ns uint32
	compared := 0
	for _, line := range lines {
		words := strings.Fields(line)
		switch {
		case len(words) == 3 && words[0] == "PROC":
			n, _ := strconv.ParseUint(strings.Trim(words[2], "mnt:[]"), 10, 32)
			ns = uint32(n)
			continue
		case len(words) < 4 || words[0] != "FILE":
			continue
		}
		key := strings.Join(words[1:4], " ")
		want := fileTruth(t, words)
		f := got[key]
		if f == nil {
			t.Errorf("file %s (%q) is missing", key, want["path"])
			continue
		}
		delete(got, key)
		seen := seenFile(f)
		if f.Role == RoleProgram { // no fdinfo tells
			seen["flags"], seen["pos"] = "0", "0"
		}
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if seen[k] != want[k] {
				t.Errorf("file %s (%q): %s %q, want %q", key, want["path"], k, seen[k], want[k])
			}
		}
		checkFileType(t, f, ns)
		types[f.Type]++
		compared++
	}
	for key, f := range got {
		for _, line := range lines {
			if strings.HasPrefix(line, fmt.Sprintf("PROC %d ", f.PID)) {
				t.Errorf("file %s (%q) is not one that the guest has", key, f.Path)
			}
		}
	}
	for _, typ := range []FileType{
		TypeRegular, TypeDirectory, TypeCharDev, TypeFIFO, TypeSocket, TypeLink, TypeBlockDev,
		"eventfd", "eventpoll", "inotify", "signalfd", "timerfd", "pidfd", "bpf-map",
	} {
		if types[typ] == 0 {
			t.Errorf("no file of type %s was compared", typ)
		}
	}
	t.Logf("%d files: %v", compared, types)
}

// checkFileType checks what the guest does not say by itself.
func checkFileType(t *testing.T, f *File, ns uint32) {
	t.Helper()
	deleted := strings.HasSuffix(f.Path, deletedMark) && !strings.HasSuffix(f.Path, "/named (deleted)")
	if f.Deleted != deleted {
		t.Errorf("file %q: deleted %v", f.Path, f.Deleted)
	}
	if typ, _, ok := strings.Cut(f.Path, ":["); ok && !strings.HasPrefix(f.Path, "/") {
		want := map[string]FileType{"pipe": TypeFIFO, "socket": TypeSocket, "anon_inode": f.Type}[typ]
		if want == "" {
			want = TypeRegular // a namespace
		}
		if f.Type != want || f.MountNamespace != 0 && typ != "mnt" && typ != "net" && typ != "pid_for_children" {
			t.Errorf("file %q: type %q, mount namespace %d", f.Path, f.Type, f.MountNamespace)
		}
	}
	if strings.HasPrefix(f.Path, "/mnt/files/") && !strings.Contains(f.Path, "left") && f.MountNamespace != ns {
		t.Errorf("file %q: mount namespace %d, want %d", f.Path, f.MountNamespace, ns)
	}
}
