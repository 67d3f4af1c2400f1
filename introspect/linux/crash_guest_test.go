package linux

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	driver "github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// What the crash utility says of a guest, from the same core and with the kernel's
// debug package, which we do not need: it shares no code with us and nothing of
// where we look. It and the package are optional, on CI too.

// crashInit gives the guest something to say: a mount, an address, sockets,
// and a process that is always on the CPU, with files open.
const crashInit = `
ip link set lo up
ip addr add 192.0.2.7/24 dev dummy0 && ip link set dummy0 up
mkdir -p "/tmp/a mount" && mount -t tmpfs -o ro,nosuid named "/tmp/a mount"
nc -l -p 4242 >/dev/null &
echo words > /tmp/words
echo 'a line of the guest' > /dev/kmsg
sh -c 'exec 7</tmp/words 8>>/tmp/kept; while :; do :; done' &
usleep 500000
`

// crashCore is a core of a guest, the kernel to read it with, and a folder.
type crashCore struct{ dir, core, vmlinux string }

// bootForCrash returns the core of one guest, or skips the test when crash is
// not here.
func bootForCrash(t *testing.T) crashCore {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest: not with -short")
	}
	// Not labtest.Missing: on CI too these may be missing.
	if _, err := exec.LookPath("crash"); err != nil {
		t.Skipf("optional: %v", err)
	}
	kernel := labtest.Kernel(t, lab.Bookworm)
	vmlinux, err := lab.FetchDebugKernel(t.Context(), lab.Bookworm, kernel.Release)
	if err != nil {
		if t.Context().Err() != nil {
			t.Fatal(err)
		}
		t.Skipf("optional: %v", err)
	}
	g := labtest.Shared(t, lab.Config{
		Name: "crash", Kernel: kernel, Memory: 256 * lab.MiB, Shared: true, KASLR: true,
		Modules: lab.TruthModules(), Init: crashInit,
	})
	c := crashCore{dir: t.TempDir(), vmlinux: vmlinux}
	c.core = filepath.Join(c.dir, "core")
	if err := g.DumpELF(t.Context(), c.core); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c crashCore) open(t *testing.T) *Guest {
	t.Helper()
	vm, err := driver.New(driver.Options{}).Open(t.Context(), c.core)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	g, err := Open(t.Context(), vm, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// crashBusy is the one that crashInit leaves on the CPU.
func crashBusy(t *testing.T, g *Guest) Process {
	t.Helper()
	for _, p := range crashProcesses(t, g) {
		if len(p.Args) == 3 && strings.Contains(p.Args[2], "/tmp/words") {
			return p
		}
	}
	t.Fatal("the busy process is not listed")
	return Process{}
}

func crashProcesses(t *testing.T, g *Guest) []Process {
	t.Helper()
	l, err := g.Processes(t.Context(), ProcessOptions{Threads: true})
	if err != nil || !l.Coverage.Complete() {
		t.Fatal(err, l.Coverage.Problems())
	}
	return l.Processes
}

// crashAgrees compares what is said of the same things, in any order.
func crashAgrees(t *testing.T, ours, theirs []string) {
	t.Helper()
	if len(theirs) == 0 {
		t.Error("they say nothing")
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	for _, l := range theirs {
		if _, ok := slices.BinarySearch(ours, l); !ok {
			t.Errorf("only they: %q", l)
		}
	}
	for _, l := range ours {
		if _, ok := slices.BinarySearch(theirs, l); !ok {
			t.Errorf("only we:   %q", l)
		}
	}
	if len(ours) != len(theirs) {
		t.Errorf("we say %d, they %d", len(ours), len(theirs))
	}
}

// crashSays runs commands of the crash utility in one session and returns what
// each printed, and what crash said at its start.
func crashSays(t *testing.T, c crashCore, commands []string) (start string, said map[string]string) {
	t.Helper()
	var script strings.Builder
	out := func(i int) string { return filepath.Join(c.dir, fmt.Sprint("out", i)) }
	for i, cmd := range commands {
		fmt.Fprintf(&script, "%s > %s\n", cmd, out(i))
	}
	script.WriteString("quit\n")
	file := filepath.Join(c.dir, "script")
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "crash", "-s", c.vmlinux, c.core, "-i", file)
	cmd.Env = append(os.Environ(), "TZ=UTC", "LC_ALL=C", "TERM=dumb")
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Logf("crash: %v", err)
	}
	said = map[string]string{}
	for i, c := range commands {
		b, err := os.ReadFile(out(i))
		if err != nil {
			t.Fatalf("crash said nothing of %s: %v\n%s", c, err, text)
		}
		said[c] = string(b)
	}
	return string(text), said
}

// crashFails skips the test with crash's own words when its command failed.
func crashFails(t *testing.T, command, said string) {
	t.Helper()
	word, _, _ := strings.Cut(command, " ")
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, word+": ") {
			t.Skipf("crash says: %s", strings.TrimSpace(line))
		}
	}
}

