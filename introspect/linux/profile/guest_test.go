package profile

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// guests are the kernels and the ways of starting them that a profile must be
// right for: each of Debian's series, with and without KASLR, with five levels
// of page tables, and with the page tables of user mode kept apart.
var guests = []lab.Config{
	{Name: "bullseye-kaslr", KASLR: true},
	{Name: "bullseye-nokaslr"},
	{Name: "bookworm-kaslr", KASLR: true},
	{Name: "bookworm-nokaslr-q35", Machine: lab.Q35},
	{Name: "bookworm-kaslr-la57-pti", KASLR: true, LA57: true, Append: "pti=on"},
	{Name: "bookworm-rodata-off", KASLR: true, Append: "rodata=off"},
	{Name: "trixie-kaslr-pti", KASLR: true, Append: "pti=on"},
	{Name: "trixie-nokaslr"},
	{Name: "trixie-kaslr-la57", KASLR: true, LA57: true},
	{Name: "sid-kaslr", KASLR: true},
	{Name: "sid-nokaslr"},
	{Name: "sid-kaslr-la57-pti", KASLR: true, LA57: true, Append: "pti=on"},
}

// bootGuest boots cfg, whose name begins with its suite.
func bootGuest(t *testing.T, cfg lab.Config) *lab.Guest {
	suite, _, _ := strings.Cut(cfg.Name, "-")
	cfg.Kernel = labtest.Kernel(t, lab.Suite(suite))
	cfg.Shared = true
	// On a busy host an emulated timer can be late enough for the kernel to
	// give it up ("IO-APIC + timer doesn't work").
	cfg.Append = strings.TrimSpace(cfg.Append + " no_timer_check")
	if cfg.Memory == 0 {
		cfg.Memory = 384 * lab.MiB
	}
	return labtest.Boot(t, cfg)
}

// truth is what a guest says of its own kernel.
type truth struct {
	symbols            int
	symbolsSum, btfSum string
	phys               hypervisor.PhysAddr
	version, buildID   string
	pageOffset         hypervisor.VirtAddr
	vmemmap            []hypervisor.VirtAddr // parts of it that are mapped
}

