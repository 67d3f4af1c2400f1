package disk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
)

// TestConcurrent has many requests under way at once, on regions of their own
// that share clusters, and flushes between them.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		switch k.name {
		case "raw", "v3", "cluster2M", "zlib", "snapshots", "onqcow2", "zstd", "growing":
		default:
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			const size, workers, slot = 2 << 20, 8, 1536
			model := pattern(size, 1)
			path, format := k.make(t, model)
			d, err := Open(path, Options{Format: format})
			if err != nil {
				t.Fatal(err)
			}
			// Worker w has the slots whose number is w modulo workers: every cluster
			// has some of all.
			var work sync.WaitGroup
			errs := make([]error, workers+1)
			done := make(chan struct{})
			for w := range workers {
				work.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(w), 3))
					for i := range 300 {
						at := uint64(rng.IntN(size/slot/workers)*workers+w) * slot
						part := model[at : at+slot]
						switch rng.IntN(5) {
						case 0:
							clear(part)
							errs[w] = d.WriteZeroes(at, slot, true)
						case 1, 2:
							copy(part, bytes.Repeat([]byte{byte(i)}, slot))
							errs[w] = d.WriteV(pieces(rng, bytes.Clone(part)), at)
						default:
							got := make([]byte, slot)
							errs[w] = d.ReadV(pieces(rng, got), at)
							if errs[w] == nil && !bytes.Equal(got, part) {
								errs[w] = fmt.Errorf("worker %d, request %d: bytes at %#x are not as they were written", w, i, at)
							}
						}
						if errs[w] != nil {
							return
						}
					}
				})
			}
			var flusher sync.WaitGroup
			flusher.Go(func() {
				for errs[workers] == nil {
					select {
					case <-done:
						return
					default:
						errs[workers] = d.Flush()
					}
				}
			})
			work.Wait()
			close(done)
			flusher.Wait()
			if err := errors.Join(append(errs, d.Close())...); err != nil {
				t.Fatal(err)
			}
			if format == FormatQcow2 {
				if leaks := check(t, path); leaks > 0 {
					t.Errorf("%d clusters have leaked", leaks)
				}
				sameBytes(t, "what qemu-img reads", content(t, path), model)
			}
		})
	}
}

// TestCloseWaits: requests that are under way at a Close end well, or say that
// the disk is closed.
func TestCloseWaits(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		if k.name != "raw" && k.name != "v3" {
			continue
		}
		path, format := k.make(t, make([]byte, 1<<20))
		d, err := Open(path, Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		started := make(chan struct{}, 4)
		for w := range 4 {
			work.Go(func() {
				b := bytes.Repeat([]byte{byte(w)}, 4096)
				for i := 0; ; i++ {
					err := d.WriteV([][]byte{b}, uint64(i*4+w)%256*4096)
					if i == 0 {
						started <- struct{}{}
					}
					if err != nil {
						if !errors.Is(err, ErrClosed) {
							t.Errorf("%s: %v", k.name, err)
						}
						return
					}
				}
			})
		}
		for range 4 {
			<-started
		}
		if err := d.Close(); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		work.Wait()
		if format == FormatQcow2 {
			check(t, path)
		}
	}
}

// TestWideWrites changes more of the tables than the cache holds.
func TestWideWrites(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "wide")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "600M")
	d, err := Open(path, Options{Format: FormatQcow2})
	if err != nil {
		t.Fatal(err)
	}
	const stride, writes = 32 << 10, 18_000 // an L2 table each: of 512 bytes, in a cache of 8 MiB
	b := make([]byte, 512)
	for i := range writes {
		copy(b, fmt.Sprint(i, "."))
		if err := d.WriteV([][]byte{b}, uint64(i)*stride); err != nil {
			t.Fatal(err)
		}
	}
	for i := range writes {
		if err := d.ReadV([][]byte{b}, uint64(i)*stride); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(i, "."); !bytes.HasPrefix(b, []byte(want)) {
			t.Fatalf("write %d is not there: %q", i, b[:8])
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if leaks := check(t, path); leaks > 0 {
		t.Errorf("%d clusters have leaked", leaks)
	}
}
