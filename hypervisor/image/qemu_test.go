package image

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// haltingGuest is a multiboot image that does nothing.
func haltingGuest(t *testing.T) string {
	t.Helper()
	const magic, flags, base = 0x1badb002, 1 << 16, 0x10_0000
	b := make([]byte, 4096)
	copy(b, le(uint32(magic), uint32(flags), uint32(1<<32-magic-flags),
		uint32(base), uint32(base), uint32(base+len(b)), uint32(0), uint32(base+0x40)))
	copy(b[0x40:], "\xf4\xeb\xfd") // hlt; jmp back to it
	return writeFile(t, "halt", b)
}

// guestPieces returns a paused guest's RAM by its own layout, from its RAM file.
func guestPieces(t *testing.T, g *lab.Guest) []piece {
	t.Helper()
	path, err := g.RAMFile()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	ram, err := unix.Mmap(int(f.Fd()), 0, int(g.Config().Memory), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(ram) })
	layout, err := g.Layout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []piece
	for _, r := range layout {
		out = append(out, piece{r.Start, ram[r.RAM : r.RAM+r.Size]})
	}
	return out
}

// compareFormats opens the same guest's memory in every format, and compares it
// byte by byte. core is QEMU's dump.
func compareFormats(t *testing.T, core string, pieces []piece) {
	t.Helper()
	for name, path := range map[string]string{
		"elf":  core,
		"lime": writeFile(t, "x.lime", encodeLiME(pieces...)),
		"avml": writeFile(t, "x.avml", encodeAVML(pieces...)),
	} {
		vm := open(t, path)
		compared := uint64(0)
		for _, p := range pieces {
			buf := make([]byte, 1<<20)
			for off := 0; off < len(p.data); off += len(buf) {
				want := p.data[off:min(off+len(buf), len(p.data))]
				n, err := vm.ReadPhys(buf[:len(want)], hypervisor.PhysAddr(p.phys)+hypervisor.PhysAddr(off))
				if name == "avml" && hypervisor.IsHole(err) && len(bytes.Trim(want[n:], "\x00")) == 0 {
					// A block of zeros that AVML leaves out.
				} else if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if !bytes.Equal(buf[:n], want[:n]) {
					t.Fatalf("%s: the %d bytes at gpa %#x differ", name, n, p.phys+uint64(off))
				}
				compared += uint64(n)
			}
		}
		t.Logf("%s: %d MiB are equal", name, compared>>20)
	}
}

// A guest with known bytes on both sides of 4 GiB.
func TestQEMUDump(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	const above = 1<<32 + 0x5000
	low, high := pattern(0x200000, 1<<20), pattern(above, 1<<20)
	for _, c := range []struct {
		name    string
		machine lab.Machine
		memory  uint64
		above   bool
	}{
		{"pc", lab.PC, 48 * lab.MiB, false},
		// RAM above 4 GiB, though there is little of it.
		{"q35-above-4G", lab.Q35 + ",max-ram-below-4g=32M", 96 * lab.MiB, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			guest := haltingGuest(t)
			known := []piece{{0x200000, low}}
			args := []string{"-device", "loader,force-raw=on,addr=0x200000,file=" + writeFile(t, "low", low)}
			if c.above {
				known = append(known, piece{above, high})
				args = append(args, "-device", fmt.Sprintf("loader,force-raw=on,addr=%#x,file=%s", uint64(above), writeFile(t, "high", high)))
			}
			g := labtest.Boot(t, lab.Config{
				Name: "dump", Kernel: &lab.Kernel{Image: guest}, Initrd: guest, Ready: "-",
				Machine: c.machine, Memory: c.memory, Shared: true, ExtraArgs: args,
			})
			if err := g.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			core := filepath.Join(t.TempDir(), "core")
			if err := g.DumpELF(t.Context(), core); err != nil {
				t.Fatal(err)
			}
			vm := open(t, core)
			for _, k := range known {
				if !bytes.Equal(readAll(t, vm, hypervisor.PhysAddr(k.phys), len(k.data)), k.data) {
					t.Errorf("what was loaded at gpa %#x is not there", k.phys)
				}
			}
			pieces := guestPieces(t, g)
			compareFormats(t, core, pieces)
			hypervisortest.Conformance(t, hypervisortest.Config{
				Open:   func(t testing.TB) hypervisor.VM { return open(t, core) },
				Driver: New(Options{}),
				Want:   hypervisortest.CanMap | hypervisortest.CanRegisters,
			})
		})
	}
}