// crashTasks lists the tasks. crash is slow to show members that are no numbers:
// the names are asked for one by one (crashName), which is quicker than its -s.
const crashTasks = "list task_struct.tasks -S task_struct.pid,tgid,real_parent -h init_task"

func crashName(p Process) string {
	return fmt.Sprintf("p ((struct task_struct *)%#x)->comm", uint64(p.KernelAddress))
}

func TestAgainstCrash(t *testing.T) {
	c := bootForCrash(t)
	g := c.open(t)
	busy := crashBusy(t, g)
	files, vm := fmt.Sprint("files ", busy.PID), fmt.Sprint("vm ", busy.PID)
	commands := []string{"sys", crashTasks, "ps", "mod", "mount", "net", "log", files, vm}
	processes := crashProcesses(t, g)
	for _, p := range processes {
		commands = append(commands, crashName(p))
	}
	start, said := crashSays(t, c, commands)
	for _, tt := range []struct {
		name, command string
		compare       func(t *testing.T, g *Guest, said string)
	}{
		{"Info", "sys", compareCrashSys},
		{"tasks", crashTasks, compareCrashTasks},
		{"names", "p", func(t *testing.T, _ *Guest, _ string) {
			for _, p := range processes {
				theirs := said[crashName(p)]
				_, name, _ := strings.Cut(theirs, `"`)
				if name = strings.TrimRight(strings.TrimSpace(name), `"`); strings.ReplaceAll(name, `\000`, "") != p.Comm {
					t.Errorf("%d: %q, crash %q", p.PID, p.Comm, theirs)
				}
			}
		}},
		{"ps", "ps", func(t *testing.T, g *Guest, said string) {
			// It finds tasks by their PID, and does not with a struct pid whose
			// numbers[] is a flexible array (crash 8.0.2).
			if _, words, ok := strings.Cut(start, "WARNING: "); ok && strings.Contains(words, "not found in PID hash") {
				line, _, _ := strings.Cut(words, "\n")
				t.Skipf("crash says: %s", line)
			}
			compareCrashPS(t, g, said)
		}},
		{"modules", "mod", compareCrashMod},
		{"mounts", "mount", compareCrashMount},
		{"interfaces", "net", compareCrashNet},
		{"log", "log", compareCrashLog},
		{"files", files, func(t *testing.T, g *Guest, said string) { compareCrashFiles(t, g, busy, said) }},
		{"maps", vm, func(t *testing.T, g *Guest, said string) { compareCrashVM(t, g, busy, said) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			crashFails(t, tt.command, said[tt.command])
			tt.compare(t, g, said[tt.command])
			if t.Failed() {
				t.Logf("crash's %s:\n%.2000s", tt.command, said[tt.command])
			}
		})
	}
}

