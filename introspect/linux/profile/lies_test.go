package profile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

var discard = slog.New(slog.DiscardHandler)

// maxLie is how long a lie may take Find on a small guest; they take some ms.
// The rest is for the race detector and for busy machines.
const maxLie = 20 * time.Second

// findLie runs Find on a guest that lies, and fails if that takes long or what
// comes back is neither a kernel nor a named error.
func findLie(t testing.TB, mem hypervisor.Memory) (*Kernel, error) {
	t.Helper()
	start := time.Now()
	k, err := Find(t.Context(), mem, nil, Options{})
	if d := time.Since(start); d > maxLie {
		t.Errorf("took %v", d)
	}
	if err == nil && k == nil {
		t.Error("neither a kernel nor an error")
	}
	if err != nil {
		named := false
		for _, e := range []error{ErrNoKernel, ErrNoBTF, ErrNoKallsyms, ErrDamaged, ErrImplausible} {
			named = named || errors.Is(err, e)
		}
		if !named {
			t.Errorf("not a named error: %v", err)
		}
	}
	if k != nil {
		useKernel(k)
	}
	return k, err
}

// useKernel asks k everything, whatever it may say.
func useKernel(k *Kernel) {
	n := 0
	for s := range k.Symbols.All() {
		if n++; n > 5000 {
			break
		}
		_, _ = k.Symbols.Lookup(s.Name)
		_, _, _ = k.SymbolAt(s.Addr)
	}
	useTypes(k.Types)
}

func useTypes(types *Types) {
	for id := 1; id <= min(types.Len(), 3000); id++ {
		bt, err := types.byID(uint32(id))
		if err != nil {
			continue
		}
		name := types.name(bt.nameOff)
		_, _ = types.Field(name)
		_, _ = types.sizeOf(uint32(id))
		if bt.kind == btfStruct || bt.kind == btfUnion {
			for i := range min(bt.vlen, 50) {
				_, _ = types.Field(name + "." + types.name(bt.member(i).nameOff))
			}
		}
	}
	_, _ = types.EnumValue("", "nothing")
}

// TestLies: each changes the guest's memory, and has an end.
func TestLies(t *testing.T) {
	le := binary.LittleEndian
	numSyms := func(g *synthGuest) []byte { // found by its value
		i := bytes.Index(g.tables, le.AppendUint32(nil, uint32(len(g.symbols))))
		return g.tables[i:]
	}
	token := func(g *synthGuest) int { return bytes.Index(g.tables, []byte(digits)) }
	for name, c := range map[string]struct {
		lie  func(g *synthGuest)
		want error
	}{
		"num_syms huge":           {func(g *synthGuest) { le.PutUint32(numSyms(g), 0xffff_ffff) }, ErrNoKallsyms},
		"num_syms 0":              {func(g *synthGuest) { le.PutUint32(numSyms(g), 0) }, ErrNoKallsyms},
		"num_syms a few more":     {func(g *synthGuest) { le.PutUint32(numSyms(g), uint32(len(g.symbols))+3) }, ErrNoKallsyms},
		"first length 0":          {func(g *synthGuest) { numSyms(g)[8] = 0 }, ErrNoKallsyms},
		"first length wild":       {func(g *synthGuest) { numSyms(g)[8] = 0xff }, ErrNoKallsyms},
		"names cut":               {func(g *synthGuest) { clear(numSyms(g)[8+1000 : 8+4000]) }, ErrNoKallsyms},
		"everything after cut":    {func(g *synthGuest) { clear(numSyms(g)[8+1000:]) }, ErrNoKallsyms},
		"tokens without end":      {func(g *synthGuest) { b := g.tables[token(g)+len(digits):]; copy(b, bytes.Repeat([]byte{'x'}, len(b))) }, ErrNoKallsyms},
		"token index wild":        {func(g *synthGuest) { copy(g.tables[len(g.tables)-512:], bytes.Repeat([]byte{0xff}, 512)) }, ErrNoKallsyms},
		"addresses not sorted":    {func(g *synthGuest) { le.PutUint32(g.tables[4*100:], 0x8000_0000) }, ErrNoKallsyms},
		"relative_base wild":      {func(g *synthGuest) { le.PutUint64(g.tables[alignUp(4*len(g.symbols), 8):], 0x1234) }, ErrNoKallsyms},
		"BTF of a huge count":     {func(g *synthGuest) { le.PutUint32(g.blob[btfHeaderLen+4:], btfStruct<<24|0xffff) }, ErrDamaged},
		"BTF of huge sections":    {func(g *synthGuest) { le.PutUint32(g.blob[12:], 0xffff_fff0) }, ErrDamaged},
		"BTF of another magic":    {func(g *synthGuest) { clear(g.blob[:8]) }, ErrDamaged},
		"BTF of an unknown kind":  {func(g *synthGuest) { le.PutUint32(g.blob[btfHeaderLen+4:], 30<<24) }, errUnknownKind},
		"notes of a huge name":    {func(g *synthGuest) { le.PutUint32(g.ram[synthPhys+synthNotes:], 0xffff_fffc) }, nil},
		"notes of a huge content": {func(g *synthGuest) { le.PutUint32(g.ram[synthPhys+synthNotes+4:], 0xffff_ffff) }, nil},
		"banner without end":      {func(g *synthGuest) { copy(g.ram[synthPhys+synthBanner+14:], bytes.Repeat([]byte{'9'}, 3000)) }, nil},
		"page table to itself": {func(g *synthGuest) {
			g.put64(synthLevel3+8*imageEntry, synthPhys+synthLevel3|0x63)
		}, ErrNoKernel},
		"page table beyond RAM": {func(g *synthGuest) {
			g.put64(synthLevel3+8*imageEntry, 1<<50|0x63)
		}, ErrNoKernel},
		"image beyond RAM": {func(g *synthGuest) {
			for i := range 3 {
				g.put64(synthLevel2+8*(9+i), 1<<50+uint64(i)*largePage|0x1a1|entryNX)
			}
		}, ErrNoKernel},
	} {
		t.Run(name, func(t *testing.T) {
			g := synth{}.build()
			c.lie(g)
			k, err := findLie(t, g.memory())
			if !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
			if errors.Is(c.want, ErrDamaged) && k == nil {
				t.Error("no kernel next to damaged types")
			}
		})
	}
}