// compareRegisters compares with `info registers`.
func compareRegisters(t *testing.T, r hypervisor.Registers, text string) {
	t.Helper()
	for name, v := range map[string]uint64{
		"RAX": r.RAX, "RBX": r.RBX, "RCX": r.RCX, "RDX": r.RDX, "RSI": r.RSI, "RDI": r.RDI, "RBP": r.RBP, "RSP": r.RSP,
		"R8 ": r.R8, "R9 ": r.R9, "R10": r.R10, "R11": r.R11, "R12": r.R12, "R13": r.R13, "R14": r.R14, "R15": r.R15,
		"RIP": uint64(r.RIP), "RFL": r.RFLAGS, "CR0": r.CR0, "CR2": r.CR2, "CR3": r.CR3, "CR4": r.CR4,
	} {
		m := regexp.MustCompile(`\b` + name + `=([0-9a-f]+)`).FindStringSubmatch(text)
		if m == nil {
			t.Errorf("no %s in:\n%s", name, text)
			continue
		}
		if want, _ := strconv.ParseUint(m[1], 16, 64); v != want {
			t.Errorf("%s = %#x, QEMU says %#x", name, v, want)
		}
	}
	// EFER is not in the dump; what is derived must be what the guest runs with.
	m := regexp.MustCompile(`EFER=([0-9a-f]+)`).FindStringSubmatch(text)
	if efer, _ := strconv.ParseUint(m[1], 16, 64); efer&(eferLME|eferLMA|eferNXE) != r.EFER {
		t.Errorf("EFER = %#x, QEMU says %#x", r.EFER, efer)
	}
	for name, s := range map[string]hypervisor.Segment{"CS ": r.CS, "SS ": r.SS, "GS ": r.GS, "TR ": r.TR, "LDT": r.LDT} {
		m := regexp.MustCompile(`(?m)^` + name + `=([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+) ([0-9a-f]+)`).FindStringSubmatch(text)
		if m == nil {
			t.Errorf("no %s in:\n%s", name, text)
			continue
		}
		flags, _ := strconv.ParseUint(m[4], 16, 32)
		got := fmt.Sprintf("%04x %016x %08x %04x", s.Selector, s.Base, s.Limit, s.Attributes)
		if want := fmt.Sprintf("%s %s %s %04x", m[1], m[2], m[3], flags>>8&0xf0ff); got != want {
			t.Errorf("%s: %s, QEMU says %s", name, got, want)
		}
	}
	for name, d := range map[string]hypervisor.Table{"GDT": r.GDT, "IDT": r.IDT} {
		want := fmt.Sprintf("%s=     %016x %08x", name, uint64(d.Base), d.Limit)
		if !bytes.Contains([]byte(text), []byte(want)) {
			t.Errorf("%q is not what QEMU says", want)
		}
	}
}

func TestLinuxDump(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	g := labtest.Boot(t, lab.Config{
		Name: "linux", Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 192 * lab.MiB, CPUs: 2, Shared: true, KASLR: true,
		ExtraArgs: []string{"-device", "vmcoreinfo"},
	})
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	core, aliased := filepath.Join(dir, "core"), filepath.Join(dir, "aliased")
	if err := g.DumpELF(t.Context(), core); err != nil {
		t.Fatal(err)
	}
	pieces := guestPieces(t, g)
	compareFormats(t, core, pieces)

	vm := open(t, core)
	rr, err := hypervisor.As[hypervisor.RegisterReader](vm)
	if err != nil {
		t.Fatal(err)
	}
	regs, err := rr.Registers(t.Context())
	if err != nil || len(regs) != 2 {
		t.Fatalf("%d vCPUs, %v", len(regs), err)
	}
	text, err := g.HMP(t.Context(), "info registers -a")
	if err != nil {
		t.Fatal(err)
	}
	cpus := regexp.MustCompile(`CPU#\d+`).Split(string(bytes.ReplaceAll([]byte(text), []byte("\r"), nil)), -1)
	for i, r := range regs {
		compareRegisters(t, r, cpus[i+1])
	}

	// paging=on: a program header for each virtual mapping.
	if _, err := g.Monitor(t.Context(), "dump-guest-memory", map[string]any{"paging": true, "protocol": "file:" + aliased}); err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(aliased)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("dump with paging=on: %d program headers", len(f.Progs))
	_ = f.Close()
	other := open(t, aliased)
	buf := make([]byte, 1<<20)
	compared := 0
	for _, r := range other.Ranges() {
		for at := r.Start; at < r.End(); at += hypervisor.PhysAddr(len(buf)) {
			n := int(min(uint64(len(buf)), uint64(r.End()-at)))
			want := make([]byte, n)
			if err := truth(pieces...)(want, at); err != nil {
				continue // ROM
			}
			if err := hypervisor.ReadFull(other, buf[:n], at); err != nil || !bytes.Equal(buf[:n], want) {
				t.Fatalf("paging=on: %d bytes at %v differ (%v)", n, at, err)
			}
			compared += n
		}
	}
	if compared < 128<<20 {
		t.Errorf("paging=on: only %d bytes compared", compared)
	}
}

// A shared RAM file of a VM with a hole below 4 GiB, opened as it lies there.
func TestQEMURawHole(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	const above = 1<<32 + 0x7000
	data := pattern(above, 64<<10)
	for _, c := range []struct {
		machine lab.Machine
		memory  uint64 // sparse: nothing touches it
	}{{lab.PC, 4 * lab.GiB}, {lab.Q35, 3 * lab.GiB}} {
		t.Run(string(c.machine), func(t *testing.T) {
			guest := haltingGuest(t)
			g := labtest.Boot(t, lab.Config{
				Name: "hole", Kernel: &lab.Kernel{Image: guest}, Initrd: guest, Ready: "-",
				Machine: c.machine, Memory: c.memory, Shared: true,
				ExtraArgs: []string{"-device", fmt.Sprintf("loader,force-raw=on,addr=%#x,file=%s", uint64(above), writeFile(t, "high", data))},
			})
			path, err := g.RAMFile()
			if err != nil {
				t.Fatal(err)
			}
			layout, err := g.Layout(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			vm := open(t, path+"?hole="+string(c.machine))
			if !bytes.Equal(readAll(t, vm, above, len(data)), data) {
				t.Error("what was loaded above 4 GiB is not there")
			}
			// ROM shadows make small holes in QEMU's view: compare the ends.
			last := layout[len(layout)-1]
			rs := vm.Ranges()
			if got := rs[len(rs)-1]; uint64(got.Start) != last.Start || got.Size != last.Size {
				t.Errorf("RAM above 4 GiB is %v, QEMU says %#x bytes at %#x", got, last.Size, last.Start)
			}
			below := slices.IndexFunc(layout, func(r lab.PhysRange) bool { return r.Start >= 1<<32 }) - 1
			if got, want := uint64(rs[0].End()), layout[below].Start+layout[below].Size; got != want {
				t.Errorf("RAM below 4 GiB ends at %#x, QEMU says %#x", got, want)
			}
		})
	}
}
