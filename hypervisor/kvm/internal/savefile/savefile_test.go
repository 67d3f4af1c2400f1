package savefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

type folder string

func (f folder) Create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(string(f), name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}
func (f folder) Open(name string) (*os.File, error) { return os.Open(filepath.Join(string(f), name)) }

// ram is guest memory of two ranges.
type ram struct {
	ranges []hypervisor.Range
	bytes  [][]byte
}

func newRAM(sizes ...uint64) *ram {
	r := &ram{}
	for i, n := range sizes {
		r.ranges = append(r.ranges, hypervisor.Range{Start: hypervisor.PhysAddr(i) << 32, Size: n})
		r.bytes = append(r.bytes, make([]byte, n))
	}
	return r
}

func (r *ram) view(gpa hypervisor.PhysAddr, size uint64) ([]byte, error) {
	for i, x := range r.ranges {
		if x.Contains(gpa) && size <= uint64(x.End()-gpa) {
			off := uint64(gpa - x.Start)
			return r.bytes[i][off : off+size], nil
		}
	}
	return nil, hypervisor.ErrNotRAM
}

func (r *ram) scribble(rng *rand.Rand, pages int) (changed []hypervisor.Range) {
	seen := map[hypervisor.PhysAddr]bool{}
	for range pages {
		i := rng.IntN(len(r.ranges))
		p := rng.Uint64N(r.ranges[i].Size / 4096)
		page := r.bytes[i][p*4096 : (p+1)*4096]
		if rng.IntN(3) == 0 {
			clear(page)
		} else {
			page[rng.IntN(4096)] = byte(rng.Uint32())
		}
		seen[r.ranges[i].Start+hypervisor.PhysAddr(p*4096)] = true
	}
	for gpa := range seen {
		changed = append(changed, hypervisor.Range{Start: gpa, Size: 4096})
	}
	changed, err := hypervisor.NormalizeRanges(changed)
	if err != nil {
		panic(err)
	}
	return changed
}

