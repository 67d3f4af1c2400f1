package linux

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/introspect"
)

// corruptWalk is one walk of a guest that is run over corrupted memory.
type corruptWalk struct {
	name string
	// run walks and returns how many objects it found, what its coverage says,
	// which may be nil, and the walk's error. It lists by itself whatever it
	// starts from, in a guest of lab.Bookworm with the lab's program.
	run func(ctx context.Context, g *Guest) (n int, cov *introspect.Coverage, err error)
	// empty: that guest has nothing of the kind.
	empty bool
}

// corruptWalks are all walks of this package. Whoever adds one adds its line.
var corruptWalks = []corruptWalk{
	{name: "Processes", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Processes(ctx, ProcessOptions{})
		return len(l.Processes), l.Coverage, err
	}},
	{name: "Processes with threads", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Processes(ctx, ProcessOptions{Threads: true})
		return len(l.Processes), l.Coverage, err
	}},
	{name: "Modules", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Modules(ctx)
		return len(l.Modules), l.Coverage, err
	}},
	{name: "Sockets", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Sockets(ctx, SocketOptions{})
		return len(l.Sockets), l.Coverage, err
	}},
	// The lab's guest has no eBPF of its own.
	{name: "BPF", empty: true, run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.BPF(ctx)
		return len(l.Programs) + len(l.Maps) + len(l.Links), l.Coverage, err
	}},
	{name: "Hooks", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Hooks(ctx, HookOptions{})
		return len(l.Hooks), l.Coverage, err
	}},
	{name: "Timers", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Timers(ctx)
		return len(l.Timers), l.Coverage, err
	}},
	{name: "Keys", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Keys(ctx)
		return len(l.Keys), l.Coverage, err
	}},
	{name: "code", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		cov := &introspect.Coverage{}
		m, err := g.codeMap(ctx, cov)
		if err != nil {
			return 0, cov, err
		}
		for _, r := range m.ranges {
			m.owner(r.end - 1)
		}
		return len(m.ranges), cov, nil
	}},
	{name: "Info", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		i, err := g.Info(ctx)
		return 1, i.Coverage, err
	}},
	{name: "Files", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Files(ctx, FileOptions{})
		return len(l.Files), l.Coverage, err
	}},
	{name: "KernelLog", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.KernelLog(ctx)
		return len(l.Records), l.Coverage, err
	}},
	{name: "Interfaces", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Interfaces(ctx)
		return len(l.Interfaces), l.Coverage, err
	}},
	{name: "Mounts", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Mounts(ctx)
		return len(l.Mounts), l.Coverage, err
	}},
	{name: "CachedFiles", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.CachedFiles(ctx)
		return len(l.Files), l.Coverage, err
	}},
	{name: "Swaps", empty: true, run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, cov, err := g.Swaps(ctx)
		return len(l), cov, err
	}},
	{name: "CachedFile", run: func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		c, err := g.CachedFile(ctx, "/bin/../init")
		return corruptContent(ctx, c, err)
	}},
	{name: "Exe", run: corruptEach(func(ctx context.Context, g *Guest, p Process) (int, *introspect.Coverage, error) {
		if p.PID%8 != 1 {
			return 0, nil, nil // most run the same program
		}
		c, err := g.Exe(ctx, p)
		return corruptContent(ctx, c, err)
	})},
	{name: "Core", run: corruptEach(func(ctx context.Context, g *Guest, p Process) (int, *introspect.Coverage, error) {
		if p.PID%8 != 1 {
			return 0, nil, nil // enough of them
		}
		c, err := g.Core(ctx, p, CoreOptions{})
		return corruptContent(ctx, c, err)
	})},
	{name: "VMAs", run: corruptEach(func(ctx context.Context, g *Guest, p Process) (int, *introspect.Coverage, error) {
		v, cov, err := g.VMAs(ctx, p)
		return len(v), cov, err
	})},
	{name: "Maps", run: corruptEach(func(ctx context.Context, g *Guest, p Process) (int, *introspect.Coverage, error) {
		l, err := g.Maps(ctx, p, MapOptions{})
		return len(l.Areas), l.Coverage, err
	})},
	{name: "ProcessSpace", run: corruptEach(func(ctx context.Context, g *Guest, p Process) (int, *introspect.Coverage, error) {
		as, err := g.ProcessSpace(p)
		if err != nil {
			return 0, nil, err
		}
		n := 0
		for _, err := range as.Runs(ctx, 0, maxUserAddr, 0) {
			if err == nil {
				n++
			}
		}
		return n, nil, ctx.Err()
	})},
}

