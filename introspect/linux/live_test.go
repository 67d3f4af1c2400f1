package linux

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// Programs of containers lie on overlayfs, whose files stand for others.
func TestOverlay(t *testing.T) {
	for _, suite := range []lab.Suite{lab.Trixie, lab.Sid} {
		t.Run(string(suite), func(t *testing.T) {
			g := labtest.Boot(t, lab.Config{
				Name: "overlay-" + string(suite), Kernel: labtest.Kernel(t, suite), Memory: 384 * lab.MiB,
				Shared: true, KASLR: true, Modules: []string{"overlay"},
			})
			out, err := g.Run(t.Context(), `
				mkdir -p /tmp/lower/bin /tmp/upper /tmp/work /tmp/merged
				cp /bin/busybox /tmp/lower/bin/sleep
				mount -t overlay overlay -o lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work /tmp/merged
				/tmp/merged/bin/sleep 100000 >/dev/null 2>&1 &
				# It has set up its memory when it sleeps.
				until grep -q nanosleep /proc/$!/wchan; do usleep 10000; done
				echo $!
				readlink /proc/$!/exe
				cat /proc/$!/maps`)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(strings.ReplaceAll(out, "\r", "")), "\n")
			if len(lines) < 5 {
				t.Fatalf("the guest said %q", out)
			}
			guest := openLive(t, g)
			l, err := guest.Processes(t.Context(), ProcessOptions{})
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(l.Processes, func(p Process) bool { return fmt.Sprint(p.PID) == lines[0] })
			if i < 0 {
				t.Fatalf("no process %s", lines[0])
			}
			if got := l.Processes[i].Exe; got != lines[1] || got != "/tmp/merged/bin/sleep" {
				t.Errorf("exe %q, want %q", got, lines[1])
			}
			vmas, cov, err := guest.VMAs(t.Context(), l.Processes[i])
			if err != nil || !cov.Complete() {
				t.Fatal(err, cov.Problems())
			}
			var got, want []string
			for _, v := range vmas {
				got = append(got, fmt.Sprintf("%08x-%08x %s %08x %s", uint64(v.Start), uint64(v.End), v.Perms, v.Offset, v.Path))
			}
			for _, line := range lines[2:] {
				if f := append(strings.Fields(line), ""); len(f) > 5 && f[5] != "[vsyscall]" {
					want = append(want, fmt.Sprintf("%s %s %s %s", f[0], f[1], f[2], f[5]))
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("mappings\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			overlayFiles(t, guest, l.Processes[i], lines[2:])
		})
	}
}

// overlayFiles compares devices and inodes of files on overlayfs with the lines of
// /proc/PID/maps, and the program that runs from there.
func overlayFiles(t *testing.T, guest *Guest, p Process, maps []string) {
	t.Helper()
	areas, err := guest.Maps(t.Context(), p, MapOptions{})
	if err != nil || !areas.Coverage.Complete() {
		t.Fatal(err, areas.Coverage.Problems())
	}
	var exe string
	for i := range areas.Areas {
		a := &areas.Areas[i]
		words := append(strings.Fields(maps[i]), "")
		if got, want := seenHeader(a), strings.Join(words[:6], " "); got != want {
			t.Errorf("area\n%s, want\n%s", got, want)
		}
		if a.Path == p.Exe {
			exe = fmt.Sprint(a.Path, " ", a.Dev, " ", a.Inode)
		}
	}
	files, err := guest.Files(t.Context(), FileOptions{PID: p.PID})
	if err != nil || !files.Coverage.Complete() {
		t.Fatal(err, files.Coverage.Problems())
	}
	f := files.Files[0]
	if got := fmt.Sprint(f.Path, " ", f.Dev, " ", f.Inode); f.Role != RoleProgram || got != exe || exe == "" {
		t.Errorf("%s %s, want %s", f.Role, got, exe)
	}
}

// A guest that forks and ends processes without a pause: whoever lives through
// it is listed in each look, and nobody is called hidden.
func TestLiveChurn(t *testing.T) {
	g := bootTruth(t, lab.Bookworm)
	guest := openLive(t, g)
	before, err := guest.Processes(t.Context(), ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.Command(t.Context(), "churn on"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := g.Command(t.Context(), "churn off"); err != nil {
			t.Error(err)
		}
	}()
	churned, problems, lost := 0, 0, 0
	for range 50 {
		l, err := guest.Processes(t.Context(), ProcessOptions{Threads: true})
		if err != nil {
			t.Fatal(err)
		}
		there := map[int]bool{}
		for _, p := range l.Processes {
			there[p.PID] = true
			if p.Hidden {
				t.Errorf("process %d (%q, %v) is called hidden: seen in %v", p.PID, p.Comm, p.StartTime, p.SeenIn)
			}
			if p.Comm == "churned" {
				churned++
			}
		}
		problems += l.Coverage.Total()
		files, err := guest.Files(t.Context(), FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		lost += files.Coverage.Total()
		open := map[int]bool{}
		for _, f := range files.Files {
			open[f.PID] = true
		}
		for _, p := range before.Processes {
			if p.HasMemory() && !open[p.PID] {
				t.Errorf("process %d (%q) has no files", p.PID, p.Comm)
			}
		}
		for _, p := range before.Processes {
			if !p.Kernel && !there[p.PID] {
				t.Errorf("process %d (%q) is missing", p.PID, p.Comm)
			}
		}
	}
	if churned == 0 {
		t.Error("no process of the churner was ever seen")
	}
	t.Logf("%d processes of the churner were listed, %d problems told in 50 listings, and %d of files", churned, problems, lost)
}