func compareCrashSys(t *testing.T, g *Guest, said string) {
	i, err := g.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	theirs := map[string]string{}
	for line := range strings.Lines(said) {
		k, v, _ := strings.Cut(line, ": ")
		theirs[strings.TrimSpace(k)] = strings.TrimSpace(v)
	}
	arch, _, _ := strings.Cut(theirs["MACHINE"], " ")
	for _, f := range []struct{ name, ours, theirs string }{
		{"release", i.Release, theirs["RELEASE"]},
		{"version", i.Version, theirs["VERSION"]},
		{"hostname", i.Hostname, theirs["NODENAME"]},
		{"machine", i.Arch, arch},
		{"CPUs", fmt.Sprint(i.CPUs), theirs["CPUS"]},
		{"clock", i.Clock.Truncate(time.Second).Format(time.UnixDate), theirs["DATE"]},
		{"load", fmt.Sprintf("%.2f, %.2f, %.2f", i.LoadAverages[0], i.LoadAverages[1], i.LoadAverages[2]), theirs["LOAD AVERAGE"]},
	} {
		if f.ours != f.theirs {
			t.Errorf("%s: %q, crash %q", f.name, f.ours, f.theirs)
		}
	}
	// crash counts ticks, the timekeeper a clock: they may differ at the start.
	var h, m, s int
	if _, err := fmt.Sscanf(theirs["UPTIME"], "%d:%d:%d", &h, &m, &s); err != nil {
		t.Fatalf("uptime %q: %v", theirs["UPTIME"], err)
	}
	if d := i.Uptime - time.Duration(h*3600+m*60+s)*time.Second; d.Abs() > 3*time.Second {
		t.Errorf("uptime %v, crash %q", i.Uptime, theirs["UPTIME"])
	}
}

// crashTaskLine is a task as crashTasks shows it.
var crashTaskLine = regexp.MustCompile(`(?m)^([0-9a-f]{16})\n +pid = (\d+),?\n +tgid = (\d+),?\n +real_parent = (?:0x)?([0-9a-f]+)`)

func compareCrashTasks(t *testing.T, g *Guest, said string) {
	var ours, theirs []string
	tgid := map[string]string{} // by the address of the task
	tasks := crashTaskLine.FindAllStringSubmatch(said, -1)
	for _, m := range tasks {
		tgid[m[1]] = m[3]
	}
	for _, m := range tasks {
		if m[2] != "0" { // the idle task is no process
			theirs = append(theirs, strings.Join([]string{m[1], m[2], m[3], tgid[m[4]]}, " "))
		}
	}
	for _, p := range crashProcesses(t, g) {
		if p.PID == p.TGID {
			ours = append(ours, fmt.Sprintf("%x %d %d %d", uint64(p.KernelAddress), p.PID, p.TGID, p.PPID))
		}
	}
	crashAgrees(t, ours, theirs)
}

// compareCrashPS compares PID, PPID, task and name; columns as in
//
//	>  713      -1   0  ffff8bc4a5b44180  RU   0.0     2260       52  cat
func compareCrashPS(t *testing.T, g *Guest, said string) {
	var ours, theirs []string
	for line := range strings.Lines(said) {
		f := strings.Fields(strings.TrimPrefix(line, ">"))
		if len(f) >= 9 && f[0] != "0" && f[0] != "PID" {
			theirs = append(theirs, strings.Join([]string{f[0], f[1], f[3], strings.Trim(strings.Join(f[8:], " "), "[]")}, " "))
		}
	}
	for _, p := range crashProcesses(t, g) {
		ours = append(ours, fmt.Sprintf("%d %d %x %s", p.PID, p.PPID, uint64(p.KernelAddress), p.Comm))
	}
	crashAgrees(t, ours, theirs)
}

func compareCrashMod(t *testing.T, g *Guest, said string) {
	l, err := g.Modules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs []string
	for line := range strings.Lines(said) {
		if f := strings.Fields(line); len(f) >= 4 && f[0] != "MODULE" {
			theirs = append(theirs, strings.Join(f[:4], " "))
		}
	}
	for _, m := range l.Modules {
		ours = append(ours, fmt.Sprintf("%x %s %x %d", uint64(m.KernelAddress), m.Name, uint64(m.Base), m.Size))
	}
	crashAgrees(t, ours, theirs)
}

