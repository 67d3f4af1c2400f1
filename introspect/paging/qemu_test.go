package paging

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// guestRAM is a guest's shared RAM file, laid out as QEMU says.
type guestRAM struct {
	file   []byte
	layout []lab.PhysRange
}

func openGuestRAM(t *testing.T, g *lab.Guest) *guestRAM {
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
	m := &guestRAM{}
	if m.file, err = unix.Mmap(int(f.Fd()), 0, int(g.Config().Memory), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(m.file) })
	if m.layout, err = g.Layout(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *guestRAM) Ranges() []hypervisor.Range {
	var rs []hypervisor.Range
	for _, r := range m.layout {
		rs = append(rs, hypervisor.Range{Start: hypervisor.PhysAddr(r.Start), Size: r.Size})
	}
	rs, _ = hypervisor.NormalizeRanges(rs)
	return rs
}

func (m *guestRAM) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	for _, r := range m.layout {
		if off := uint64(gpa) - r.Start; off < r.Size {
			return m.file[r.RAM+off:][:min(limit, r.Size-off)], nil
		}
	}
	return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
}

func (m *guestRAM) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	n := 0
	for n < len(p) {
		b, err := m.MapPhys(gpa+hypervisor.PhysAddr(n), uint64(len(p)-n))
		if err != nil {
			return n, err
		}
		n += copy(p[n:], b)
	}
	return n, nil
}

