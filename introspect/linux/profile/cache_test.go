package profile

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

func findCached(t *testing.T, mem hypervisor.Memory, dir string) *Kernel {
	t.Helper()
	k, err := Find(t.Context(), mem, nil, Options{CacheDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// entries returns the paths of the cache's entries.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*"+cacheSuffix))
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func TestCache(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "profiles")
	g := synth{buildID: 1}.build()
	if k := findCached(t, g.memory(), dir); k.FromCache {
		t.Error("an empty cache had the profile")
	}
	k := findCached(t, g.memory(), dir)
	if !k.FromCache {
		t.Error("not from the cache the second time")
	}
	checkSynthetic(t, k, g)
	if k, err := Find(t.Context(), g.memory(), nil, Options{}); err != nil || k.FromCache {
		t.Errorf("from the cache without one: %v", err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, cacheKeyName): 0o600, entries(t, dir)[0]: 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %v", filepath.Base(path), st.Mode(), err, want)
		}
	}
	if n := len(entries(t, dir)); n != 2 {
		t.Errorf("%d entries, want 2", n)
	}
	// KASLR moves the kernel, and its profile is the same.
	moved := synth{buildID: 1}.build()
	relocate(moved, synthPhys+8<<20)
	clear(moved.ram[synthPhys:][:synthSize])
	if k := findCached(t, moved.memory(), dir); !k.FromCache || k.PhysBase != synthPhys+8<<20 {
		t.Errorf("moved kernel: from cache %v, at %v", k.FromCache, k.PhysBase)
	}
}

// TestCachePoison: a guest claims the build-id of another kernel and has types
// and symbols of its own making.
func TestCachePoison(t *testing.T) {
	dir := t.TempDir()
	honest := synth{buildID: 7, comm: 40}.build()
	liar := synth{buildID: 7, comm: 80}.build()
	if k := findCached(t, liar.memory(), dir); k.FromCache {
		t.Fatal("an empty cache had the profile")
	}
	k := findCached(t, honest.memory(), dir)
	if k.FromCache {
		t.Error("the honest guest got what the liar left")
	}
	checkSynthetic(t, k, honest)
	checkSynthetic(t, findCached(t, honest.memory(), dir), honest)
	checkSynthetic(t, findCached(t, liar.memory(), dir), liar)
	// One changed byte of a name is another kernel.
	i := bytes.Index(honest.tables, []byte("linux_banner"))
	if i < 0 {
		i = bytes.Index(honest.tables, []byte("linux_"))
	}
	honest.tables[i] = 'L'
	k = findCached(t, honest.memory(), dir)
	if _, err := k.Symbol("Linux_banner"); err != nil || k.FromCache {
		t.Errorf("changed name: %v, from cache %v", err, k.FromCache)
	}
}

func TestCacheDamaged(t *testing.T) {
	g := synth{buildID: 1}.build()
	dir := t.TempDir()
	findCached(t, g.memory(), dir)
	whole := map[string][]byte{}
	for _, p := range entries(t, dir) {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		whole[p] = b
	}
	other := t.TempDir()
	findCached(t, g.memory(), other)
	foreign, err := os.ReadFile(entries(t, other)[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func([]byte) []byte{
		"empty":        func([]byte) []byte { return nil },
		"cut":          func(b []byte) []byte { return b[:len(b)/2] },
		"one byte":     func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"in the seal":  func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"version":      func(b []byte) []byte { b[0] ^= 1; return b },
		"digest":       func(b []byte) []byte { b[len(cacheVersion)] ^= 1; return b },
		"longer":       func(b []byte) []byte { return append(b, 0) },
		"foreign":      func([]byte) []byte { return foreign },
		"another kind": func([]byte) []byte { return whole[entries(t, dir)[0]] },
	} {
		for p, b := range whole {
			if err := os.WriteFile(p, change(bytes.Clone(b)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k := findCached(t, g.memory(), dir)
		if k.FromCache {
			t.Errorf("%s: believed", name)
		}
		checkSynthetic(t, k, g)
		for p, b := range whole {
			if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%s: not rebuilt (%v)", name, err)
			}
		}
	}
	// Without its key nothing of the cache is believed; with a broken one
	// there is a new one.
	if err := os.WriteFile(filepath.Join(dir, cacheKeyName), []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if k := findCached(t, g.memory(), dir); k.FromCache {
		t.Error("believed under another key")
	}
	if k := findCached(t, g.memory(), dir); !k.FromCache {
		t.Error("no cache after a broken key")
	}
}

// TestCacheFolder: a folder that others may write to is not used; Find does
// without.
func TestCacheFolder(t *testing.T) {
	g := synth{}.build()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	findCached(t, g.memory(), dir)
	if k := findCached(t, g.memory(), dir); k.FromCache {
		t.Error("a folder that anyone may write to was used")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	findCached(t, g.memory(), file)
}

func TestCachePrune(t *testing.T) {
	dir := t.TempDir()
	c, err := openCache(dir, discard)
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for i := range maxCacheFiles + 10 {
		d := c.digest("test", []byte{byte(i), byte(i >> 8)})
		c.store("test", d, []byte("x"))
		p := c.path("test", d)
		paths = append(paths, p)
		at := time.Unix(1_700_000_000+int64(i), 0)
		if err := os.Chtimes(p, at, at); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	left := entries(t, dir)
	if len(left) > maxCacheFiles {
		t.Errorf("%d entries, want at most %d", len(left), maxCacheFiles)
	}
	if slices.Contains(left, paths[0]) || !slices.Contains(left, paths[len(paths)-2]) {
		t.Error("not the oldest were removed")
	}
	if all, err := os.ReadDir(dir); err != nil || len(all) != len(left)+1 || strings.HasPrefix(all[0].Name(), ".tmp") {
		t.Errorf("leftovers: %v, %v", all, err)
	}
}

// TestCacheTogether: several at once, in one folder that is not there yet.
func TestCacheTogether(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	g := synth{buildID: 1}.build()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Find(t.Context(), g.memory(), nil, Options{CacheDir: dir}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if k := findCached(t, g.memory(), dir); !k.FromCache {
		t.Error("nothing was kept")
	}
}
