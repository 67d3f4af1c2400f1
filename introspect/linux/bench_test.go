package linux

import (
	"sync/atomic"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
)

func BenchmarkProcesses(b *testing.B) {
	g := bootTruth(b, lab.Bookworm)
	if _, err := g.Command(b.Context(), "fork 400"); err != nil {
		b.Fatal(err)
	}
	if err := g.Pause(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer resume(b, g)
	count := &counter{VM: openRAM(b, g)}
	guest, err := Open(b.Context(), count.VM, Options{})
	if err != nil {
		b.Fatal(err)
	}
	n := 0
	b.ReportAllocs()
	for b.Loop() {
		l, err := guest.Processes(b.Context(), ProcessOptions{})
		if err != nil || !l.Coverage.Complete() {
			b.Fatal(err, l.Coverage.Problems())
		}
		n = len(l.Processes)
	}
	b.StopTimer()
	b.ReportMetric(float64(n), "processes")
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/process")
	// Bytes are counted in one more listing, without a page's zero-copy view.
	if guest, err = Open(b.Context(), count, Options{}); err != nil {
		b.Fatal(err)
	}
	if _, err = guest.Processes(b.Context(), ProcessOptions{}); err != nil {
		b.Fatal(err)
	}
	count.bytes.Store(0)
	if _, err = guest.Processes(b.Context(), ProcessOptions{}); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(count.bytes.Load())/float64(n), "read-B/process")
}

func BenchmarkModules(b *testing.B) {
	g := bootTruth(b, lab.Bookworm)
	if err := g.Pause(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer resume(b, g)
	guest, err := Open(b.Context(), openRAM(b, g), Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		l, err := guest.Modules(b.Context())
		if err != nil || !l.Coverage.Complete() || len(l.UnknownCode) > 0 {
			b.Fatal(err, l.Coverage.Problems(), l.UnknownCode)
		}
	}
}

// counter counts what is read.
type counter struct {
	hypervisor.VM
	bytes atomic.Int64
}

func (c *counter) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	c.bytes.Add(int64(len(p)))
	return c.VM.ReadPhys(p, gpa)
}