func hmp(t *testing.T, g *lab.Guest, command string) string {
	t.Helper()
	out, err := g.HMP(t.Context(), command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.ReplaceAll(out, "\r", "")
}

// registers reads the first vCPU's control registers from `info registers`.
func registers(t *testing.T, g *lab.Guest) hypervisor.Registers {
	t.Helper()
	text := hmp(t, g, "info registers")
	r := hypervisor.Registers{Valid: hypervisor.GroupControl}
	for name, p := range map[string]*uint64{"CR0": &r.CR0, "CR3": &r.CR3, "CR4": &r.CR4, "EFER": &r.EFER} {
		m := regexp.MustCompile(`\b` + name + `=([0-9a-f]+)`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in:\n%s", name, text)
		}
		*p, _ = strconv.ParseUint(m[1], 16, 64)
	}
	return r
}

// comparePages compares Mappings with `info tlb`: every page, where it lies, and
// the flags of its own entry.
func comparePages(t *testing.T, as *AddressSpace, text string) []Mapping {
	t.Helper()
	var want []string
	for line := range strings.Lines(text) {
		want = append(want, strings.TrimSpace(line))
	}
	var got []Mapping
	for m, err := range as.Mappings(t.Context(), 0, 0) {
		if err != nil {
			t.Fatalf("Mappings: %+v: %v", m, err)
		}
		got = append(got, m)
	}
	if len(got) != len(want) {
		t.Errorf("%d pages, QEMU has %d", len(got), len(want))
	}
	bad := 0
	for i := range min(len(got), len(want)) {
		m := got[i]
		// X of the page's entry alone; U and W likewise: those are compared
		// below, combined.
		flags := []byte("---------")
		for j, c := range []struct {
			flag Flags
			name byte
		}{{NX, 'X'}, {Global, 'G'}, {0, 0}, {Dirty, 'D'}, {Accessed, 'A'}, {CacheDisable, 'C'}, {WriteThrough, 'T'}} {
			if c.flag != 0 && m.Flags.Has(c.flag) {
				flags[j] = c.name
			}
		}
		if m.Size > 4096 {
			flags[2] = 'P'
		}
		text := want[i]
		if len(text) != 16+2+16+1+9 {
			t.Fatalf("QEMU's line %q is not as expected", text)
		}
		if text[35] == 'X' != (flags[0] == 'X') && text[35] != 'X' {
			flags[0] = '-' // a table above says no execute
		}
		line := fmt.Sprintf("%016x: %016x %s", uint64(m.Virt), uint64(m.Phys), flags[:7])
		if line != text[:42] {
			if bad++; bad < 5 {
				t.Errorf("page %d: %s, QEMU says %s", i, line, text)
			}
		}
	}
	t.Logf("%d pages compared, %d differ", len(got), bad)
	return got
}

// comparePermissions compares the combined permissions with `info mem`.
func comparePermissions(t *testing.T, pages []Mapping, text string) {
	t.Helper()
	var want, got []string
	for line := range strings.Lines(text) {
		want = append(want, strings.TrimSpace(line))
	}
	for i := 0; i < len(pages); {
		const mask = Write | User
		start, flags := pages[i].Virt, pages[i].Flags&mask
		end := start
		for i < len(pages) && pages[i].Virt == end && pages[i].Flags&mask == flags && (end>>63 == start>>63) {
			end += hypervisor.VirtAddr(pages[i].Size)
			i++
			if end == 0 {
				break
			}
		}
		u, w := byte('-'), byte('-')
		if flags.Has(User) {
			u = 'u'
		}
		if flags.Has(Write) {
			w = 'w'
		}
		got = append(got, fmt.Sprintf("%016x-%016x %016x %cr%c", uint64(start), uint64(end), uint64(end-start), u, w))
	}
	if len(got) == len(want) && len(want) > 0 {
		// QEMU prints the end of the address space in its own ways.
		last := len(want) - 1
		if got[last][:16] == want[last][:16] && got[last][34:] == want[last][34:] {
			got[last] = want[last]
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("permissions:\n%s\nQEMU says:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	t.Logf("%d runs of equal permissions compared", len(got))
}

// compareAddress compares one translation with gva2gpa.
func compareAddress(t *testing.T, g *lab.Guest, as *AddressSpace, va hypervisor.VirtAddr) (mapped bool) {
	t.Helper()
	text := strings.TrimSpace(hmp(t, g, fmt.Sprintf("gva2gpa %#x", uint64(va))))
	phys, err := as.PhysOf(va)
	got := "Unmapped"
	if err == nil {
		got = fmt.Sprintf("gpa: %#x", uint64(phys))
		if phys == 0 {
			got = "gpa: 0" // as C's %#x prints it
		}
	}
	if got != text {
		t.Errorf("gva %v: %s (%v), QEMU says %s", va, got, err, text)
	}
	return err == nil
}

// compareBytes compares what ReadVirt reads with QEMU's own reading.
func compareBytes(t *testing.T, g *lab.Guest, as *AddressSpace, va hypervisor.VirtAddr) {
	t.Helper()
	p := make([]byte, 64)
	n, err := as.ReadVirt(p, va)
	if hypervisor.IsHole(err) {
		return // devices and ROM: QEMU reads them, there is no RAM
	}
	text := hmp(t, g, fmt.Sprintf("x /64xb %#x", uint64(va)))
	if n < len(p) {
		if !strings.Contains(text, "Cannot access memory") {
			t.Errorf("ReadVirt(%v) = %d, %v; QEMU reads:\n%s", va, n, err, text)
		}
		return
	}
	var want []byte
	for _, m := range regexp.MustCompile(`\b0x([0-9a-f]{2})\b`).FindAllStringSubmatch(text, -1) {
		b, _ := strconv.ParseUint(m[1], 16, 8)
		want = append(want, byte(b))
	}
	if string(want) != string(p) {
		t.Errorf("ReadVirt(%v) = % x, QEMU reads:\n%s", va, p, text)
	}
}

func pause(t *testing.T, g *lab.Guest) {
	t.Helper()
	if err := g.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestLinuxGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	for _, c := range []struct {
		name string
		cfg  lab.Config
		mode Mode
	}{
		{"4-level", lab.Config{Machine: lab.PC, KASLR: true}, Mode4Level},
		{"5-level", lab.Config{Machine: lab.Q35, KASLR: true, LA57: true}, Mode5Level},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := c.cfg
			cfg.Kernel = labtest.Kernel(t, lab.Bookworm)
			cfg.Memory = 256 * lab.MiB
			cfg.Shared = true
			g := labtest.Boot(t, cfg)
			pause(t, g)
			root, err := RootFromRegisters(registers(t, g))
			if err != nil {
				t.Fatal(err)
			}
			if root.Mode != c.mode || !root.NX {
				t.Fatalf("root = %+v", root)
			}
			ram := openGuestRAM(t, g)
			as := New(ram, root)
			pages := comparePages(t, as, hmp(t, g, "info tlb"))
			if c.mode == Mode4Level {
				comparePermissions(t, pages, hmp(t, g, "info mem"))
			} // With five levels QEMU 7.2 thinks for a minute and prints nothing.
			for _, m := range pages {
				// RAM this small lies in the file as it does in the guest.
				want := (reference{ram: ram.file, root: root}).translate(uint64(m.Virt))
				if m.Flags.Has(Write) != want.write || m.Flags.Has(User) != want.user || m.Flags.Has(NX) != want.nx {
					t.Errorf("page %+v; reference %+v", m, want)
				}
			}
			rng := rand.New(rand.NewPCG(1, uint64(c.mode)))
			mapped := 0
			for range 300 {
				m := pages[rng.IntN(len(pages))]
				va := m.Virt + hypervisor.VirtAddr(rng.Uint64N(3*m.Size)-m.Size)
				if compareAddress(t, g, as, va) {
					mapped++
				}
				compareBytes(t, g, as, va)
			}
			if mapped < 100 {
				t.Errorf("only %d of 300 addresses were mapped", mapped)
			}
		})
	}
}

// tinyGuest is a multiboot image (the GNU Multiboot Specification 0.6.96) that
// turns paging on by the tables that come with it, and halts.
type tinyGuest struct{ image []byte }

// Where a tinyGuest is loaded: its first page is code, tables follow.
const tinyBase = 0x10_0000

func newTinyGuest(cr3, cr4 uint32, nx bool) *tinyGuest {
	g := &tinyGuest{image: make([]byte, 64<<10)}
	const flags = 1 << 16 // the header has addresses
	for i, v := range []uint32{
		0x1badb002, flags, 1<<32 - 0x1badb002 - flags,
		tinyBase, tinyBase, tinyBase + uint32(len(g.image)), 0, tinyBase + 0x40,
	} {
		binary.LittleEndian.PutUint32(g.image[i*4:], v)
	}
	imm := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	efer := uint32(0)
	if nx {
		efer = eferNXE
	}
	code := slices.Concat(
		[]byte{0xb9}, imm(0xc000_0080), // mov ecx, EFER
		[]byte{0x31, 0xd2},      // xor edx, edx
		[]byte{0xb8}, imm(efer), // mov eax, efer
		[]byte{0x0f, 0x30},     // wrmsr
		[]byte{0xb8}, imm(cr4), // mov eax, cr4
		[]byte{0x0f, 0x22, 0xe0}, // mov cr4, eax
		[]byte{0xb8}, imm(cr3),   // mov eax, cr3
		[]byte{0x0f, 0x22, 0xd8},   // mov cr3, eax
		[]byte{0x0f, 0x20, 0xc0},   // mov eax, cr0
		[]byte{0x0d}, imm(1<<31|1), // or eax, PG|PE
		[]byte{0x0f, 0x22, 0xc0},                            // mov cr0, eax
		[]byte{0xc7, 0x05}, imm(tinyBase+0x20), imm(tinyUp), // mov [tinyBase+0x20], tinyUp
		[]byte{0xf4, 0xeb, 0xfd}, // hlt; jmp back to it
	)
	copy(g.image[0x40:], code)
	return g
}

// tinyUp is what the guest writes when it runs with paging on.
const tinyUp = 0x600d600d

func (g *tinyGuest) put32(addr, v uint32) { binary.LittleEndian.PutUint32(g.image[addr-tinyBase:], v) }

func (g *tinyGuest) put64(addr uint32, v uint64) {
	binary.LittleEndian.PutUint64(g.image[addr-tinyBase:], v)
}

// boot starts the guest and returns it paused behind its last instruction.
func (g *tinyGuest) boot(t *testing.T) (*lab.Guest, *guestRAM) {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest")
	}
	path := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(path, g.image, 0o600); err != nil {
		t.Fatal(err)
	}
	vm := labtest.Boot(t, lab.Config{
		Name: "tiny", Kernel: &lab.Kernel{Image: path}, Initrd: path,
		Memory: 64 * lab.MiB, Shared: true, CPU: "max,-cx16", Ready: "-",
	})
	ram := openGuestRAM(t, vm)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; <-tick.C {
		if b, err := ram.MapPhys(tinyBase+0x20, 4); err == nil && binary.LittleEndian.Uint32(b) == tinyUp {
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("the tiny guest did not come up:\n%s", hmp(t, vm, "info registers"))
		}
	}
	pause(t, vm)
	return vm, ram
}

// compareTiny compares a 32-bit guest's every page, near its pages, and at random.
func compareTiny(t *testing.T, vm *lab.Guest, as *AddressSpace, interesting []hypervisor.VirtAddr) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 3))
	mapped := 0
	for _, va := range interesting {
		for _, d := range []int64{0, 0xfff, -1, 0x1000, 0x1fffff, 0x3fffff} {
			at := (va + hypervisor.VirtAddr(d)) & 0xffffffff
			if compareAddress(t, vm, as, at) {
				mapped++
				if phys, _ := as.PhysOf(at); phys < 64*lab.MiB-64 && at.Offset() < 4000 {
					compareBytes(t, vm, as, at)
				}
			}
		}
	}
	for range 100 {
		if compareAddress(t, vm, as, hypervisor.VirtAddr(rng.Uint32())) {
			mapped++
		}
	}
	t.Logf("%d addresses compared, %d of them mapped", len(interesting)*6+100, mapped)
	var pages []Mapping
	for m, err := range as.Mappings(t.Context(), 0, 0) {
		if err == nil {
			pages = append(pages, m)
		}
	}
	comparePermissions(t, pages, hmp(t, vm, "info mem"))
}