func askGuest(t *testing.T, g *lab.Guest) truth {
	t.Helper()
	run := func(script string) string {
		out, err := g.Run(t.Context(), script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	var tr truth
	var err error
	// Symbols of modules and of what is generated at run time have a "[…]".
	if tr.symbols, err = strconv.Atoi(run(`grep -vc '\[' /proc/kallsyms`)); err != nil {
		t.Fatal(err)
	}
	tr.symbolsSum = strings.Fields(run(`grep -v '\[' /proc/kallsyms | sha256sum`))[0]
	tr.btfSum = strings.Fields(run(`sha256sum /sys/kernel/btf/vmlinux`))[0]
	tr.version = run(`cat /proc/version`)
	code := regexp.MustCompile(`(?m)^\s*([0-9a-f]+)-[0-9a-f]+ : Kernel code`).FindStringSubmatch(run(`cat /proc/iomem`))
	if code == nil {
		t.Fatal("no Kernel code in /proc/iomem")
	}
	phys, err := strconv.ParseUint(code[1], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	tr.phys = hypervisor.PhysAddr(phys)
	notes := unhex(t, run(`od -An -v -tx1 /sys/kernel/notes`))
	at := bytes.Index(notes, []byte("\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"))
	if at < 0 || at+12+20 > len(notes) {
		t.Fatalf("no build-id in /sys/kernel/notes: %x", notes)
	}
	tr.buildID = hex.EncodeToString(notes[at+12 : at+12+20])
	head := unhex(t, run(`head -c 4096 /proc/kcore | od -An -v -tx1`))
	readKcore(t, head, &tr)
	return tr
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// readKcore reads where the direct map and vmemmap are from the head of
// /proc/kcore.
func readKcore(t *testing.T, head []byte, tr *truth) {
	t.Helper()
	// Section headers are not in the part that was read.
	for i := 40; i < 48; i++ {
		head[i] = 0
	}
	copy(head[58:64], make([]byte, 6))
	f, err := elf.NewFile(bytes.NewReader(head))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Vaddr >= kernelMap {
			continue
		}
		if p.Paddr != 0 && p.Paddr != ^uint64(0) || p.Vaddr&(1<<30-1) == 0x1000 {
			tr.pageOffset = hypervisor.VirtAddr(p.Vaddr - p.Paddr)
		}
		tr.vmemmap = append(tr.vmemmap, hypervisor.VirtAddr(p.Vaddr))
	}
}

// registers asks QEMU for the control registers of each vCPU.
func registers(t *testing.T, g *lab.Guest) []hypervisor.Registers {
	t.Helper()
	text, err := g.HMP(t.Context(), "info registers -a")
	if err != nil {
		t.Fatal(err)
	}
	var out []hypervisor.Registers
	re := regexp.MustCompile(`(?s)CR0=(\w+) CR2=\w+ CR3=(\w+) CR4=(\w+).*?EFER=(\w+)`)
	for i, m := range re.FindAllStringSubmatch(text, -1) {
		r := hypervisor.Registers{VCPU: i, Valid: hypervisor.GroupControl}
		for j, p := range []*uint64{&r.CR0, &r.CR3, &r.CR4, &r.EFER} {
			if *p, err = strconv.ParseUint(m[j+1], 16, 64); err != nil {
				t.Fatal(err)
			}
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		t.Fatal("no registers")
	}
	return out
}

func TestFindInGuests(t *testing.T) {
	for _, cfg := range guests {
		t.Run(cfg.Name, func(t *testing.T) {
			g := bootGuest(t, cfg)
			want := askGuest(t, g)
			if err := g.Pause(t.Context()); err != nil {
				t.Fatal(err)
			}
			ram, err := g.RAMFile()
			if err != nil {
				t.Fatal(err)
			}
			mem := openImage(t, ram)
			for _, c := range []struct {
				name string
				mem  hypervisor.Memory
				regs []hypervisor.Registers
			}{
				{"ram", mem, nil},
				{"ram-copied", copiedMemory{mem}, nil},
				{"registers", mem, registers(t, g)},
				{"registers-copied", copiedMemory{mem}, registers(t, g)},
			} {
				t.Run(c.name, func(t *testing.T) {
					start := time.Now()
					k, err := Find(t.Context(), c.mem, c.regs, Options{})
					if err != nil {
						t.Fatal(err)
					}
					t.Logf("%s: %d symbols, %d types in %v", k.Release, k.Symbols.Len(), k.Types.Len(), time.Since(start).Round(time.Millisecond))
					checkKernel(t, k, want, cfg)
				})
			}
			if !cfg.KASLR || cfg.LA57 {
				return // once for each kernel
			}
			t.Run("types", func(t *testing.T) {
				k, err := Find(t.Context(), mem, nil, Options{})
				if err != nil {
					t.Fatal(err)
				}
				compareBTF(t, readBTF(t, k))
			})
			t.Run("lies", func(t *testing.T) { lieInGuest(t, mem) })
		})
	}
}

func checkKernel(t *testing.T, k *Kernel, want truth, cfg lab.Config) {
	t.Helper()
	if k.Symbols.Len() != want.symbols {
		t.Errorf("%d symbols, the guest has %d", k.Symbols.Len(), want.symbols)
	}
	if sum := symbolsSum(k.Symbols); sum != want.symbolsSum {
		t.Errorf("symbols differ from /proc/kallsyms: sha256 %s, want %s", sum, want.symbolsSum)
	}
	for name, percpu := range map[string]bool{"runqueues": true, "init_task": false, "__per_cpu_offset": false} {
		if s, err := k.Symbols.Lookup(name); err != nil || s.PerCPU != percpu {
			t.Errorf("%s: %+v, %v, want per-CPU %v", name, s, err, percpu)
		}
	}
	if k.PhysBase != want.phys {
		t.Errorf("PhysBase %v, /proc/iomem says %v", k.PhysBase, want.phys)
	}
	if text, err := k.Symbol("_text"); err != nil || text != k.VirtBase {
		t.Errorf("_text is %v (%v), VirtBase %v", text, err, k.VirtBase)
	}
	if !cfg.KASLR && k.VirtBase != 0xffff_ffff_8100_0000 {
		t.Errorf("VirtBase %v without KASLR", k.VirtBase)
	}
	if k.Banner != want.version {
		t.Errorf("Banner %q, want %q", k.Banner, want.version)
	}
	if release := strings.Fields(want.version)[2]; k.Release != release {
		t.Errorf("Release %q, want %q", k.Release, release)
	}
	if k.BuildID != want.buildID {
		t.Errorf("BuildID %s, want %s", k.BuildID, want.buildID)
	}
	if k.PageOffset != want.pageOffset {
		t.Errorf("PageOffset %v, /proc/kcore says %v", k.PageOffset, want.pageOffset)
	}
	inVmemmap := false
	for _, va := range want.vmemmap {
		// The first struct pages of RAM lie in the first megabyte of it.
		inVmemmap = inVmemmap || va >= k.VmemmapBase && va-k.VmemmapBase < 1<<20
	}
	if !inVmemmap {
		t.Errorf("VmemmapBase %v, /proc/kcore has %v", k.VmemmapBase, want.vmemmap)
	}
	if mode := map[bool]paging.Mode{false: paging.Mode4Level, true: paging.Mode5Level}[cfg.LA57]; k.Root.Mode != mode {
		t.Errorf("paging mode %v, want %v", k.Root.Mode, mode)
	}
	if err := checkBTFSum(k, readBTF(t, k), want.btfSum); err != nil {
		t.Error(err)
	}
}

// symbolsSum is the sha256 of what /proc/kallsyms prints of the kernel itself.
func symbolsSum(s *Symbols) string {
	h := sha256.New()
	w := bufio.NewWriter(h)
	for sym := range s.All() {
		fmt.Fprintf(w, "%016x %c %s\n", uint64(sym.Addr), sym.Type, sym.Name)
	}
	if err := w.Flush(); err != nil {
		panic(err) // a hash takes everything
	}
	return hex.EncodeToString(h.Sum(nil))
}

func readBTF(t *testing.T, k *Kernel) []byte {
	t.Helper()
	lo, err := k.Symbol("__start_BTF")
	if err != nil {
		t.Fatal(err)
	}
	hi, err := k.Symbol("__stop_BTF")
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, hi-lo)
	if _, err := k.Space.ReadVirt(b, lo); err != nil {
		t.Fatal(err)
	}
	return b
}

func checkBTFSum(k *Kernel, b []byte, want string) error {
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != want {
		return errors.New("BTF differs from /sys/kernel/btf/vmlinux")
	}
	if !bytes.Contains(b, k.Types.types) || !bytes.Contains(b, k.Types.strs) {
		return errors.New("types were not read from the kernel's BTF")
	}
	return nil
}

// lieInGuest changes what the guest's memory says of its kernel.
func lieInGuest(t *testing.T, mem *fileMemory) {
	k, err := Find(t.Context(), mem, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	names := bytes.Index(mem.b, k.Symbols.names[:4096])
	lo, err := k.Symbol("__start_BTF")
	if err != nil {
		t.Fatal(err)
	}
	btf := int(k.PhysBase) + int(lo-k.VirtBase)
	table, err := k.Symbol("init_top_pgt")
	if err != nil {
		t.Fatal(err)
	}
	top := int(k.PhysBase) + int(table-k.VirtBase)
	for _, c := range []struct {
		name   string
		at     int
		change []byte
		want   error
	}{
		{"kallsyms cut", names + len(k.Symbols.names)/2, make([]byte, len(k.Symbols.names)/4), ErrNoKallsyms},
		{"num_syms huge", names - 8, bytes.Repeat([]byte{0xff}, 8), ErrNoKallsyms},
		{"BTF of a huge count", btf + btfHeaderLen + 4, []byte{0xff, 0xff, 0, btfStruct}, ErrDamaged},
		{"BTF of huge sections", btf + 12, []byte{0xff, 0xff, 0xff, 0x7f}, ErrDamaged},
		{"no top page table", top, make([]byte, hypervisor.PageSize), ErrImplausible},
	} {
		was := bytes.Clone(mem.b[c.at:][:len(c.change)])
		copy(mem.b[c.at:], c.change)
		if _, err := findLie(t, mem); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		copy(mem.b[c.at:], was)
	}
	if _, err := Find(t.Context(), mem, nil, Options{}); err != nil {
		t.Errorf("with the truth again: %v", err)
	}
}

// fileMemory is a raw memory file whose offsets are physical addresses.
type fileMemory struct {
	b []byte
	r []hypervisor.Range
}

func (m *fileMemory) Ranges() []hypervisor.Range { return m.r }

func (m *fileMemory) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	b, err := m.MapPhys(gpa, uint64(len(p)))
	n := copy(p, b)
	if err == nil && n < len(p) {
		err = &hypervisor.AddressError{Op: "read", Addr: gpa + hypervisor.PhysAddr(n), Err: hypervisor.ErrNotRAM}
	}
	return n, err
}

func (m *fileMemory) MapPhys(gpa hypervisor.PhysAddr, limit uint64) ([]byte, error) {
	if uint64(gpa) >= uint64(len(m.b)) {
		return nil, &hypervisor.AddressError{Op: "map", Addr: gpa, Err: hypervisor.ErrNotRAM}
	}
	return m.b[gpa:][:min(limit, uint64(len(m.b))-uint64(gpa))], nil
}

// copiedMemory is the same without views.
type copiedMemory struct{ m *fileMemory }

func (m copiedMemory) Ranges() []hypervisor.Range { return m.m.Ranges() }
func (m copiedMemory) ReadPhys(p []byte, gpa hypervisor.PhysAddr) (int, error) {
	return m.m.ReadPhys(p, gpa)
}

func newFileMemory(b []byte) *fileMemory {
	return &fileMemory{b: b, r: []hypervisor.Range{{Start: 0, Size: uint64(len(b))}}}
}

func openImage(tb testing.TB, path string) *fileMemory {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	// Private: what a test changes in it the guest does not see.
	b, err := syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = syscall.Munmap(b) })
	return newFileMemory(b)
}
