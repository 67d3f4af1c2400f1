package qemu_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// backends are the ways in which QEMU can have its memory.
var backends = []struct {
	name   string
	shared bool
	args   func(dir, size string) []string
}{
	{"private", false, func(_, _ string) []string { return nil }},
	{"memory-backend-ram", false, func(_, size string) []string {
		return []string{"-object", "memory-backend-ram,id=m,size=" + size, "-machine", "memory-backend=m"}
	}},
	{"memfd", true, func(_, size string) []string {
		return []string{"-object", "memory-backend-memfd,id=m,size=" + size, "-machine", "memory-backend=m"}
	}},
	{"memfd-json", true, func(_, _ string) []string {
		return []string{"-object", `{"qom-type":"memory-backend-memfd","id":"m","size":67108864,"share":true}`, "-machine", "memory-backend=m"}
	}},
	{"file-shared", true, func(dir, size string) []string {
		return []string{"-object", "memory-backend-file,id=m,share=on,mem-path=" + filepath.Join(dir, "ram") + ",size=" + size, "-machine", "memory-backend=m"}
	}},
	{"file-private", false, func(dir, size string) []string {
		return []string{"-object", "memory-backend-file,id=m,mem-path=" + filepath.Join(dir, "ram") + ",size=" + size, "-machine", "memory-backend=m"}
	}},
	{"ram-shared", true, func(_, size string) []string {
		return []string{"-object", "memory-backend-ram,id=m,share=on,size=" + size, "-machine", "memory-backend=m"}
	}},
	{"mem-path", false, func(dir, _ string) []string { return []string{"-mem-path", dir} }},
}

// Every byte of RAM, of every kind of backend, is what QEMU says it is.
func TestMemoryAgainstQEMU(t *testing.T) {
	labtest.NeedRoot(t)
	for _, board := range []string{"pc", "q35"} {
		for i, b := range backends {
			if board == "q35" && i > 0 {
				continue // the board is no matter of the backend
			}
			t.Run(board+"/"+b.name, func(t *testing.T) {
				args := append([]string{"-machine", board, "-m", "64"}, b.args(tempDir(t), "64M")...)
				m := start(t, true, args...)
				m.settle()
				for _, o := range []qemu.Options{{}, {NoQMP: true}} {
					vm := m.open(o)
					want := hypervisor.Range{Start: 0, Size: 64 << 20}
					if got := vm.Ranges(); len(got) != 1 || got[0] != want {
						t.Fatalf("Ranges = %v, want %v", got, want)
					}
					m.compare(vm, 0, 64<<20)
					checkMap(t, vm, b.shared)
				}
			})
		}
	}
}

func checkMap(t *testing.T, vm *qemu.VM, shared bool) {
	t.Helper()
	view, err := vm.MapPhys(0xf0000, 0x10000)
	if !shared {
		var no *hypervisor.NotSupportedError
		if !errors.As(err, &no) || no.Remedy == "" {
			t.Fatalf("MapPhys of private memory = %v, want a *NotSupportedError with a remedy", err)
		}
		return
	}
	if err != nil || len(view) != 0x10000 {
		t.Fatalf("MapPhys = %d bytes, %v", len(view), err)
	}
	p := make([]byte, len(view))
	if err := hypervisor.ReadFull(vm, p, 0xf0000); err != nil {
		t.Fatal(err)
	}
	if i := diff(p, view); i >= 0 {
		t.Fatalf("view differs from read at %#x", 0xf0000+i)
	}
}

