package hypervisor

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"
)

func mapFile(t *testing.T, b []byte) (view []byte, f *os.File) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "f"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if view, err = unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(view) })
	return view, f
}

func TestCopyViewOfTornFile(t *testing.T) {
	data := make([]byte, 64<<10)
	for i := range data {
		data[i] = byte(i>>8 ^ i)
	}
	view, f := mapFile(t, data)
	p := make([]byte, len(data))
	if n, err := CopyView(p, view); n != len(data) || err != nil || !bytes.Equal(p, data) {
		t.Fatalf("CopyView = %d, %v", n, err)
	}
	const kept = 5 * PageSize
	if err := f.Truncate(kept); err != nil {
		t.Fatal(err)
	}
	for _, start := range []int{0, 1, 4095, 3 * PageSize, kept - 1, kept, kept + 1, 7*PageSize + 5} {
		clear(p)
		n, err := CopyView(p, view[start:])
		var fault *FaultError
		if want := max(kept-start, 0); n != want || !errors.As(err, &fault) || !errors.Is(err, ErrUnreadable) {
			t.Errorf("CopyView from %d = %d, %v; want %d and a *FaultError", start, n, err, want)
		} else if !bytes.Equal(p[:n], data[start:start+n]) {
			t.Errorf("CopyView from %d copied wrong bytes", start)
		}
	}
	if n, err := CopyView(p[:100], view); n != 100 || err != nil {
		t.Errorf("CopyView of what is left = %d, %v", n, err)
	}
}

func TestGuardLetsOtherPanicsPass(t *testing.T) {
	for name, f := range map[string]func(){
		"value":           func() { panic("mine") },
		"nil dereference": func() { var p *int; *p = 1 },
		"index":           func() { var s []int; i := 3; s[i] = 1 },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: Guard swallowed the panic", name)
				}
			}()
			if err := Guard(f); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}()
	}
	// The setting is put back: a nested Guard does not end the outer one.
	view, f := mapFile(t, make([]byte, PageSize))
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	var sum byte
	err := Guard(func() {
		if err := Guard(func() { sum += view[0] }); err == nil {
			t.Error("inner Guard saw no fault")
		}
		sum += view[1]
	})
	if !errors.Is(err, ErrUnreadable) {
		t.Errorf("outer Guard: %v", err)
	}
	if err := Guard(func() {}); err != nil {
		t.Errorf("Guard of nothing: %v", err)
	}
	if debug.SetPanicOnFault(false) {
		t.Error("Guard did not put SetPanicOnFault back")
	}
}
