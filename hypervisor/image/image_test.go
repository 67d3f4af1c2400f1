package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
)

func writeFile(t testing.TB, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, target string) hypervisor.VM {
	t.Helper()
	vm, err := New(Options{}).Open(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = vm.Close() })
	return vm
}

func readAll(t testing.TB, vm hypervisor.VM, gpa hypervisor.PhysAddr, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := hypervisor.ReadFull(vm, p, gpa); err != nil {
		t.Fatal(err)
	}
	return p
}

var testPieces = []piece{
	{0x1000, pattern(0x1000, 0x9e000)},
	{0x100000, pattern(0x100000, 17<<20)},
	{1 << 32, pattern(1<<32, 1<<20+0x1000)},
}

func ranges(pieces ...piece) []hypervisor.Range {
	var rs []hypervisor.Range
	for _, p := range pieces {
		rs = append(rs, hypervisor.Range{Start: hypervisor.PhysAddr(p.phys), Size: uint64(len(p.data))})
	}
	return rs
}

func TestConformance(t *testing.T) {
	raw := piece{0, pattern(0, 3<<20+5)}
	qemuNotes := append(elfNote("CORE", 1, make([]byte, 336)), elfNote("QEMU", 0, testCPU(0))...)
	for _, c := range []struct {
		name   string
		file   []byte
		query  string
		pieces []piece
		want   hypervisortest.Capability
	}{
		{"raw", raw.data, "", []piece{raw}, hypervisortest.CanMap},
		{"elf", encodeELF(nil, testPieces...), "", testPieces, hypervisortest.CanMap},
		{"elf-registers", encodeELF(qemuNotes, testPieces...), "?format=elf", testPieces, hypervisortest.CanMap | hypervisortest.CanRegisters},
		{"elf32", encodeELF32(testPieces[:2]...), "", testPieces[:2], hypervisortest.CanMap},
		{"lime", encodeLiME(testPieces...), "", testPieces, hypervisortest.CanMap},
		{"avml", encodeAVML(testPieces...), "", testPieces, hypervisortest.CanNothing},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeFile(t, c.name, c.file)
			// Less cache than the file has memory, so that chunks come and go.
			d := New(Options{CacheBytes: 1 << 20})
			hypervisortest.Conformance(t, hypervisortest.Config{
				Open: func(t testing.TB) hypervisor.VM {
					vm, err := d.Open(t.Context(), path+c.query)
					if err != nil {
						t.Fatal(err)
					}
					return vm
				},
				Driver: d, Missing: path + "-not-there",
				Ranges: ranges(c.pieces...), ReadTruth: truth(c.pieces...),
				Want: c.want, Lacks: hypervisortest.CanAll &^ c.want,
			})
		})
	}
}

// A file that cannot be mapped is read.
func TestConformanceWithoutMapping(t *testing.T) {
	for _, regs := range []int{0, 1} {
		path := writeFile(t, "x.elf", encodeELF(bytes.Repeat(elfNote("QEMU", 0, testCPU(0)), regs), testPieces...))
		want := hypervisortest.CanNothing
		if regs > 0 {
			want = hypervisortest.CanRegisters
		}
		hypervisortest.Conformance(t, hypervisortest.Config{
			Open: func(t testing.TB) hypervisor.VM {
				d := New(Options{})
				d.noMap = true
				vm, err := d.Open(t.Context(), path)
				if err != nil {
					t.Fatal(err)
				}
				return vm
			},
			Ranges: ranges(testPieces...), ReadTruth: truth(testPieces...),
			Want: want, Lacks: hypervisortest.CanAll &^ want,
		})
	}
}

func TestInfo(t *testing.T) {
	path := writeFile(t, "mem.lime", encodeLiME(piece{0x1000, make([]byte, 0x3000)}))
	info := open(t, path).Info()
	want := hypervisor.Info{
		Name: "mem.lime", URI: "image:" + path, Driver: "image",
		State: hypervisor.StateStatic, MemoryBytes: 0x3000,
	}
	if info != want {
		t.Errorf("Info() = %+v, want %+v", info, want)
	}
	if l, err := New(Options{}).List(t.Context()); len(l) != 0 || err != nil {
		t.Errorf("List() = %v, %v", l, err)
	}
}