func TestTinyGuest32(t *testing.T) {
	const pd, pt = tinyBase + 0x2000, tinyBase + 0x3000
	g := newTinyGuest(pd, cr4PSE, false)
	g.put32(pd, 0x83)                          // 4 MiB, identity
	g.put32(pd+4*1, pt|7)                      // a page table
	g.put32(pd+4*2, pt|5)                      // the same one, read-only
	g.put32(pd+4*3, 0x0040_0000|0x87)          // 4 MiB, user
	g.put32(pd+4*4, 0x0080_0000|5<<13|0x83)    // 4 MiB at 20 GiB and some: PSE-36
	g.put32(pd+4*5, 0xffc0_0000|0xff<<13|0x83) // the highest there is
	g.put32(pd+4*6, 0x1234_5000)               // not present
	g.put32(pd+4*7, pt|3)                      // the same table, supervisor
	g.put32(pd+4*1023, 0x81)                   // the last 4 MiB
	for i := range uint32(64) {
		if i%5 != 4 {
			g.put32(pt+4*i*3, i*0x3000|[]uint32{1, 3, 5, 7}[i%4])
		}
	}
	vm, ram := g.boot(t)
	root, err := RootFromRegisters(registers(t, vm))
	if err != nil || root != (Root{Mode: Mode32, CR3: pd, PSE: true}) {
		t.Fatalf("root = %+v, %v", root, err)
	}
	var at []hypervisor.VirtAddr
	for i := range hypervisor.VirtAddr(9) {
		at = append(at, i<<22, i<<22+0x3000, i<<22+0x6123)
	}
	compareTiny(t, vm, New(ram, root), append(at, 0xffc0_0000))
}

