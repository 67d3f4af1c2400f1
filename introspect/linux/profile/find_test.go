package profile

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// variants are the forms that kallsyms had from 5.4 to 7.x, as they are written.
var variants = map[string]synth{
	"5.4":                 {plain: true},
	"6.1":                 {},
	"6.1 with long name":  {long: true},
	"6.2":                 {seqs: 4},
	"6.3":                 {seqs: 3},
	"6.4":                 {seqs: 3, newOrder: true},
	"6.15":                {seqs: 3, newOrder: true, form: formBaseRelative},
	"7.0":                 {seqs: 3, newOrder: true, form: formSelfRelative, align: 4},
	"7.0 old order":       {form: formSelfRelative, align: 4},
	"rodata=off":          {writable: true},
	"rodata=off, text":    {writable: true, textOnly: true},
	"5 levels":            {la57: true},
	"no build-id":         {noNotes: true},
	"text symbols only":   {textOnly: true},
	"text only, 5 levels": {textOnly: true, la57: true, newOrder: true, form: formSelfRelative, align: 4},
	"comm somewhere else": {comm: 4000},
	"7.0 aligned to 8":    {seqs: 3, newOrder: true, form: formSelfRelative, align: 8},
}

// registersOf are those of a vCPU in g: in the kernel, or as in user mode.
func registersOf(g *synthGuest) []hypervisor.Registers {
	r := hypervisor.Registers{Valid: hypervisor.GroupControl, CR0: 1<<31 | 1, CR3: synthPhys + synthTop, CR4: 1 << 5, EFER: 0xd01}
	if g.la57 {
		r.CR4 |= 1 << 12
	}
	return []hypervisor.Registers{{VCPU: 0}, r}
}

func TestFindSynthetic(t *testing.T) {
	for name, o := range variants {
		t.Run(name, func(t *testing.T) {
			o.buildID = 0x42
			g := o.build()
			for _, regs := range [][]hypervisor.Registers{nil, registersOf(g)} {
				k, err := Find(t.Context(), g.memory(), regs, Options{})
				if err != nil {
					t.Fatal(err)
				}
				checkSynthetic(t, k, g)
			}
		})
	}
}

func checkSynthetic(t *testing.T, k *Kernel, g *synthGuest) {
	t.Helper()
	if k.Release != synthRelease || k.VirtBase != synthVirt || k.PhysBase != synthPhys {
		t.Errorf("release %q at %v, %v", k.Release, k.VirtBase, k.PhysBase)
	}
	if k.PageOffset != synthPageOffset(g.la57) {
		t.Errorf("PageOffset %v, want %v", k.PageOffset, synthPageOffset(g.la57))
	}
	if !g.textOnly && k.VmemmapBase != 0xffff_ea12_4000_0000 {
		t.Errorf("VmemmapBase %v", k.VmemmapBase)
	}
	want := paging.Root{Mode: paging.Mode4Level, CR3: synthPhys + synthTop, NX: true}
	if g.la57 {
		want.Mode = paging.Mode5Level
	}
	if k.Root != want {
		t.Errorf("Root %+v, want %+v", k.Root, want)
	}
	id := hex.EncodeToString(bytes.Repeat([]byte{g.buildID}, 20))
	if g.noNotes || g.textOnly {
		if !strings.HasPrefix(k.BuildID, "h-") {
			t.Errorf("BuildID %s, want a hash", k.BuildID)
		}
	} else if k.BuildID != id {
		t.Errorf("BuildID %s, want %s", k.BuildID, id)
	}
	got := slices.Collect(k.Symbols.All())
	if !slices.Equal(got, g.symbols) {
		for i := range min(len(got), len(g.symbols)) {
			if got[i] != g.symbols[i] {
				t.Errorf("symbol %d is %+v, want %+v", i, got[i], g.symbols[i])
				break
			}
		}
		t.Errorf("%d symbols, want %d", len(got), len(g.symbols))
	}
	for _, s := range g.symbols {
		l, err := k.Symbols.Lookup(s.Name)
		if err != nil || l != s && (s.Name != "twice" || l.Addr != va(0x100)) {
			t.Fatalf("Lookup(%s) = %+v, %v, want %+v", s.Name, l, err, s)
		}
	}
	if _, err := k.Symbol("no_such_symbol"); !errors.Is(err, ErrNoSymbol) {
		t.Errorf("Symbol: %v, want ErrNoSymbol", err)
	}
	if f, err := k.Types.Field("task_struct.comm"); err != nil || f.Offset != uint64(g.comm) {
		t.Errorf("task_struct.comm: %+v, %v", f, err)
	}
}