func TestOpenOptions(t *testing.T) {
	dir := t.TempDir()
	odd := filepath.Join(dir, "a?hole=pc")
	if err := os.WriteFile(odd, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := open(t, odd).Info(); got.Name != "a?hole=pc" || got.URI != "image:"+odd {
		t.Errorf("a path with a question mark: %+v", got)
	}
	if got := open(t, odd+"?format=raw").Info(); got.Name != "a?hole=pc" || got.URI != "image:"+odd+"?format=raw" {
		t.Errorf("a path with a question mark and an option: %+v", got)
	}
	for target, want := range map[string]string{
		"":                        "no path",
		odd + "?color=red":        "unknown option",
		odd + "?format=vmdk":      "unknown value",
		odd + "?hole=arm":         "unknown value",
		odd + "?partial=maybe":    "unknown value",
		dir:                       "neither a file nor a block device",
		filepath.Join(dir, "nix"): "no such VM",
		"/dev/zero":               "neither a file nor a block device",
	} {
		if vm, err := New(Options{}).Open(t.Context(), target); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q) = %v, %v; want %q", target, vm, err, want)
		}
	}
}

func TestAVMLAndLiMEAreEqual(t *testing.T) {
	lime := open(t, writeFile(t, "x.lime", encodeLiME(testPieces...)))
	avml := open(t, writeFile(t, "x.avml", encodeAVML(testPieces...)))
	for _, r := range lime.Ranges() {
		if !bytes.Equal(readAll(t, lime, r.Start, int(r.Size)), readAll(t, avml, r.Start, int(r.Size))) {
			t.Errorf("range %v differs", r)
		}
	}
}

// AVML leaves out blocks that are all zero: what it does not say is not RAM.
func TestAVMLZeroBlocks(t *testing.T) {
	d := make([]byte, 48<<20)
	copy(d, "first")
	copy(d[40<<20:], "last")
	vm := open(t, writeFile(t, "x.avml", encodeAVML(piece{0, d})))
	want := []hypervisor.Range{{Start: 0, Size: 16 << 20}, {Start: 32 << 20, Size: 16 << 20}}
	if rs := vm.Ranges(); len(rs) != 2 || rs[0] != want[0] || rs[1] != want[1] {
		t.Errorf("Ranges() = %v, want %v", rs, want)
	}
	if _, err := vm.ReadPhys(make([]byte, 1), 20<<20); !hypervisor.IsHole(err) {
		t.Errorf("reading a block that was left out: %v", err)
	}
}

func TestAVMLDamagedChunk(t *testing.T) {
	data := pattern(0, 1<<20)
	const chunk = 32 + 10 // the first one: its header, its checksum, its data
	for name, at := range map[string]int{"checksum": chunk + 4, "data": chunk + 4 + 4 + 100} {
		b := encodeAVML(piece{0, data})
		b[at] ^= 1
		vm := open(t, writeFile(t, "x.avml", b))
		p := make([]byte, 1<<20)
		for range 2 {
			n, err := vm.ReadPhys(p, 0)
			var bad *hypervisor.AddressError
			if n != 0 || !errors.Is(err, hypervisor.ErrUnreadable) || !errors.As(err, &bad) || !strings.Contains(err.Error(), "checksum") {
				t.Errorf("%s: ReadPhys = %#x, %v", name, n, err)
			}
		}
		// The damage is that chunk's alone.
		if got := readAll(t, vm, 1<<16, 15<<16); !bytes.Equal(got, data[1<<16:]) {
			t.Errorf("%s: the rest is wrong", name)
		}
	}
}

// What is cut off the file while it is open fails to read and hurts nobody.
func TestTruncatedWhileOpen(t *testing.T) {
	data := pattern(0, 1<<20)
	for name, c := range map[string]struct {
		file []byte
		keep int64 // bytes of memory that stay readable
		cut  int64
	}{
		"raw":  {data, 0x81000, 0x81000},
		"lime": {encodeLiME(piece{0, data}), 0x81000 - 32, 0x81000},
		"avml": {encodeAVML(piece{0, data}), 0, 100},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, name, c.file)
			vm := open(t, path)
			var view []byte
			if m, ok := vm.(hypervisor.Mapper); ok {
				var err error
				if view, err = m.MapPhys(0, 1<<20); err != nil || len(view) != 1<<20 {
					t.Fatalf("MapPhys = %d bytes, %v", len(view), err)
				}
			}
			if err := os.Truncate(path, c.cut); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 1<<20)
			n, err := vm.ReadPhys(p, 0)
			if int64(n) != c.keep || !errors.Is(err, hypervisor.ErrUnreadable) {
				t.Errorf("ReadPhys = %#x, %v; want %#x and ErrUnreadable", n, err, c.keep)
			}
			if !bytes.Equal(p[:n], data[:n]) {
				t.Error("what was read is wrong")
			}
			if view == nil {
				return
			}
			sum := 0
			err = hypervisor.Guard(func() {
				for _, b := range view {
					sum += int(b)
				}
			})
			if !errors.Is(err, hypervisor.ErrUnreadable) {
				t.Errorf("reading the view: %v", err)
			}
		})
	}
}