func TestTinyGuestPAE(t *testing.T) {
	const pdpt, pd, pt = tinyBase + 0x2fe0, tinyBase + 0x4000, tinyBase + 0x6000
	g := newTinyGuest(pdpt, cr4PAE, true)
	g.put64(pdpt, pd|1)
	g.put64(pdpt+8, (pd+0x1000)|1)
	g.put64(pdpt+24, pd|1)         // the first again, at 3 GiB
	g.put64(pd, 0x83)              // 2 MiB, identity
	g.put64(pd+8, pt|7)            // a page table
	g.put64(pd+16, pt|5|1<<63)     // the same one, read-only, no execute
	g.put64(pd+24, 0x20_0000|0x87) // 2 MiB, user
	g.put64(pd+32, 0x12_3456_0000) // not present
	g.put64(pd+8*511, 0x40_0000|0x83)
	g.put64(pd+0x1000, 0xff_ffe0_0000|0x83) // 2 MiB, far above RAM
	for i := range uint64(64) {
		if i%5 != 4 {
			g.put64(pt+8*uint32(i)*3, i*0x3000|[]uint64{1, 3, 5 | 1<<63, 7}[i%4])
		}
	}
	vm, ram := g.boot(t)
	root, err := RootFromRegisters(registers(t, vm))
	if err != nil || root != (Root{Mode: ModePAE, CR3: pdpt, NX: true}) {
		t.Fatalf("root = %+v, %v", root, err)
	}
	var at []hypervisor.VirtAddr
	for _, base := range []hypervisor.VirtAddr{0, 0x4000_0000, 0x8000_0000, 0xc000_0000} {
		for i := range hypervisor.VirtAddr(5) {
			at = append(at, base+i<<21, base+i<<21+0x3000, base+i<<21+0x6123)
		}
	}
	compareTiny(t, vm, New(ram, root), append(at, 0x3fe0_0000, 0xffe0_0000))
}
