package scanner_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/rules/yara"
	"github.com/vantage-vmi/vantage/scanner"
)

// benchImage is a memory file to measure on instead of those made here.
const benchImage = "VANTAGE_BENCH_IMAGE"

// thousandRules is a rule set of the size that is bought or collected.
func thousandRules() string {
	var b strings.Builder
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 1000 {
		fmt.Fprintf(&b, "rule synthetic_%d { strings: $a = \"mal%x_%x\" $b = \"cfg%x.example\" ascii wide nocase", i, rnd.Uint32()&0xffff, rnd.Uint32(), rnd.Uint32()&0xffffff)
		fmt.Fprintf(&b, " $c = { %02X %02X %02X %02X [2-6] %02X %02X } condition: 2 of them }\n", rnd.Uint32()&0xff|1, rnd.Uint32()&0xff, rnd.Uint32()&0xff|1, rnd.Uint32()&0xff, rnd.Uint32()&0xff, rnd.Uint32()&0xff)
	}
	return b.String()
}

// memoryFile writes a memory file of size bytes, of which used percent are in
// use: filled from this test's own binary, which is as dense as code gets.
func memoryFile(b *testing.B, size, used int) string {
	b.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "mem.raw")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		b.Fatal(err)
	}
	self = self[4096:] // a file that starts like ELF is none of raw memory
	const piece = 1 << 20
	for at, i := 0, 0; at+piece <= size; at, i = at+piece, i+1 {
		if i*used/100 == (i+1)*used/100 {
			continue
		}
		from := i * piece % max(len(self)-piece, 1)
		if _, err := f.WriteAt(self[from:min(from+piece, len(self))], int64(at)); err != nil {
			b.Fatal(err)
		}
	}
	return path
}

// rssAnon returns the memory of this process that is no file's, in bytes.
func rssAnon() uint64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		var kb uint64
		if n, _ := fmt.Sscanf(line, "RssAnon: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}

// cpuTime returns the CPU time of this process.
func cpuTime(b *testing.B) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkPhysical scans a memory file and lets the yara command scan it, in
// turn. It reports how many times as fast the scan is (x-yara), how much CPU time
// it takes in all for each second of yara's, and the most anonymous memory that
// the process had (MiB-anon).
func BenchmarkPhysical(b *testing.B) {
	bin, err := exec.LookPath("yara")
	if err != nil {
		b.Skipf("needs the yara command: %v", err)
	}
	for _, mem := range []struct {
		name string
		used int
	}{{"used=15%", 15}, {"used=100%", 100}} {
		file := os.Getenv(benchImage)
		name := filepath.Base(file)
		if file == "" {
			file, name = memoryFile(b, 512<<20, mem.used), mem.name
		} else if mem.used == 100 {
			break
		}
		for _, rules := range []string{"shipped", "thousand"} {
			b.Run(name+"/rules="+rules, func(b *testing.B) { benchmarkPhysical(b, bin, file, rules) })
		}
	}
}

func benchmarkPhysical(b *testing.B, bin, file, rules string) {
	dir := b.TempDir()
	list := filepath.Join(dir, "rules.yar")
	src := scanner.FromPath(list)
	text := thousandRules()
	if rules == "shipped" {
		src, text = scanner.FromFS(yara.Files(), yara.Name), ""
		names, err := filepath.Glob("../rules/yara/*.yar")
		if err != nil || len(names) == 0 {
			b.Fatalf("rules that ship: %v", err)
		}
		for _, n := range names {
			t, err := os.ReadFile(n)
			if err != nil {
				b.Fatal(err)
			}
			text += string(t)
		}
	}
	if err := os.WriteFile(list, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	r, err := scanner.LoadRules(scanner.RuleOptions{}, src)
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	vm, err := image.New(image.Options{}).Open(b.Context(), file)
	if err != nil {
		b.Fatal(err)
	}
	defer vm.Close()

	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			peak.Store(max(peak.Load(), rssAnon()))
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	var ours, theirs, oursCPU, theirsCPU time.Duration
	b.SetBytes(int64(vm.Info().MemoryBytes))
	for b.Loop() {
		b.StopTimer()
		start := time.Now()
		cmd := exec.CommandContext(b.Context(), bin, "-w", "-d", "kind=physical", "-d", "where=[physical]", "-d", "perms=", list, file)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("yara: %v: %s", err, out)
		}
		theirs += time.Since(start)
		theirsCPU += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
		cpu := cpuTime(b)
		b.StartTimer()
		start = time.Now()
		sum, err := scanner.Scan(context.Background(), vm, r, []scanner.Target{scanner.PhysicalTarget{}}, scanner.Options{})
		if err != nil || !sum.Complete {
			b.Fatalf("%v, %+v", err, sum)
		}
		ours += time.Since(start)
		oursCPU += cpuTime(b) - cpu
	}
	close(stop)
	<-done
	b.ReportMetric(theirs.Seconds()/ours.Seconds(), "x-yara")
	b.ReportMetric(oursCPU.Seconds()/theirsCPU.Seconds(), "cpu/yara-cpu")
	b.ReportMetric(float64(peak.Load())/(1<<20), "MiB-anon")
}
