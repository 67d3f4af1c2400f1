package disk

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestRandomOperations does what a guest might, on every kind of image, and
// compares with a plain slice, and in the end with what QEMU reads.
func TestRandomOperations(t *testing.T) {
	t.Parallel()
	for _, k := range kinds() {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			const size = 3<<20 + 7*512
			model := pattern(size, 3)
			clear(model[size/4 : size/3]) // sparse in places
			path, format := k.make(t, model)
			rng := rand.New(rand.NewPCG(1, uint64(len(k.name))))
			for round := range 3 {
				d, err := Open(path, Options{Format: format})
				if err != nil {
					t.Fatal(err)
				}
				if d.Size() != size {
					t.Fatalf("size %d, want %d", d.Size(), size)
				}
				for op := range 150 {
					if err := randomOperation(rng, d, model); err != nil {
						t.Fatalf("round %d, operation %d: %v", round, op, err)
					}
				}
				got := make([]byte, size)
				if err := d.ReadV([][]byte{got}, 0); err != nil {
					t.Fatal(err)
				}
				sameBytes(t, "our own reading", got, model)
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				if format == FormatQcow2 {
					if leaks := check(t, path); leaks > 0 {
						t.Errorf("%d clusters have leaked", leaks)
					}
					sameBytes(t, "what qemu-img reads", content(t, path), model)
				}
			}
		})
	}
}

// randomOperation does something to both. What Discard leaves is read back.
func randomOperation(rng *rand.Rand, d Disk, model []byte) error {
	unit := uint64(512)
	if rng.IntN(8) == 0 {
		unit = 1 // not what a guest does, but nothing depends on it
	}
	size := uint64(len(model))
	off := rng.Uint64N(size) / unit * unit
	limit := uint64(20 << 10)
	if rng.IntN(6) == 0 {
		limit = 600 << 10
	}
	n := min(size-off, (1+rng.Uint64N(limit))/unit*unit+unit)
	part := model[off : off+n]
	var err error
	switch op := rng.IntN(10); op {
	case 0, 1, 2, 3:
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		copy(part, b)
		err = d.WriteV(pieces(rng, b), off)
	case 4, 5:
		clear(part)
		err = d.WriteZeroes(off, n, op == 4)
	case 6:
		if err = d.Discard(off, n); err != nil {
			break
		}
		got := make([]byte, n)
		err = d.ReadV(pieces(rng, got), off)
		for i := range got {
			if got[i] != 0 && got[i] != part[i] {
				return fmt.Errorf("after Discard %#x+%#x byte %#x is %#x: neither zero nor what it was", off, n, i, got[i])
			}
		}
		copy(part, got)
	case 7:
		err = d.Flush()
	default:
		got := make([]byte, n)
		err = d.ReadV(pieces(rng, got), off)
		for i := range got {
			if got[i] != part[i] {
				return fmt.Errorf("read %#x+%#x: byte %#x is %#x, want %#x", off, n, i, got[i], part[i])
			}
		}
	}
	return err
}

// pieces cuts b as a guest's descriptors do.
func pieces(rng *rand.Rand, b []byte) [][]byte {
	var iov [][]byte
	for len(b) > 0 {
		n := 1 + rng.IntN(len(b))
		iov = append(iov, b[:n])
		b = b[n:]
	}
	return iov
}

func TestBounds(t *testing.T) {
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
		defer d.Close()
		buf := make([]byte, 1024)
		for _, off := range []uint64{1<<20 - 512, 1 << 20, 1<<64 - 512, 1 << 63} {
			for name, err := range map[string]error{
				"read":    d.ReadV([][]byte{buf}, off),
				"write":   d.WriteV([][]byte{buf}, off),
				"discard": d.Discard(off, 1024),
				"zeroes":  d.WriteZeroes(off, 1024, true),
				"all":     d.WriteZeroes(512, 1<<64-1, false),
			} {
				if !errors.Is(err, ErrBounds) {
					t.Errorf("%s: %s at %#x: %v", k.name, name, off, err)
				}
			}
		}
		if err := d.ReadV(nil, 1<<20); err != nil {
			t.Errorf("%s: nothing at the end: %v", k.name, err)
		}
		ro, err := Open(path, Options{Format: format, ReadOnly: true, NoLock: true})
		if err != nil {
			t.Fatal(err)
		}
		for name, err := range map[string]error{
			"write":   ro.WriteV([][]byte{buf}, 0),
			"discard": ro.Discard(0, 1024),
			"zeroes":  ro.WriteZeroes(0, 1024, true),
		} {
			if !errors.Is(err, ErrReadOnly) {
				t.Errorf("%s: %s of a read-only disk: %v", k.name, name, err)
			}
		}
		if err := errors.Join(ro.Flush(), ro.Close(), ro.Close()); err != nil {
			t.Error(err)
		}
		if err := ro.ReadV([][]byte{buf}, 0); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: read after Close: %v", k.name, err)
		}
	}
}