// TestCostlyLies: rodata made so that every place looks right for long.
func TestCostlyLies(t *testing.T) {
	le := binary.LittleEndian
	for name, fill := range map[string]func(b []byte){
		// Increasing numbers that never come down to 0, before a token table.
		"markers without end": func(b []byte) {
			for i := 0; i+4 <= len(b); i += 4 {
				le.PutUint32(b[i:], uint32(600*(i/4+1)))
			}
		},
		// Each 4 bytes are a name of 3, and the count that the markers ask for;
		// what lies before the markers makes each walk fail at its end.
		"names everywhere": func(b []byte) {
			const count = 0x10203
			blocks := (count + markerStep - 1) / markerStep
			end := len(b) - 4*blocks
			for i := 0; i+4 <= end; i += 4 {
				le.PutUint32(b[i:], count)
			}
			for i := range 16 {
				b[end-1-i] = 0xff
			}
			for i := range blocks {
				le.PutUint32(b[end+4*i:], uint32(1024*i))
			}
		},
		"digits everywhere": func(b []byte) { copy(b, bytes.Repeat([]byte(digits), len(b)/len(digits))) },
		"BTF everywhere":    func(b []byte) { copy(b, bytes.Repeat(btfMark, len(b)/4)) },
		"banners everywhere": func(b []byte) {
			copy(b, bytes.Repeat([]byte(bannerMark), len(b)/len(bannerMark)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := synth{textOnly: true}.build()
			image := g.ram[synthPhys:]
			// The token table with its index goes last, what is before it is filled.
			tt := bytes.Index(g.tables, []byte(digits)) - '!' - 2*('0'-'!')
			tail := bytes.Clone(g.tables[tt:])
			rodata := image[synthRodata:synthData]
			at := (len(rodata) - len(tail)) &^ 7
			fill(rodata[:at])
			copy(rodata[at:], tail)
			_, _ = findLie(t, g.memory())
		})
	}
}

// TestManyTables: RAM full of pages that look like the kernel's page table.
func TestManyTables(t *testing.T) {
	g := synth{}.build()
	table := bytes.Clone(g.ram[synthPhys+synthLevel3:][:hypervisor.PageSize])
	for off := 0; off < len(g.ram); off += hypervisor.PageSize {
		if off < synthPhys || off >= synthPhys+synthSize {
			copy(g.ram[off:], table)
		}
	}
	// In the image too, where they are believed, but for what it needs.
	for off := synthData + 0x20000; off < synthSize; off += hypervisor.PageSize {
		copy(g.ram[synthPhys+off:], table)
	}
	k, err := findLie(t, g.memory())
	if err != nil || k.PhysBase != synthPhys {
		t.Errorf("%+v, %v", k, err)
	}
}