func TestSymbolAt(t *testing.T) {
	k, err := Find(t.Context(), synth{}.build().memory(), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		addr   hypervisor.VirtAddr
		name   string
		offset uint64
		ok     bool
	}{
		{va(0), "_text", 0, true}, // and _stext: the first
		{va(0xff), "_text", 0xff, true},
		{va(0x1000), "the_function_0", 0, true},
		{va(0x102f), "the_function_2", 15, true},
		{va(synthSize - 1), "init_task", synthSize - 1 - synthTask, true},
		{va(synthSize), "", 0, false},
		{va(-1), "", 0, false},
		{0x2000, "", 0, false}, // a per-CPU offset is no address
		{0, "", 0, false},
		{^hypervisor.VirtAddr(0), "", 0, false},
	} {
		name, offset, ok := k.SymbolAt(c.addr)
		if name != c.name || offset != c.offset || ok != c.ok {
			t.Errorf("SymbolAt(%v) = %s, %#x, %v, want %s, %#x, %v", c.addr, name, offset, ok, c.name, c.offset, c.ok)
		}
	}
}

func TestFindNothing(t *testing.T) {
	for name, mem := range map[string]hypervisor.Memory{
		"empty RAM": newFileMemory(make([]byte, 8<<20)),
		"no RAM":    newFileMemory(nil),
		"odd size":  newFileMemory(make([]byte, 12345)),
	} {
		if k, err := Find(t.Context(), mem, nil, Options{}); !errors.Is(err, ErrNoKernel) || k != nil {
			t.Errorf("%s: %v, %v, want ErrNoKernel", name, k, err)
		}
	}
	// Registers that lead nowhere: the scan finds the kernel all the same.
	g := synth{}.build()
	regs := registersOf(g)
	regs[1].CR3 = 0x7000
	if _, err := Find(t.Context(), g.memory(), regs, Options{}); err != nil {
		t.Error(err)
	}
}

// TestFindCancelled: the scan of RAM is what takes time.
func TestFindCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Find(ctx, synth{}.build().memory(), nil, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
}

// TestUserTable: under page table isolation CR3 may be that of user mode, which
// maps the entry code only. The kernel's table lies in the page before.
func TestUserTable(t *testing.T) {
	g := synth{}.build()
	// A copy of the top table at an even page, an empty one behind it.
	const top = 16 << 20
	copy(g.ram[top:], g.ram[synthPhys+synthTop:][:hypervisor.PageSize])
	regs := registersOf(g)
	regs[1].CR3 = top | userTableBit | 0x801 // with a PCID
	f := &finder{mem: g.memory(), log: discard}
	if images := f.imagesFromRegisters(regs); len(images) != 1 || images[0].virt != synthVirt {
		t.Fatalf("images %+v", images)
	}
}

func TestNoSymbolsNoTypes(t *testing.T) {
	g := synth{noSyms: true}.build()
	if k, err := Find(t.Context(), g.memory(), nil, Options{}); !errors.Is(err, ErrNoKallsyms) || k != nil {
		t.Errorf("%v, %v, want ErrNoKallsyms", k, err)
	}
	g = synth{noBTF: true}.build()
	k, err := Find(t.Context(), g.memory(), nil, Options{})
	if !errors.Is(err, ErrNoBTF) || !strings.Contains(err.Error(), "CONFIG_DEBUG_INFO_BTF=n") {
		t.Errorf("%v, want ErrNoBTF", err)
	}
	if k == nil || k.Release != synthRelease {
		t.Fatalf("no kernel next to ErrNoBTF: %+v", k)
	}
	if _, err := k.Types.Field("task_struct.comm"); !errors.Is(err, ErrNoBTF) {
		t.Errorf("Field: %v, want ErrNoBTF", err)
	}
	if k.Types.Has("task_struct") || k.Types.Len() != 0 {
		t.Error("types without BTF")
	}
	if _, err := k.Types.EnumValue("", "x"); !errors.Is(err, ErrNoBTF) {
		t.Errorf("EnumValue: %v, want ErrNoBTF", err)
	}
}

