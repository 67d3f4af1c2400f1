// Package linuxtest compares what introspect/linux says of a guest with what the
// guest's truth program (internal/lab) says of itself, field by field.
//
// It is for tests only, and must not be imported by anything else.
package linuxtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/introspect/linux"
)

// Compare compares everything that guest says with the truth of g, which runs the
// truth program. levels is how many levels of page tables it has.
func Compare(t *testing.T, guest *linux.Guest, g *lab.Guest, levels int) {
	t.Helper()
	truth, err := g.Truth()
	if err != nil {
		t.Fatal(err)
	}
	l, err := guest.Processes(t.Context(), linux.ProcessOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range l.Coverage.Problems() {
		t.Errorf("not covered: %v", p)
	}
	t.Run("info", func(t *testing.T) { compareInfo(t, guest, truth, levels) })
	t.Run("processes", func(t *testing.T) { compareProcesses(t, l, truth) })
	t.Run("threads", func(t *testing.T) { compareThreads(t, guest, truth) })
	t.Run("modules", func(t *testing.T) { compareModules(t, guest, truth) })
	t.Run("mappings", func(t *testing.T) { compareMappings(t, guest, l, truth) })
	t.Run("pages", func(t *testing.T) { comparePages(t, guest, l, truth) })
}

func compareInfo(t *testing.T, g *linux.Guest, truth *lab.Truth, levels int) {
	i, err := g.Info(t.Context())
	if err != nil || !i.Coverage.Complete() {
		t.Fatal(err, i.Coverage.Problems())
	}
	s := truth.System
	for _, c := range []struct{ what, got, want string }{
		{"release", i.Release, string(s.Release)},
		{"banner", i.Banner, string(s.Version)},
		{"host name", i.Hostname, string(s.Hostname)},
		{"command line", i.CommandLine, string(s.Cmdline)},
		{"architecture", i.Arch, "x86_64"},
		{"CPUs", fmt.Sprint(i.CPUs), fmt.Sprint(s.CPUs)},
		{"levels", fmt.Sprint(i.PageTableLevels), fmt.Sprint(levels)},
	} {
		if c.got != c.want {
			t.Errorf("%s %q, want %q", c.what, c.got, c.want)
		}
	}
	if !strings.Contains(i.Banner, i.Version) {
		t.Errorf("version %q is not in the banner", i.Version)
	}
	// The guest's own two clocks are read one after the other.
	if d := i.BootTime.Sub(time.Unix(0, s.Realtime-s.Boottime)); d.Abs() > 20*time.Millisecond {
		t.Errorf("boot time %v is off by %v", i.BootTime, d)
	}
	if d := i.BootTime.Unix() - s.BTime; d < -1 || d > 1 {
		t.Errorf("boot time %v, btime %v", i.BootTime, s.BTime)
	}
}

func compareProcesses(t *testing.T, l linux.ProcessList, truth *lab.Truth) {
	byPID := map[int]linux.Process{}
	for _, p := range l.Processes {
		byPID[p.PID] = p
		want := []linux.View{linux.ViewTasks, linux.ViewPIDIndex}
		if p.State != "Z" { // of zombies kernels differ
			want = append(want, linux.ViewCgroup)
		}
		seen := slices.DeleteFunc(slices.Clone(p.SeenIn), func(v linux.View) bool {
			return v == linux.ViewRunQueue || v == linux.ViewCgroup && p.State == "Z"
		})
		if p.Hidden || !slices.Equal(seen, want) {
			t.Errorf("process %d (%q): hidden %v, seen in %v", p.PID, p.Comm, p.Hidden, p.SeenIn)
		}
		if _, ok := truth.Process(p.PID); !ok && !p.Kernel {
			t.Errorf("process %d (%q) is not one that the guest has", p.PID, p.Comm)
		}
	}
	kernel := 0
	for _, want := range truth.Processes {
		got, ok := byPID[want.PID]
		if want.KThread {
			// Workers come and go, and their names in /proc tell what
			// they last worked on.
			if ok && got.Kernel && strings.HasPrefix(string(want.Comm), got.Comm) && got.Exe == "" && len(got.Args) == 0 && got.PPID == want.PPID {
				kernel++
			}
			continue
		}
		if !ok {
			t.Errorf("process %d (%s) is missing", want.PID, want.Comm)
			continue
		}
		compareProcess(t, got, want, truth)
	}
	if kernel < 30 {
		t.Errorf("only %d kernel threads are as the guest says", kernel)
	}
}

func compareProcess(t *testing.T, got linux.Process, want lab.Process, truth *lab.Truth) {
	exe, args := string(want.Exe), want.Args()
	if want.Label == "deadleader" {
		// /proc has nothing to say of a process whose first thread ended;
		// the others have the memory still.
		exe, args = "/usr/bin/deadleader", []string{"deadleader"}
	}
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"ppid", got.PPID, want.PPID},
		{"tgid", got.TGID, want.TGID},
		{"uid", got.UID, int(want.UIDs[0])},
		{"euid", got.EUID, int(want.UIDs[1])},
		{"gid", got.GID, int(want.GIDs[0])},
		{"egid", got.EGID, int(want.GIDs[1])},
		{"comm", got.Comm, string(want.Comm)},
		{"exe", got.Exe, exe},
		{"args", fmt.Sprintf("%q", got.Args), fmt.Sprintf("%q", args)},
		{"cgroup", got.Cgroup, want.CgroupPath()},
		{"kernel", got.Kernel, false},
	} {
		if c.got != c.want {
			t.Errorf("process %d (%s): %s %v, want %v", want.PID, want.Label, c.what, c.got, c.want)
		}
	}
	if want.Label != "" && got.State != want.State {
		t.Errorf("process %d (%s): state %s, want %s", want.PID, want.Label, got.State, want.State)
	}
	if d := got.StartTime.Sub(truth.System.Start(want)); d < -20*time.Millisecond || d > 40*time.Millisecond {
		t.Errorf("process %d (%s): started %v, want %v", want.PID, want.Label, got.StartTime, truth.System.Start(want))
	}
	ns := got.Namespaces
	for name, inum := range map[string]uint32{
		"mnt": ns.Mnt, "pid": ns.PID, "net": ns.Net, "uts": ns.UTS, "ipc": ns.IPC, "user": ns.User, "cgroup": ns.Cgroup, "time": ns.Time,
	} {
		if uint64(inum) != want.Namespaces[name] {
			t.Errorf("process %d (%s): namespace %s %d, want %d", want.PID, want.Label, name, inum, want.Namespaces[name])
		}
	}
	if want, ok := containers[want.Label]; got.Container != want || ok != (got.Container != "") {
		t.Errorf("process %d: container %q, want %q", got.PID, got.Container, want)
	}
}

