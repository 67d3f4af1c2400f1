package disk

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// benchImages are images of 512 MiB that are in the page cache: what is measured
// is the way to them, not a device.
func benchImages(b *testing.B) map[string]string {
	b.Helper()
	dir := b.TempDir()
	raw, qcow := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	qemuImg(b, "create", "-q", "-f", "raw", raw, "512M")
	qemuIO(b, raw, "raw", "write -P 3 0 512M")
	qemuImg(b, "convert", "-f", "raw", "-O", "qcow2", raw, qcow)
	return map[string]string{FormatRaw: raw, FormatQcow2: qcow}
}

var benchSeconds = regexp.MustCompile(`completed in ([0-9.]+) seconds`)

// qemuBench has qemu-img do requests of size bytes, one after the other, and
// reports its throughput beside ours.
func qemuBench(b *testing.B, path, format string, size int, args ...string) {
	const total = 512 << 20
	for range b.N {
		out := qemuImg(b, append(append([]string{"bench", "-f", format, "-d", "1", "-c", fmt.Sprint(total / size), "-s", fmt.Sprint(size)}, args...), path)...)
		m := benchSeconds.FindSubmatch(out)
		if m == nil {
			b.Fatalf("qemu-img bench says %s", out)
		}
		s, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(total/s/1e6, "MB/s")
	}
}

func BenchmarkRead(b *testing.B) {
	images := benchImages(b)
	for _, format := range []string{FormatRaw, FormatQcow2} {
		for _, size := range []int{4 << 10, 128 << 10, 1 << 20} {
			b.Run(fmt.Sprintf("%s/%dk/ours", format, size>>10), func(b *testing.B) {
				d, err := Open(images[format], Options{Format: format, ReadOnly: true})
				if err != nil {
					b.Fatal(err)
				}
				defer d.Close()
				benchRequests(b, size, 4096, d.Size(), d.ReadV)
			})
			b.Run(fmt.Sprintf("%s/%dk/qemu", format, size>>10), func(b *testing.B) {
				qemuBench(b, images[format], format, size)
			})
		}
	}
}

// benchRequests does requests of size bytes, in pieces as a guest's pages.
func benchRequests(b *testing.B, size, piece int, disk uint64, do func(iov [][]byte, off uint64) error) {
	buf := make([]byte, size)
	var iov [][]byte
	for at := 0; at < size; at += piece {
		iov = append(iov, buf[at:at+piece])
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	off := uint64(0)
	for b.Loop() {
		if err := do(iov, off); err != nil {
			b.Fatal(err)
		}
		if off += uint64(size); off+uint64(size) > disk {
			off = 0
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	images := benchImages(b)
	for _, format := range []string{FormatRaw, FormatQcow2} {
		const size = 128 << 10
		b.Run(format+"/ours", func(b *testing.B) {
			d, err := Open(images[format], Options{Format: format})
			if err != nil {
				b.Fatal(err)
			}
			defer d.Close()
			benchRequests(b, size, 4096, d.Size(), d.WriteV)
		})
		b.Run(format+"/qemu", func(b *testing.B) { qemuBench(b, images[format], format, size, "-w") })
	}
}

// BenchmarkAllocate writes to clusters that are not there yet.
func BenchmarkAllocate(b *testing.B) {
	const size = 128 << 10
	path := filepath.Join(b.TempDir(), "new")
	make := func() { qemuImg(b, "create", "-q", "-f", "qcow2", path, "512M") }
	b.Run("ours", func(b *testing.B) {
		make()
		d, err := Open(path, Options{Format: FormatQcow2})
		if err != nil {
			b.Fatal(err)
		}
		defer func() { d.Close() }()
		at := uint64(0)
		benchRequests(b, size, 4096, 1<<62, func(iov [][]byte, _ uint64) error {
			if at += size; at+size > d.Size() {
				b.StopTimer()
				d.Close()
				make()
				if d, err = Open(path, Options{Format: FormatQcow2}); err != nil {
					return err
				}
				at = 0
				b.StartTimer()
			}
			return d.WriteV(iov, at)
		})
	})
	b.Run("qemu", func(b *testing.B) {
		make()
		qemuBench(b, path, FormatQcow2, size, "-w")
	})
}
