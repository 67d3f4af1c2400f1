package linux

import (
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
)

// BenchmarkSockets lists 300 sockets and more beside 500 processes, and the
// processes themselves: the one may cost three times the other at most.
func BenchmarkSockets(b *testing.B) {
	g := bootSockets(b, cloudGuest(lab.Bookworm))
	runSockets(b, g, "many 160 500")
	if err := g.Pause(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer resume(b, g)
	for _, what := range []struct {
		name string
		list func(g *Guest) (int, error)
	}{
		{"processes", func(g *Guest) (int, error) {
			l, err := g.Processes(b.Context(), ProcessOptions{})
			return len(l.Processes), err
		}},
		{"sockets", func(g *Guest) (int, error) {
			l, err := g.Sockets(b.Context(), SocketOptions{})
			if err == nil && !l.Coverage.Complete() {
				b.Fatal(l.Coverage.Problems())
			}
			return len(l.Sockets), err
		}},
	} {
		b.Run(what.name, func(b *testing.B) {
			vm := openRAM(b, g)
			guest, err := Open(b.Context(), vm, Options{})
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				if n, err = what.list(guest); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric(float64(n), "objects")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/object")
			// Bytes are counted in one more listing, with the page tables known.
			read := &sockCounter{virtReader: guest.r.virtReader}
			guest.r.virtReader = read
			if _, err := what.list(guest); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(read.bytes)/float64(n), "read-B/object")
		})
	}
}

// sockCounter counts what is read of the guest's structures.
type sockCounter struct {
	virtReader
	bytes int
}

func (c *sockCounter) ReadVirt(p []byte, va hypervisor.VirtAddr) (int, error) {
	c.bytes += len(p)
	return c.virtReader.ReadVirt(p, va)
}