func TestPartial(t *testing.T) {
	data := pattern(0, 1<<20)
	for name, file := range map[string][]byte{
		"lime": encodeLiME(piece{0, data}, piece{1 << 30, data}),
		"avml": encodeAVML(piece{0, data}, piece{1 << 30, data}),
		"elf":  encodeELF(nil, piece{0, data}, piece{1 << 30, data}),
	} {
		t.Run(name, func(t *testing.T) {
			cut := len(file) - len(file)/4
			path := writeFile(t, name, file[:cut])
			_, err := New(Options{}).Open(t.Context(), path)
			var bad *FormatError
			if !errors.As(err, &bad) || bad.Offset != int64(cut) || bad.Path != path || !strings.Contains(err.Error(), "truncated") {
				t.Errorf("Open of a truncated file: %v", err)
			}
			vm := open(t, path+"?partial=1")
			if got := vm.Info().MemoryBytes; got != 2<<20 {
				t.Errorf("%d bytes of memory, want all that was named", got)
			}
			if !bytes.Equal(readAll(t, vm, 0, 1<<20), data) {
				t.Error("the part that is there is wrong")
			}
			p := make([]byte, 1<<20)
			n, err := vm.ReadPhys(p, 1<<30)
			if n < 1<<18 || n == 1<<20 || !errors.Is(err, hypervisor.ErrUnreadable) || !bytes.Equal(p[:n], data[:n]) {
				t.Errorf("ReadPhys over the cut = %#x, %v", n, err)
			}
			if m, ok := vm.(hypervisor.Mapper); ok {
				if v, err := m.MapPhys(1<<30, 1<<20); err != nil || len(v) != n {
					t.Errorf("MapPhys over the cut = %#x bytes, %v; want %#x", len(v), err, n)
				}
				if _, err := m.MapPhys(hypervisor.PhysAddr(1<<30+n), 1); !errors.Is(err, hypervisor.ErrUnreadable) {
					t.Errorf("MapPhys behind the cut: %v", err)
				}
			}
		})
	}
}

// Memory that is named in pieces and merged, in a file that was cut in the first
// of them or before it: the pieces that are missing must not be made up.
func TestPartialOfMergedPieces(t *testing.T) {
	data := pattern(0, 1<<20)
	const at = 64 + 4*56 // where the pieces begin in the file
	for name, have := range map[string]int{"in the first": 0x41000, "in the second": 0x7f000, "before the first": 0} {
		t.Run(name, func(t *testing.T) {
			file := encodeELF(nil, piece{0, data[:0x50000]}, piece{0x50000, data[0x50000:0x80000]}, piece{0x80000, data[0x80000:]})
			vm := open(t, writeFile(t, "cut.elf", file[:at+have])+"?partial=1")
			p := make([]byte, 1<<20)
			n, err := vm.ReadPhys(p, 0)
			if n != have || !errors.Is(err, hypervisor.ErrUnreadable) || !bytes.Equal(p[:n], data[:n]) {
				t.Errorf("ReadPhys = %#x, %v; want %#x", n, err, have)
			}
			for _, gpa := range []hypervisor.PhysAddr{0x60000, 0x90000, 1<<20 - 1} {
				if int(gpa) < have {
					continue
				}
				if n, err := vm.ReadPhys(p[:1], gpa); n != 0 || !errors.Is(err, hypervisor.ErrUnreadable) {
					t.Errorf("ReadPhys at %v = %d, %v", gpa, n, err)
				}
				if v, err := vm.(hypervisor.Mapper).MapPhys(gpa, 1); !errors.Is(err, hypervisor.ErrUnreadable) {
					t.Errorf("MapPhys at %v = %d bytes, %v", gpa, len(v), err)
				}
			}
		})
	}
}