// corruptContent takes c out of memory. A program of another size than there is
// memory for is not read.
func corruptContent(ctx context.Context, c *Content, err error) (int, *introspect.Coverage, error) {
	if err != nil {
		return 0, nil, err
	}
	const most = 64 << 20
	if c.Size > most {
		return 1, nil, nil
	}
	cov, err := c.WriteTo(ctx, io.Discard, nil)
	if err != nil {
		return 0, cov.Problems, err
	}
	return int(cov.PagesRead), cov.Problems, nil
}

// corruptEach makes a walk of a walk of each process with memory. What is wrong
// with one process is a problem, and ends nothing.
func corruptEach(walk func(context.Context, *Guest, Process) (int, *introspect.Coverage, error)) func(context.Context, *Guest) (int, *introspect.Coverage, error) {
	return func(ctx context.Context, g *Guest) (int, *introspect.Coverage, error) {
		l, err := g.Processes(ctx, ProcessOptions{})
		if err != nil {
			return 0, l.Coverage, err
		}
		n := 0
		for _, p := range l.Processes {
			if !p.HasMemory() {
				continue
			}
			found, cov, err := walk(ctx, g, p)
			n += found
			l.Coverage.Merge(cov)
			if ctx.Err() != nil {
				return n, l.Coverage, ctx.Err()
			}
			if err != nil && !errors.Is(err, ErrGone) {
				l.Coverage.Add("walk", p.KernelAddress, err)
			}
		}
		return n, l.Coverage, nil
	}
}

// What one walk over corrupted memory may take, by wide margins: they only have
// to tell a bound from none.
const (
	corruptTime  = 10 * time.Second
	corruptSum   = 30 * time.Second // of all walks together, of the CPU: other work on the machine is not theirs
	corruptAlloc = 512 << 20        // bytes allocated in all, garbage included
)

// corruptCases are the ways in which memory lies. A rate of n is one in n; 0 is
// never.
var corruptCases = []struct {
	name           string
	word, ptr      uint64 // rates of words, and of those that look like the kernel's pointers
	page           uint64 // rate of pages
	onePlace, live bool   // pointers lead to one object; what is read changes all the time
	warm           bool   // the kernel's page tables were read before
	seeds          int
}{
	{name: "few words", word: 4096, ptr: 512, seeds: 6},
	{name: "many words", word: 64, ptr: 8, warm: true, seeds: 8},
	{name: "pointers to one object", ptr: 4, onePlace: true, warm: true, seeds: 8},
	{name: "few pages", page: 100, seeds: 6},
	{name: "many pages", page: 4, seeds: 2},
	{name: "every pointer", ptr: 1, warm: true, seeds: 2},
	{name: "changing words", word: 2048, ptr: 256, live: true, seeds: 4},
}

