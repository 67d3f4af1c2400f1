package linux

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

const fdStructs = `
task_struct   files:8
files_struct  count:8 fdt:8
fdtable       max_fds:4 fd:8 close_on_exec:8 open_fds:8
`

// fdMemory is a files_struct at fakeBase with a table of max slots; files maps
// numbers to what their slots hold, and those of exec close on exec.
func fdMemory(limit uint64, files map[int]uint64, exec ...int) []byte {
	const table, open, onExec, slots = 0x40, 0x100, 0x200, 0x400
	b := make([]byte, 0x4000)
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(b[at:], v) }
	put(8, uint64(fakeBase)+table)
	put(table, limit)
	put(table+8, uint64(fakeBase)+slots)
	put(table+16, uint64(fakeBase)+onExec)
	put(table+24, uint64(fakeBase)+open)
	for fd, v := range files {
		b[open+fd/8] |= 1 << (fd % 8)
		put(slots+fd*8, v)
	}
	for _, fd := range exec {
		b[onExec+fd/8] |= 1 << (fd % 8)
	}
	return b
}

func fdWalkOf(t testing.TB, memory []byte) *fdWalk {
	t.Helper()
	types := &fakeTypes{map[string]profile.Field{}, map[string]uint64{}}
	types.add(fdStructs)
	f := &fdFields{}
	if lost, missing, problems := lookUpFacts(types, f.facts()); len(lost)+len(missing)+len(problems) > 0 {
		t.Fatal(lost, missing, problems)
	}
	f.finish(types)
	return &fdWalk{r: &reader{virtReader: rawMemory(memory), lowest: kernelHalf4Level}, f: f}
}

func TestFDTable(t *testing.T) {
	const file = uint64(fakeBase) + 0x3000
	for _, c := range []struct {
		name   string
		memory []byte
		stop   int // the walk is ended at this number
		want   string
		err    error
	}{
		{"empty", fdMemory(64, nil), -1, "[]", nil},
		{"sparse", fdMemory(256, map[int]uint64{0: file, 1: file, 63: file, 64: file, 200: file}, 1, 200), -1, "[0 1x 63 64 200x]", nil},
		{"slots behind the table's end", fdMemory(128, map[int]uint64{5: file, 130: file}), -1, "[5]", nil},
		{"a number without a file yet", fdMemory(64, map[int]uint64{3: 0, 4: file}), -1, "[4]", nil},
		{"a wild pointer among others", fdMemory(64, map[int]uint64{3: 0x4141, 4: file}), -1, "[4]", ErrWild},
		{"stopped", fdMemory(256, map[int]uint64{3: file, 100: file, 200: file}), 100, "[3 100]", nil},
		{"a size that is none", fdMemory(100, map[int]uint64{3: file}), -1, "[]", ErrTorn},
		{"a huge size", fdMemory(1<<31, map[int]uint64{3: file}), -1, "[]", ErrTorn},
		{"bitmaps that end early", fdMemory(maxFDs, map[int]uint64{3: file}), -1, "[3]", hypervisor.ErrUnreadable},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := []string{}
			err := fdWalkOf(t, c.memory).walk(t.Context(), fakeBase, func(fd int, at hypervisor.VirtAddr, onExec bool) bool {
				if uint64(at) != file {
					t.Errorf("file %d lies at %v", fd, at)
				}
				mark := ""
				if onExec {
					mark = "x"
				}
				got = append(got, fmt.Sprint(fd, mark))
				return fd != c.stop
			})
			if c.name == "bitmaps that end early" {
				got = slices.DeleteFunc(got, func(s string) bool { return s != "3" }) // what follows is read as one
			}
			if fmt.Sprint(got) != c.want || !errors.Is(err, c.err) {
				t.Errorf("%v, %v; want %s, %v", got, err, c.want, c.err)
			}
		})
	}
}

func FuzzFDTable(f *testing.F) {
	const file = uint64(fakeBase) + 0x3000
	f.Add(fdMemory(256, map[int]uint64{0: file, 64: file, 200: 1}, 64)[:0x1000])
	f.Add(fdMemory(maxFDs, map[int]uint64{3: file})[:0x800])
	f.Fuzz(func(t *testing.T, memory []byte) {
		last, n := -1, 0
		err := fdWalkOf(t, memory).walk(t.Context(), fakeBase, func(fd int, at hypervisor.VirtAddr, _ bool) bool {
			if fd <= last || fd >= maxFDs || at < kernelHalf4Level || at%8 != 0 {
				t.Errorf("file %d at %v after %d", fd, at, last)
			}
			last, n = fd, n+1
			return true
		})
		if n > 8*len(memory) {
			t.Errorf("%d files in %d bytes: %v", n, len(memory), err)
		}
	})
}

func TestFileTime(t *testing.T) {
	for _, c := range []struct {
		sec, nsec uint64
		want      string
	}{
		{0, 0, "1970-01-01 00:00:00 +0000 UTC"},
		{1_700_000_000, 999_999_999, "2023-11-14 22:13:20.999999999 +0000 UTC"},
		{^uint64(0), 0, "1969-12-31 23:59:59 +0000 UTC"},
		{1 << 62, 0, "0001-01-01 00:00:00 +0000 UTC"}, // no year that JSON knows
		{0, 1_000_000_000, "0001-01-01 00:00:00 +0000 UTC"},
	} {
		if got := fileTime(c.sec, c.nsec).String(); got != c.want {
			t.Errorf("%d.%d: %s, want %s", int64(c.sec), c.nsec, got, c.want)
		}
	}
}

// A tail page's word is the first one's address or, in newer kernels, a mask.
func TestCompoundHead(t *testing.T) {
	const head = hypervisor.VirtAddr(0xffff_ea00_0010_0000)
	for _, info := range []uint64{uint64(head) + 1, 0xffff_ffff_ffff_8001} {
		for _, tail := range []hypervisor.VirtAddr{0x40, 0x7fc0} {
			if got := compoundHead(head+tail, info); got != head {
				t.Errorf("word %#x of the page at %v: %v, want %v", info, head+tail, got, head)
			}
		}
	}
}

func TestMapFlags(t *testing.T) {
	const flags = vmRead | vmExec | 1<<vmBitMaybeGuard | 1<<35 | 1<<vmBitArch5 | 1<<60
	for _, c := range []struct {
		f    mapFields
		want string
	}{{mapFields{}, "[rd ex dw ui]"}, {mapFields{bitmap: field{ok: true}, shadowStack: true}, "[rd ex gu ss]"}} {
		if got := fmt.Sprint(c.f.mapFlags(flags)); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}
