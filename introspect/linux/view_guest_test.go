package linux

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// viewKits are the names under which guests load the rootkit, and what of itself
// each hides from.
var viewKits = []struct {
	name, from string
	seen       []View
}{
	{"kitlist", "list", []View{ViewModuleTree, ViewSysfs}},
	{"kittree", "tree", []View{ViewModuleList, ViewSysfs}},
	{"kitsysf", "sysfs", []View{ViewModuleList, ViewModuleTree}},
	{"kitnone", "list+tree+sysfs", nil}, // only its code
}

// viewGuest boots a guest that has what hides things.
func viewGuest(t *testing.T, suite lab.Suite) *lab.Guest {
	t.Helper()
	var files []lab.File
	for _, k := range viewKits {
		files = append(files, labtest.Rootkit(t, suite, "/kit/"+k.name+".ko", k.name))
	}
	return labtest.Boot(t, lab.Config{
		Name: "views-" + string(suite), Kernel: labtest.Kernel(t, suite), Memory: 384 * lab.MiB,
		Shared: true, KASLR: true, Files: files, Modules: []string{"dummy"},
	})
}

// viewRun runs a script in the guest and returns its words.
func viewRun(t *testing.T, g *lab.Guest, script string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := g.Run(ctx, script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(out)
}

// viewLoad makes the guest do much at once: processes come and go, connections
// too, and files.
const viewLoad = `
	( while :; do /bin/true; /bin/sh -c ':' & wait $!; done ) >/dev/null 2>&1 &
	echo $!
	( while :; do mkdir /tmp/d; echo x > /tmp/d/f; rm -r /tmp/d; done ) >/dev/null 2>&1 &
	echo $!
	( while :; do nc -l -p 99 -w 1 >/dev/null & echo x | nc -w 1 127.0.0.1 99; wait; done ) >/dev/null 2>&1 &
	echo $!`

// viewOwnCode makes the kernel write code of its own among the modules: a probe,
// trampolines of the tracer of functions, and a packet filter of a program.
const viewOwnCode = `
	mount -t tracefs tracefs /mnt && cd /mnt || exit 1
	echo 'p vfs_statx' > kprobe_events && echo 1 > events/kprobes/enable || exit 1
	echo 'r vfs_mkdir' >> kprobe_events; echo 1 > events/kprobes/enable
	echo vfs_rmdir > set_ftrace_filter && echo function > current_tracer || exit 1
	cd / && ip link set dummy0 up && (udhcpc -f -i dummy0 >/dev/null 2>&1 &)
	until grep -q udhcpc /proc/[0-9]*/comm && sleep 1; do usleep 10000; done
	grep -c . /proc/net/packet`

// viewClean looks at a guest that hides nothing, 50 times in a row.
func viewClean(t *testing.T, guest *Guest) {
	t.Helper()
	problems := 0
	for i := range 50 {
		l, err := guest.Processes(t.Context(), ProcessOptions{Threads: i%2 == 1})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range l.Processes {
			if p.Hidden {
				t.Errorf("look %d: process %d (%q, %s) is called hidden: seen in %v", i, p.PID, p.Comm, p.State, p.SeenIn)
			}
		}
		m, err := guest.Modules(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range m.Modules {
			if m.Hidden {
				t.Errorf("look %d: module %s is called hidden: seen in %v", i, m.Name, m.SeenIn)
			}
		}
		for _, c := range m.UnknownCode {
			t.Errorf("look %d: code at %v, %d bytes, of %q, is nobody's", i, c.Start, c.Size, c.Allocator)
		}
		problems += l.Coverage.Total() + m.Coverage.Total()
	}
	t.Logf("%d problems told in 50 looks", problems)
}

// What the rootkit hides is seen and marked, and nothing else is; before that, a
// guest that hides nothing has nothing marked.
func TestHidden(t *testing.T) {
	for _, suite := range lab.Suites() {
		t.Run(string(suite), func(t *testing.T) {
			g := viewGuest(t, suite)
			guest := openLive(t, g)
			viewRun(t, g, viewOwnCode)
			if slices.Contains(nightlySuites(), suite) {
				viewClean(t, guest)
				load := viewRun(t, g, viewLoad)
				viewClean(t, guest)
				viewRun(t, g, "kill -9 "+strings.Join(load, " "))
			}
			viewHiddenProcesses(t, g, guest)
			viewHiddenModules(t, g, guest)
		})
	}
}

func viewHiddenProcesses(t *testing.T, g *lab.Guest, guest *Guest) {
	cases := []struct {
		program, from string
		seen          []View
	}{
		{"sleep", "tasks", []View{ViewPIDIndex, ViewCgroup}},
		{"sleep", "index", []View{ViewTasks, ViewCgroup}},
		{"sleep", "tasks+index", []View{ViewCgroup}},
		{"sleep", "cgroup", []View{ViewTasks, ViewPIDIndex}},
		{"busy", "tasks+index+cgroup+threads", []View{ViewRunQueue}},
	}
	var script, args strings.Builder
	for i, c := range cases {
		switch c.program {
		case "sleep":
			script.WriteString("sleep 100000 >/dev/null 2>&1 &\n")
		case "busy":
			script.WriteString("( while :; do :; done ) >/dev/null 2>&1 &\n")
		}
		fmt.Fprintf(&script, "p%d=$!; echo $!\n", i)
		fmt.Fprintf(&args, "$p%d:%s,", i, c.from)
	}
	// They have set up their memory when they sleep.
	script.WriteString("usleep 300000\ninsmod /kit/kitlist.ko self=list processes=" + args.String() + " || exit 1\n")
	script.WriteString("until dmesg | grep -q 'rootkit: done'; do usleep 10000; done")
	words := viewRun(t, g, script.String())
	if len(words) != len(cases) {
		t.Fatalf("the guest said %q", words)
	}
	// Once while it runs, once while it stands still.
	for _, paused := range []bool{false, true} {
		if paused {
			if err := g.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			defer resume(t, g)
		}
		for _, threads := range []bool{false, true} {
			l, err := guest.Processes(t.Context(), ProcessOptions{Threads: threads})
			if err != nil {
				t.Fatal(err)
			}
			if paused && !l.Coverage.Complete() {
				t.Errorf("threads %v: %v", threads, l.Coverage.Problems())
			}
			hidden := map[int]Process{}
			for _, p := range l.Processes {
				if p.Hidden {
					hidden[p.PID] = p
				}
			}
			for i, c := range cases {
				pid, err := strconv.Atoi(words[i])
				if err != nil {
					t.Fatal(err)
				}
				p, ok := hidden[pid]
				delete(hidden, pid)
				want := slices.Clone(c.seen)
				if threads && slices.Contains(want, ViewTasks) {
					want = append(want, ViewThreads)
				}
				got := slices.DeleteFunc(slices.Clone(p.SeenIn), func(v View) bool {
					return v == ViewRunQueue && c.program != "busy"
				})
				slices.Sort(got)
				slices.Sort(want)
				if !ok || !slices.Equal(got, want) {
					t.Errorf("hidden from %s, threads %v, paused %v: marked %v, seen in %v, want %v", c.from, threads, paused, ok, p.SeenIn, want)
				}
				if comm := map[string]string{"sleep": "sleep", "busy": "init"}[c.program]; ok && (p.Comm != comm || p.Exe != "/bin/busybox" || p.PPID == 0 || !p.HasMemory()) {
					t.Errorf("hidden from %s: its details are not known: %+v", c.from, p)
				}
			}
			for _, p := range hidden {
				t.Errorf("process %d (%q, %s) is called hidden, seen in %v", p.PID, p.Comm, p.State, p.SeenIn)
			}
		}
	}
}

func viewHiddenModules(t *testing.T, g *lab.Guest, guest *Guest) {
	for i, k := range viewKits {
		if i > 0 { // the first one is there by now
			viewRun(t, g, fmt.Sprintf("insmod /kit/%s.ko self=%s || exit 1\nuntil dmesg | grep -c 'rootkit: done' | grep -qx %d; do usleep 10000; done", k.name, k.from, i+1))
		}
	}
	l, err := guest.Modules(t.Context())
	if err != nil || !l.Coverage.Complete() {
		t.Fatal(err, l.Coverage.Problems())
	}
	for _, m := range l.Modules {
		i := slices.IndexFunc(viewKits, func(k struct {
			name, from string
			seen       []View
		}) bool {
			return k.name == m.Name
		})
		switch {
		case m.Hidden != (i >= 0):
			t.Errorf("module %s: hidden %v, seen in %v", m.Name, m.Hidden, m.SeenIn)
		case i >= 0 && !slices.Equal(m.SeenIn, viewKits[i].seen):
			t.Errorf("module %s is seen in %v", m.Name, m.SeenIn)
		}
	}
	if n := len(l.Modules); n != len(viewKits) { // dummy is there, and one kit is not
		t.Errorf("%d modules", n)
	}
	if len(l.UnknownCode) != 1 {
		t.Fatalf("unknown code: %+v", l.UnknownCode)
	}
	// It is that of the module that is in no list.
	words := viewRun(t, g, "dmesg | grep 'hides from list+tree+sysfs' | grep -o 'code [0-9a-f]*' | cut -d' ' -f2")
	code, err := strconv.ParseUint(strings.Join(words, ""), 16, 64)
	c := l.UnknownCode[0]
	if err != nil || code < uint64(c.Start) || code-uint64(c.Start) >= c.Size {
		t.Errorf("unknown code at %v, %d bytes, want that at %q", c.Start, c.Size, words)
	}
	if c.Allocator == "" {
		t.Errorf("nobody has asked for the memory at %v", c.Start)
	}
}