// TestDecoys: copies of the kernel elsewhere in RAM.
func TestDecoys(t *testing.T) {
	image := func(g *synthGuest) []byte { return g.ram[synthPhys:][:synthSize] }
	const elsewhere = synthPhys + 8<<20
	// A stale copy's tables point to the real one: it does not hold itself.
	g := synth{buildID: 1}.build()
	copy(g.ram[elsewhere:], image(g))
	k, err := Find(t.Context(), g.memory(), nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if k.PhysBase != synthPhys {
		t.Errorf("found the stale copy at %v", k.PhysBase)
	}
	// One that the guest's root made up is whole. Registers tell; without them
	// it is what most address spaces share.
	for _, atFirst := range []bool{false, true} {
		real, fake := hypervisor.PhysAddr(synthPhys), hypervisor.PhysAddr(elsewhere)
		g := synth{buildID: 1}.build()
		relocate(g, elsewhere)
		if atFirst {
			real, fake = fake, real
		}
		regs := registersOf(g)
		regs[1].CR3 = uint64(real) + synthTop
		k, err := Find(t.Context(), g.memory(), regs, Options{})
		if err != nil || k.PhysBase != real {
			t.Errorf("with registers: %+v, %v, want the kernel at %v", k, err, real)
		}
		// Two more tops that lead to the real one.
		for i := range 2 {
			copy(g.ram[i*hypervisor.PageSize:][:hypervisor.PageSize], g.ram[real+synthTop:])
		}
		k, err = Find(t.Context(), g.memory(), nil, Options{})
		if err != nil || k.PhysBase != real {
			t.Errorf("from RAM: %+v, %v, want the kernel at %v and not at %v", k, err, real, fake)
		}
	}
}

// relocate copies g's image to phys and makes the copy's tables lead to it.
func relocate(g *synthGuest, phys int) {
	b := g.ram[phys:][:synthSize]
	copy(b, g.ram[synthPhys:])
	for _, table := range []int{synthTop, synthLevel4, synthLevel3, synthLevel2, synthDir4} {
		for i := range tableEntries {
			p := b[table+8*i:]
			if e := leUint64(p); e&entryPresent != 0 {
				binary.LittleEndian.PutUint64(p, e+uint64(phys-synthPhys))
			}
		}
	}
}

// TestImplausible: what was found contradicts memory.
func TestImplausible(t *testing.T) {
	g := synth{}.build()
	image := g.ram[synthPhys:]
	// A hooked system call table and a false banner end nothing …
	clear(image[synthSyscalls:][:512])
	copy(image[synthBanner:], "Windows")
	if _, err := Find(t.Context(), g.memory(), nil, Options{}); err != nil {
		t.Errorf("two symbols astray: %v", err)
	}
	// … three are too many.
	clear(image[synthTask:][:8<<10])
	_, err := Find(t.Context(), g.memory(), nil, Options{})
	var sanity *SanityError
	if !errors.Is(err, ErrImplausible) || !errors.As(err, &sanity) || sanity.Symbol != "linux_banner" || sanity.Addr != va(synthBanner) {
		t.Errorf("%v, want a SanityError of linux_banner", err)
	}
	// init_top_pgt that maps another image.
	g = synth{}.build()
	clear(g.ram[synthPhys+synthTop:][:hypervisor.PageSize])
	if _, err := Find(t.Context(), g.memory(), nil, Options{}); !errors.As(err, &sanity) || sanity.Symbol != "init_top_pgt" {
		t.Errorf("%v, want a SanityError of init_top_pgt", err)
	}
}