func compareCrashMount(t *testing.T, g *Guest, said string) {
	l, err := g.Mounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs []string
	for line := range strings.Lines(said) {
		if f := strings.Fields(line); len(f) >= 5 && f[0] != "MOUNT" {
			theirs = append(theirs, strings.Join([]string{f[0], f[2], f[3], strings.Join(f[4:], " ")}, " "))
		}
	}
	for _, m := range l.Mounts {
		if m.Namespace == l.Mounts[0].Namespace {
			ours = append(ours, fmt.Sprintf("%x %s %s %s", uint64(m.KernelAddress), m.FSType, m.Source, m.Target))
		}
	}
	crashAgrees(t, ours, theirs)
}

func compareCrashNet(t *testing.T, g *Guest, said string) {
	l, err := g.Interfaces(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs []string
	for line := range strings.Lines(said) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] != "NET_DEVICE" {
			theirs = append(theirs, strings.Join(f, " "))
		}
	}
	for _, i := range l.Interfaces {
		line := fmt.Sprintf("%x %s", uint64(i.KernelAddress), i.Name)
		for n, a := range i.Addresses {
			if a.Addr().Is4() {
				line += map[bool]string{true: " ", false: ", "}[n == 0] + a.Addr().String()
			}
		}
		ours = append(ours, line)
	}
	crashAgrees(t, ours, theirs)
}

func compareCrashLog(t *testing.T, g *Guest, said string) {
	l, err := g.KernelLog(t.Context())
	if err != nil || !l.Coverage.Complete() {
		t.Fatal(err, l.Coverage.Problems())
	}
	var ours strings.Builder
	for _, r := range l.Records {
		stamp := fmt.Sprintf("[%5d.%06d] ", r.SinceBoot/time.Second, r.SinceBoot%time.Second/time.Microsecond)
		fmt.Fprintf(&ours, "%s%s\n", stamp, strings.ReplaceAll(r.Text, "\n", "\n"+strings.Repeat(" ", len(stamp))))
	}
	theirs := strings.Split(strings.TrimSpace(said), "\n")
	for i, line := range strings.Split(strings.TrimSpace(ours.String()), "\n") {
		if i >= len(theirs) || strings.TrimRight(line, " ") != strings.TrimRight(theirs[i], " ") {
			t.Fatalf("line %d: %q, crash %q", i, line, theirs[min(i, len(theirs)-1)])
		}
	}
}

// crashTypes are crash's names of the types of files.
var crashTypes = map[FileType]string{TypeRegular: "REG", "dir": "DIR", "chr": "CHR", "blk": "BLK", "fifo": "FIFO", "sock": "SOCK"}

func compareCrashFiles(t *testing.T, g *Guest, p Process, said string) {
	l, err := g.Files(t.Context(), FileOptions{PID: p.PID})
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs []string
	for line := range strings.Lines(said) {
		f := strings.Fields(line)
		if len(f) >= 5 && len(f[1]) == 16 {
			theirs = append(theirs, strings.Join(append([]string{f[0], f[1]}, f[4:]...), " "))
		}
	}
	for _, f := range l.Files {
		if f.Role == RoleOpen {
			ours = append(ours, fmt.Sprintf("%d %x %s %s", f.FD, uint64(f.KernelAddress), crashTypes[f.Type], f.Path))
		}
	}
	crashAgrees(t, ours, theirs)
}

// compareCrashVM compares where mappings begin and end, and their file.
func compareCrashVM(t *testing.T, g *Guest, p Process, said string) {
	areas, _, err := g.VMAs(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	var ours, theirs []string
	for line := range strings.Lines(said) {
		f := strings.Fields(line)
		if len(f) >= 4 && len(f[0]) == 16 && f[0] != "MM" {
			theirs = append(theirs, strings.TrimSpace(f[1]+" "+f[2]+" "+strings.Join(f[4:], " ")))
		}
	}
	for _, v := range areas {
		path := v.Path
		if !strings.HasPrefix(path, "/") {
			path = ""
		}
		ours = append(ours, strings.TrimSpace(fmt.Sprintf("%x %x %s", uint64(v.Start), uint64(v.End), path)))
	}
	crashAgrees(t, ours, theirs)
}