// containers are the ids of the processes that the truth program puts into the
// control groups of container runtimes, by label.
var containers = map[string]string{
	"docker":          "4f1d0c7ae2b89356714fd0c2a9e85b3360718fa4d25ce9b7013486fa9dc2e57b",
	"docker-cgroupfs": "a07c5e1949d2f86b30e1c7a45b92d8f6134e0a7cbd5829f3610e47a8c5b29d30",
	"kubepods":        "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
	"cri-containerd":  "f9e8d7c6b5a4938271605f4e3d2c1b0af9e8d7c6b5a4938271605f4e3d2c1b0a",
	"cri-o":           "a07c5e1949d2f86b30e1c7a45b92d8f6134e0a7cbd5829f3610e47a8c5b29d30",
	"podman":          "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff",
	"containerd":      "redis-server",
	"lxc":             "web01",
}

func compareThreads(t *testing.T, g *linux.Guest, truth *lab.Truth) {
	l, err := g.Processes(t.Context(), linux.ProcessOptions{Threads: true})
	if err != nil {
		t.Fatal(err)
	}
	got := map[int][]string{}
	for _, p := range l.Processes {
		if p.Hidden {
			t.Errorf("thread %d of %d is hidden", p.PID, p.TGID)
		}
		if p.PID != p.TGID {
			got[p.TGID] = append(got[p.TGID], fmt.Sprintf("%d %q", p.PID, p.Comm))
		}
	}
	threads := 0
	for _, p := range truth.Processes {
		var want []string
		for _, th := range p.Threads {
			want = append(want, fmt.Sprintf("%d %q", th.TID, string(th.Comm)))
			threads++
		}
		slices.Sort(want)
		slices.Sort(got[p.PID])
		if !slices.Equal(got[p.PID], want) {
			t.Errorf("threads of %d (%s): %v, want %v", p.PID, p.Label, got[p.PID], want)
		}
	}
	if threads < 6 {
		t.Errorf("the guest has only %d threads", threads)
	}
}

func compareModules(t *testing.T, g *linux.Guest, truth *lab.Truth) {
	l, err := g.Modules(t.Context())
	if err != nil || !l.Coverage.Complete() {
		t.Fatal(err, l.Coverage.Problems())
	}
	var got, want []string
	for _, m := range l.Modules {
		got = append(got, fmt.Sprintf("%s %d %v %s", m.Name, m.Size, m.Base, m.State))
		if m.Hidden || len(m.SeenIn) != 3 {
			t.Errorf("module %s: hidden %v, seen in %v", m.Name, m.Hidden, m.SeenIn)
		}
	}
	for _, m := range truth.Modules {
		want = append(want, fmt.Sprintf("%s %d %v %s", m.Name, m.Size, hypervisor.VirtAddr(m.Base), m.State))
	}
	slices.Sort(want)
	if !slices.Equal(got, want) || len(want) < 2 {
		t.Errorf("modules\n%q, want\n%q", got, want)
	}
}