// The layout with QMP, without QMP, and QEMU's own are one, and so are the bytes
// at the ends of its ranges.
func TestLayout(t *testing.T) {
	labtest.NeedRoot(t)
	for _, board := range []string{"pc", "q35", "pc-i440fx-1.7", "microvm", "pc,max-ram-below-4g=2G", "q35,max-ram-below-4g=1G"} {
		for _, size := range []string{"128M", "512M", "2560M", "2815M", "2816M", "3G", "3500M", "3584M", "4G", "6G"} {
			t.Run(board+"/"+size, func(t *testing.T) {
				args := []string{"-machine", board, "-m", size, "-S"}
				m := start(t, false, args...)
				want := flatRAM(m.hmp("info mtree -f"))
				m.kill()
				if len(want) == 0 {
					t.Fatal("no RAM in QEMU's flat view")
				}
				marks := map[hypervisor.PhysAddr]uint64{}
				for _, r := range want {
					for _, gpa := range []hypervisor.PhysAddr{r.Start, r.End() - 8} {
						marks[gpa] = uint64(gpa) ^ 0x5a5a_a5a5_0f0f_f0f0
						args = append(args, "-device", fmt.Sprintf("loader,addr=%#x,data=%#x,data-len=8", uint64(gpa), marks[gpa]))
					}
				}
				m = start(t, true, args...)
				for _, o := range []qemu.Options{{}, {NoQMP: true}} {
					vm := m.open(o)
					got := vm.Ranges()
					if got[0].Start != 0 {
						t.Fatalf("Ranges = %v", got)
					}
					above := append([]hypervisor.Range{{Start: 1 << 20, Size: got[0].Size - 1<<20}}, got[1:]...)
					if a, b := fmt.Sprint(above), fmt.Sprint(want); a != b {
						t.Fatalf("%+v: RAM above 1 MiB is %s, QEMU says %s", o, a, b)
					}
					for gpa, v := range marks {
						var p [8]byte
						if err := hypervisor.ReadFull(vm, p[:], gpa); err != nil {
							t.Fatal(err)
						}
						if got := binary.LittleEndian.Uint64(p[:]); got != v {
							t.Errorf("%+v: %v holds %#x, want %#x", o, gpa, got, v)
						}
					}
				}
			})
		}
	}
}

// flatRAM returns the RAM above 1 MiB in the text of `info mtree -f`, read by
// other code than the driver's.
func flatRAM(text string) []hypervisor.Range {
	var out []hypervisor.Range
	_, text, _ = strings.Cut(strings.ReplaceAll(text, "\r", ""), "Root memory region: system\n")
	text, _, _ = strings.Cut(text, "\n\n")
	for line := range strings.Lines(text) {
		var lo, hi uint64
		var prio int
		var kind, name string
		if n, _ := fmt.Sscanf(line, "  %x-%x (prio %d, %s %s", &lo, &hi, &prio, &kind, &name); n != 5 || kind != "ram):" || hi < 1<<20 {
			continue
		}
		if name == "pc.bios" || strings.Contains(name, "vram") {
			continue
		}
		lo = max(lo, 1<<20)
		out = append(out, hypervisor.Range{Start: hypervisor.PhysAddr(lo), Size: hi + 1 - lo})
	}
	return out
}

func TestConformance(t *testing.T) {
	labtest.NeedRoot(t)
	for _, shared := range []bool{true, false} {
		t.Run(fmt.Sprintf("shared=%v", shared), func(t *testing.T) {
			args := []string{"-machine", "q35", "-m", "3G", "-smp", "2", "-name", "conformance"}
			if shared {
				args = append(args, "-object", "memory-backend-memfd,id=m,size=3G", "-machine", "memory-backend=m")
			}
			m := start(t, true, args...)
			m.settle()
			m.execute("cont")
			d := qemu.New(qemu.Options{})
			hypervisortest.Conformance(t, hypervisortest.Config{
				Open: func(t testing.TB) hypervisor.VM {
					vm, err := d.Open(t.Context(), m.target())
					if err != nil {
						t.Fatal(err)
					}
					if !shared { // what hypervisortest asks of a Mapper is that it maps
						return unmapped{vm.(*qemu.VM)}
					}
					return vm
				},
				Driver:    d,
				Missing:   "no-such-vm",
				Ranges:    []hypervisor.Range{{Start: 0, Size: 2 << 30}, {Start: 4 << 30, Size: 1 << 30}},
				ReadTruth: m.read,
			})
		})
	}
}

// unmapped hides MapPhys.
type unmapped struct{ vm }

type vm interface {
	hypervisor.VM
	hypervisor.Pauser
	hypervisor.RegisterReader
	hypervisor.Live
}
