package qcow2

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// image makes an image with qemu-img.
func image(t testing.TB, size string, options ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	qemuImg(t, append(append([]string{"create", "-q", "-f", "qcow2"}, options...), path, size)...)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := tryQemuImg(t, args...)
	if err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
	return out
}

func tryQemuImg(t testing.TB, args ...string) (string, error) {
	t.Helper()
	program, err := exec.LookPath("qemu-img")
	if err != nil {
		labtest.Missing(t, "no qemu-img here: install qemu-utils")
	}
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	return string(out), err
}

// leaksOnly fails the test when qemu-img check finds more than leaks: its status
// is 3 for those.
func leaksOnly(t testing.TB, b []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cut")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := tryQemuImg(t, "check", "-f", "qcow2", path); err != nil {
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 3 { //nolint:errorlint // what Command returns
			t.Fatalf("qemu-img check: %v\n%s", err, out)
		}
	}
}

func mustOpen(t testing.TB, s Storage, backing Backing) *Image {
	t.Helper()
	h, err := ReadHeader(s)
	if err != nil {
		t.Fatal(err)
	}
	im, err := Open(s, h, false, backing)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// TestPowerCut takes the power away at any moment: sectors that were written
// since the last fdatasync are there or not, in any of their states. The image
// is sound each time, and has what was flushed.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	for _, options := range [][]string{
		{"-o", "cluster_size=512"},
		{"-o", "cluster_size=4096,refcount_bits=64"},
		{"-o", "cluster_size=512,refcount_bits=64"}, // the refcount table has to grow
		{"-o", "cluster_size=1024,refcount_bits=1,compat=1.1"},
		{"-o", "compat=0.10,cluster_size=512"},
	} {
		t.Run(options[1], func(t *testing.T) {
			t.Parallel()
			const size = 2 << 20
			rng := rand.New(rand.NewPCG(5, uint64(len(options[1]))))
			m := newMemory(image(t, "2M", options...))
			im := mustOpen(t, m, nil)
			model := make([]byte, size) // what was flushed
			written := make([]bool, size/sector)
			for i := range 400 {
				off := rng.Uint64N(size) &^ (sector - 1)
				n := min(size-off, (1+rng.Uint64N(32))*sector)
				if err := im.WriteV([][]byte{bytes.Repeat([]byte{byte(i) | 1}, int(n))}, off); err != nil {
					t.Fatal(err)
				}
				for s := off / sector; s < (off+n)/sector; s++ {
					written[s] = true
				}
				if rng.IntN(6) == 0 {
					if err := im.Flush(); err != nil {
						t.Fatal(err)
					}
					if err := im.ReadV([][]byte{model}, 0); err != nil {
						t.Fatal(err)
					}
					clear(written)
				}
				if rng.IntN(8) == 0 {
					b := m.cut(rng)
					leaksOnly(t, b)
					after := mustOpen(t, newMemory(b), nil)
					got := make([]byte, size)
					if err := after.ReadV([][]byte{got}, 0); err != nil {
						t.Fatal(err)
					}
					for s, w := range written {
						if !w && !bytes.Equal(got[s*sector:(s+1)*sector], model[s*sector:(s+1)*sector]) {
							t.Fatalf("sector %d was flushed, and is not as it was", s)
						}
					}
				}
			}
			if err := im.Close(); err != nil {
				t.Fatal(err)
			}
			if end := uint64(len(m.now)); end < size/2 {
				t.Errorf("only %d bytes of the image were used", end)
			}
		})
	}
}

// used returns storage with an image that has free clusters, which are full of
// what was there before.
func used(t testing.TB, options ...string) *memory {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	qemuImg(t, append(append([]string{"create", "-q", "-f", "qcow2"}, options...), path, "1M")...)
	if out, err := exec.CommandContext(t.Context(), "qemu-io", "-d", "unmap", "-f", "qcow2",
		"-c", "write -P 1 0 70k", "-c", "write -P 2 512k 40k", "-c", "discard 0 60k", "-c", "discard 520k 8k", path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	im := mustOpen(t, newMemory(b), nil)
	free := 0
	for c := range uint64(len(b)) / im.cluster {
		v, err := im.count(c)
		if err != nil {
			t.Fatal(err)
		}
		if v == 0 {
			free++
			for i := range im.cluster {
				b[c*im.cluster+i] = 0xa5
			}
		}
	}
	if free < 20 {
		t.Fatalf("only %d free clusters", free)
	}
	return newMemory(b)
}

// TestPowerCutInFlush takes the power away between any two writes of a Flush.
func TestPowerCutInFlush(t *testing.T) {
	t.Parallel()
	for _, options := range [][]string{
		{"-o", "cluster_size=512"},
		{"-o", "cluster_size=512,refcount_bits=64"},
		{"-o", "cluster_size=2048,refcount_bits=64,compat=1.1"},
	} {
		t.Run(options[1], func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(6, 6))
			blank := used(t, options...)
			for fail := 0; ; fail++ {
				m := newMemory(blank.now)
				if !cutInFlush(t, m, rng, fail) {
					t.Logf("a Flush of %d writes", fail)
					return
				}
			}
		})
	}
}

// cutInFlush does some writes, then a Flush whose writes fail after some, and
// reports whether it was not whole.
func cutInFlush(t *testing.T, m *memory, rng *rand.Rand, fail int) bool {
	const size = 1 << 20
	im := mustOpen(t, m, nil)
	for range 60 {
		n := (1 + rng.Uint64N(24)) * sector
		off := rng.Uint64N((size-n)/sector) * sector
		if err := im.WriteV([][]byte{bytes.Repeat([]byte{7}, int(n))}, off); err != nil {
			t.Fatal(err)
		}
	}
	m.mu.Lock()
	m.fail = fail
	m.mu.Unlock()
	err := im.Flush()
	for range 3 {
		leaksOnly(t, m.cut(rng))
	}
	m.mu.Lock()
	m.fail = -1
	m.mu.Unlock()
	// What could not be written is written the next time.
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	leaksOnly(t, m.now)
	return err != nil
}
