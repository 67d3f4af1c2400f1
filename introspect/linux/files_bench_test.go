package linux

import (
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// BenchmarkFiles lists thousands of open files; the time of Processes in the
// same guest is what to compare it with.
func BenchmarkFiles(b *testing.B) {
	g := labtest.Boot(b, lab.Config{
		Name: "files-bench", Kernel: labtest.Kernel(b, lab.Bookworm), Memory: lab.GiB, Shared: true, KASLR: true,
	})
	_, err := g.Run(b.Context(), `
		mkdir -p /tmp/some/folder
		i=0
		while [ $i -lt 450 ]; do
			i=$((i+1))
			echo $i >/tmp/some/folder/file$i
			sleep 100000 5</tmp/some/folder/file$i 6</tmp/some/folder 7>>/tmp/some/log &
		done
		until [ $(ls -d /proc/[0-9]*/fd/7 | wc -l) = 450 ]; do sleep 0.1; done`)
	if err != nil {
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
	b.Run("processes", func(b *testing.B) {
		for b.Loop() {
			if _, err := guest.Processes(b.Context(), ProcessOptions{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("files", func(b *testing.B) {
		n := 0
		b.ReportAllocs()
		for b.Loop() {
			l, err := guest.Files(b.Context(), FileOptions{})
			if err != nil || !l.Coverage.Complete() {
				b.Fatal(err, l.Coverage.Problems())
			}
			n = len(l.Files)
		}
		b.ReportMetric(float64(n), "files")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/file")
		// Bytes are counted in one more listing, without a page's zero-copy view.
		b.StopTimer()
		plain, err := Open(b.Context(), count, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := plain.Files(b.Context(), FileOptions{}); err != nil {
			b.Fatal(err)
		}
		count.bytes.Store(0)
		if _, err := plain.Files(b.Context(), FileOptions{}); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(count.bytes.Load())/float64(n), "read-B/file")
	})
}