// Every walk ends soon, without a panic and with bounded memory, whatever the
// guest's memory holds; what it could not believe is told; and nothing of it is
// left behind for the next look.
func TestCorruptedMemory(t *testing.T) {
	truth := bootTruth(t, lab.Bookworm)
	if err := truth.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer resume(t, truth)
	mem := &corruptMemory{Memory: openRAM(t, truth)}
	g, err := Open(t.Context(), mem, Options{})
	if err != nil {
		t.Fatal(err)
	}
	mem.spare = g.kernel.Root.CR3

	clean := make([]int, len(corruptWalks))
	for i, w := range corruptWalks {
		r := runCorrupt(t, w, g)
		if r.err != nil || r.found == 0 && !w.empty {
			t.Fatalf("%s of clean memory: %d found, %v", w.name, r.found, r.err)
		}
		clean[i] = r.found
	}
	mem.learned()

	found, told := make([]int, len(corruptWalks)), make([]int, len(corruptWalks))
	took := make([]time.Duration, len(corruptWalks))
	for _, c := range corruptCases {
		for seed := range c.seeds {
			for i, w := range corruptWalks {
				g.Flush()
				if c.warm {
					mem.off()
					runCorrupt(t, w, g)
				}
				mem.on(corruption{seed: uint64(seed + 1), word: c.word, ptr: c.ptr, page: c.page, onePlace: c.onePlace, live: c.live})
				r := runCorrupt(t, w, g)
				mem.off()
				what := fmt.Sprintf("%s, %s, seed %d", w.name, c.name, seed+1)
				if errors.Is(r.err, context.DeadlineExceeded) {
					t.Errorf("%s: it did not end within %s", what, corruptTime)
				}
				if r.alloc > corruptAlloc {
					t.Errorf("%s: %d MiB allocated", what, r.alloc>>20)
				}
				if c.name == "few words" {
					found[i] += r.found
				}
				if r.problems > 0 || r.err != nil {
					told[i]++
				}
				took[i] += r.took
				t.Logf("%-70s %6d found, %5d problems, %4d ms, %4d MiB, %v", what, r.found, r.problems, r.took.Milliseconds(), r.alloc>>20, r.err)
			}
		}
	}
	var sum time.Duration
	for _, d := range took {
		sum += d
	}
	if sum > corruptSum {
		t.Errorf("all walks together took %s", sum)
	}
	g.Flush()
	for i, w := range corruptWalks {
		if found[i] == 0 && !w.empty {
			t.Errorf("%s: nothing was found in memory with few wrong words", w.name)
		}
		if told[i] == 0 && !w.empty {
			t.Errorf("%s: nothing was ever told of wrong memory", w.name)
		}
		if r := runCorrupt(t, w, g); r.found != clean[i] || r.err != nil {
			t.Errorf("%s: %d found in clean memory afterwards, %d before; %v", w.name, r.found, clean[i], r.err)
		}
		t.Logf("%-30s %s in all", w.name, took[i].Round(time.Millisecond))
	}
}

type corruptResult struct {
	found, problems int
	err             error
	took            time.Duration // CPU time of the process
	alloc           uint64
}

// cpuTime is what the process has used of the CPUs so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// runCorrupt runs w once. One that does not even end with its context ends the
// test, with the stacks of all goroutines.
func runCorrupt(t *testing.T, w corruptWalk, g *Guest) corruptResult {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), corruptTime)
	defer cancel()
	done := make(chan corruptResult, 1)
	go func() {
		var r corruptResult
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		start := cpuTime()
		var cov *introspect.Coverage
		r.found, cov, r.err = w.run(ctx, g)
		r.took = cpuTime() - start
		runtime.ReadMemStats(&after)
		r.alloc = after.TotalAlloc - before.TotalAlloc
		if cov != nil {
			r.problems = cov.Total()
		}
		done <- r
	}()
	select {
	case r := <-done:
		return r
	case <-time.After(corruptTime + 10*time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s does not end, not even with its context:\n%s", w.name, buf[:runtime.Stack(buf, true)])
		return corruptResult{}
	}
}

// The corruption is what it should be: the same bytes for the same seed, however
// they are read, and none when it is off.
func TestCorruptMemoryIsStable(t *testing.T) {
	b := make([]byte, 4*pageLen)
	for i := range b {
		b[i] = byte(i * 7)
	}
	m := &corruptMemory{Memory: &ram{b}, spare: gpaOf(3 * pageLen)}
	read := func(at, n int) []byte {
		p := make([]byte, n)
		if got, err := m.ReadPhys(p, gpaOf(at)); got != n || err != nil {
			t.Fatal(got, err)
		}
		return p
	}
	if !slices.Equal(read(5, 1000), b[5:1005]) {
		t.Error("bytes differ though it is off")
	}
	m.on(corruption{seed: 1, word: 8, ptr: 8})
	all := read(0, len(b))
	if slices.Equal(all, b) {
		t.Error("nothing is corrupted")
	}
	if !slices.Equal(all[3*pageLen:], b[3*pageLen:]) {
		t.Error("the spared page is corrupted")
	}
	for _, at := range []int{0, 1, 7, 13, pageLen - 3} {
		if !slices.Equal(read(at, 21), all[at:at+21]) {
			t.Errorf("a part at %d is not the part of the whole", at)
		}
	}
}