func compareMappings(t *testing.T, g *linux.Guest, l linux.ProcessList, truth *lab.Truth) {
	want := map[int][]string{}
	for _, m := range truth.Mappings {
		if m.Start>>63 == 0 { // [vsyscall] is no mapping of the process
			want[m.PID] = append(want[m.PID], fmt.Sprintf("%x-%x %s %x %q file=%v", m.Start, m.End, m.Perms, m.Offset, unescapeMaps(string(m.Path)), m.Inode != 0))
		}
	}
	compared := 0
	for _, p := range l.Processes {
		if len(want[p.PID]) == 0 {
			continue
		}
		vmas, cov, err := g.VMAs(t.Context(), p)
		if err != nil || !cov.Complete() {
			t.Errorf("mappings of %d: %v %v", p.PID, err, cov.Problems())
			continue
		}
		var got []string
		for _, v := range vmas {
			got = append(got, fmt.Sprintf("%x-%x %s %x %q file=%v", uint64(v.Start), uint64(v.End), v.Perms, v.Offset, v.Path, !v.Anon))
		}
		if !slices.Equal(got, want[p.PID]) {
			t.Errorf("mappings of %d:\n%s\nwant\n%s", p.PID, strings.Join(got, "\n"), strings.Join(want[p.PID], "\n"))
		}
		compared++
	}
	if compared < 30 {
		t.Errorf("mappings of only %d processes", compared)
	}
}

// unescapeMaps undoes what /proc/PID/maps does to a newline, the only byte
// that it escapes.
func unescapeMaps(s string) string { return strings.ReplaceAll(s, `\012`, "\n") }

// comparePages reads the secrets of processes through their address spaces.
func comparePages(t *testing.T, g *linux.Guest, l linux.ProcessList, truth *lab.Truth) {
	byPID := map[int]linux.Process{}
	for _, p := range l.Processes {
		byPID[p.PID] = p
	}
	pages := 0
	for _, page := range truth.Pages {
		p, ok := byPID[page.PID]
		if !ok {
			continue
		}
		as, err := g.ProcessSpace(p)
		if err != nil {
			t.Errorf("space of %d: %v", p.PID, err)
			continue
		}
		m, err := as.Translate(hypervisor.VirtAddr(page.Virt))
		if err != nil {
			t.Errorf("page %#x of %d: %v", page.Virt, p.PID, err)
			continue
		}
		if got := m.At(hypervisor.VirtAddr(page.Virt)); got != hypervisor.PhysAddr(page.Phys) {
			t.Errorf("page %#x of %d lies at %v, want %#x", page.Virt, p.PID, got, page.Phys)
		}
		pages++
	}
	if pages < 200 {
		t.Errorf("only %d pages compared", pages)
	}
	compareUserSpaces(t, g, l)
	secrets := 0
	for _, made := range truth.Made {
		for _, s := range made.Secrets() {
			as, err := g.ProcessSpace(byPID[made.PID])
			if err != nil {
				t.Errorf("space of %s: %v", made.Label, err)
				continue
			}
			b := make([]byte, len(s.Text))
			if n, err := as.ReadVirt(b, hypervisor.VirtAddr(s.Addr)); string(b[:n]) != s.Text {
				t.Errorf("secret %s of %s: %q, %v", s.Name, made.Label, b[:n], err)
			}
			secrets++
		}
	}
	if secrets < 8 {
		t.Errorf("only %d secrets read", secrets)
	}
}

// compareUserSpaces holds the tables that are used in user mode to what /proc
// says of mappings: code may run only where it is to. The kernel's tables of a
// kernel that isolates the two say that none may.
func compareUserSpaces(t *testing.T, g *linux.Guest, l linux.ProcessList) {
	isolated := hasWord(t, g, "pti=on")
	code, other, kernel := 0, 0, 0
	for _, p := range l.Processes {
		if !p.HasMemory() {
			continue
		}
		as, err := g.UserSpace(p)
		if err != nil {
			t.Errorf("user space of %d: %v", p.PID, err)
			continue
		}
		vmas, _, err := g.VMAs(t.Context(), p)
		if err != nil {
			t.Errorf("mappings of %d: %v", p.PID, err)
			continue
		}
		for _, v := range vmas {
			for m, err := range as.Mappings(t.Context(), v.Start, v.End) {
				if err != nil {
					continue
				}
				if may := v.Perms[2] == 'x'; may != m.Flags.Executable() {
					t.Errorf("page %v of %d in %s: executable %v", m.Virt, p.PID, v.Perms, !may)
				} else if may {
					code++
				} else {
					other++
				}
			}
		}
		if _, err := as.Translate(g.Kernel().PageOffset + hypervisor.VirtAddr(g.Kernel().PhysBase)); err == nil {
			kernel++
		}
	}
	if code < 10 || other < 10 {
		t.Errorf("only %d pages of code and %d others compared", code, other)
	}
	if isolated != (kernel == 0) {
		t.Errorf("isolation %v, but user mode reaches the direct map in %d processes", isolated, kernel)
	}
}

// hasWord reports whether the guest's kernel was told word.
func hasWord(t *testing.T, g *linux.Guest, word string) bool {
	i, err := g.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Contains(strings.Fields(i.CommandLine), word)
}