func save(t *testing.T, to folder, r *ram, changed []hypervisor.Range, parent *Manifest) *Manifest {
	t.Helper()
	w, err := NewWriter(to, json.RawMessage(`{"name":"x"}`), r.ranges, parent)
	if err != nil {
		t.Fatal(err)
	}
	w.Section("a", []byte("state a"))
	w.Section("b", []byte{0, 1, 2})
	if err := w.Memory(changed, r.view, nil); err != nil {
		t.Fatal(err)
	}
	m, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Memory that is saved whole and then in steps is what comes back.
func TestChain(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	r := newRAM(3<<20+5*4096, 700*4096)
	r.scribble(rng, 900)
	var folders []Folder // newest first
	var parent *Manifest
	changed := r.ranges
	for range 5 {
		f := folder(t.TempDir())
		parent = save(t, f, r, changed, parent)
		folders = append([]Folder{f}, folders...)
		if changed = r.scribble(rng, 60); len(folders) == 5 {
			break
		}
	}
	// What was scribbled last is not saved: take it back by comparing with a copy.
	last := folder(t.TempDir())
	save(t, last, r, changed, parent)
	folders = append([]Folder{last}, folders...)

	chain, err := Chain(folders)
	if err != nil {
		t.Fatal(err)
	}
	got := newRAM(3<<20+5*4096, 700*4096)
	for i := len(chain) - 1; i >= 0; i-- {
		if err := ReadMemory(folders[i], chain[i], got.view, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i := range r.bytes {
		if !bytes.Equal(got.bytes[i], r.bytes[i]) {
			t.Errorf("range %d is not what was saved", i)
		}
	}
	sections, err := ReadState(last, chain[0])
	if err != nil || string(sections["a"]) != "state a" || len(sections) != 2 {
		t.Errorf("sections %q, %v", sections, err)
	}
	if _, err := Chain(folders[:3]); !errors.Is(err, ErrParent) {
		t.Errorf("a chain without its beginning: %v", err)
	}
	if _, err := Chain([]Folder{folders[0], folders[2]}); !errors.Is(err, ErrParent) {
		t.Errorf("a chain with a gap: %v", err)
	}
}

// A whole save of memory that is mostly zero is as small as what is not.
func TestSparse(t *testing.T) {
	for _, size := range []uint64{1 << 20, 10 << 20, 100 << 20} {
		r := newRAM(size)
		r.bytes[0][12345] = 1
		f := folder(t.TempDir())
		save(t, f, r, r.ranges, nil)
		st, err := os.Stat(filepath.Join(string(f), fileMemory))
		if err != nil || st.Size() != blockHeader+4096 {
			t.Errorf("%d bytes of memory: the file has %d, %v", size, st.Size(), err)
		}
	}
}

// Every byte counts: whichever is changed, or cut off, is told, and by name.
func TestDamage(t *testing.T) {
	r := newRAM(600 * 4096)
	r.scribble(rand.New(rand.NewPCG(5, 6)), 300)
	good := folder(t.TempDir())
	save(t, good, r, r.ranges, nil)
	if _, err := Verify(good, nil); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(7, 8))
	for _, name := range []string{fileMemory, fileState, fileManifest} {
		b, err := os.ReadFile(filepath.Join(string(good), name))
		if err != nil {
			t.Fatal(err)
		}
		for i := range 120 {
			bad := folder(t.TempDir())
			if err := os.CopyFS(string(bad), os.DirFS(string(good))); err != nil {
				t.Fatal(err)
			}
			c := bytes.Clone(b)
			at := rng.IntN(len(c))
			switch i % 3 {
			case 0:
				c[at] ^= 1 << rng.IntN(8)
			case 1:
				c = c[:at]
			case 2:
				c = append(c, c[:at%64+1]...)
			}
			if err := os.WriteFile(filepath.Join(string(bad), name), c, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Verify(bad, nil)
			if err == nil && name == fileManifest && sameJSON(b, c) {
				continue // only white space is different
			}
			if err == nil || !errors.Is(err, ErrDamaged) && !strings.Contains(err.Error(), "newer release") {
				t.Errorf("%s changed at %d (%d): %v", name, at, i%3, err)
			}
		}
	}
	if err := os.Remove(filepath.Join(string(good), fileManifest)); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(good, nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "broken off") {
		t.Errorf("without a manifest: %v", err)
	}
}

func sameJSON(a, b []byte) bool {
	var x, y bytes.Buffer
	return json.Compact(&x, a) == nil && json.Compact(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func TestNewerIsRefused(t *testing.T) {
	m := Manifest{Version: Version + 1, ID: "x", Ranges: []hypervisor.Range{{Size: 4096}}}
	b, err := m.seal()
	if err != nil {
		t.Fatal(err)
	}
	f := folder(t.TempDir())
	if err := os.WriteFile(filepath.Join(string(f), fileManifest), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadManifest(f); err == nil || !strings.Contains(err.Error(), "newer release") {
		t.Errorf("%v", err)
	}
}

// A disk that is full leaves nothing that looks like a saved machine.
func TestFullDisk(t *testing.T) {
	labtest.NeedRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		labtest.Missing(t, "cannot mount a small tmpfs: %v", err)
	}
	defer func() { _ = unix.Unmount(dir, 0) }()
	r := newRAM(4 << 20)
	for i := range r.bytes[0] {
		r.bytes[0][i] = 1
	}
	w, err := NewWriter(folder(dir), nil, r.ranges, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abandon()
	err = w.Memory(r.ranges, r.view, nil)
	if err == nil {
		_, err = w.Commit()
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	if _, err := Verify(folder(dir), nil); err == nil {
		t.Error("it looks like a saved machine")
	}
}

// FuzzRead reads files that anyone may have made.
func FuzzRead(f *testing.F) {
	r := newRAM(300 * 4096)
	r.bytes[0][5000] = 1
	dir := f.TempDir()
	w, err := NewWriter(folder(dir), json.RawMessage("{}"), r.ranges, nil)
	if err != nil {
		f.Fatal(err)
	}
	if err := w.Memory(r.ranges, r.view, nil); err != nil {
		f.Fatal(err)
	}
	m, err := w.Commit()
	if err != nil {
		f.Fatal(err)
	}
	memory, err := os.ReadFile(filepath.Join(dir, fileMemory))
	if err != nil {
		f.Fatal(err)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, fileManifest))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(memory, manifest)
	f.Add(memory[:100], []byte(`{"version":1}`))
	into := newRAM(300 * 4096)
	f.Fuzz(func(t *testing.T, memory, manifest []byte) {
		d := files{fileMemory: memory, fileManifest: manifest, fileState: []byte("{}")}
		_, _ = Verify(d, nil)
		// Blocks too that no manifest stands for.
		_ = ReadMemory(d, m, into.view, nil)
	})
}

// files is a Folder of files in memory.
type files map[string][]byte

func (f files) Create(string) (*os.File, error) { return nil, os.ErrPermission }

func (f files) Open(name string) (*os.File, error) {
	b, ok := f[name]
	if !ok {
		return nil, os.ErrNotExist
	}
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	_, err = file.WriteAt(b, 0)
	return file, err
}
