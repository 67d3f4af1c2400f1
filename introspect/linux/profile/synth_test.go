package profile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"sort"
	"strings"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// A synthetic guest: RAM with the least of a kernel that Find believes, its
// kallsyms and BTF written by encoders of their own. It stands for kernels that
// no distribution of the lab has, and for those that lie.
type synth struct {
	newOrder bool // tables in the order from 6.4 on
	form     addressForm
	align    int // of tables; 8 when zero
	seqs     int // bytes of an entry of seqs_of_names; 0: no such table
	plain    bool
	la57     bool
	noBTF    bool
	noSyms   bool
	noNotes  bool
	textOnly bool   // no symbols of data
	buildID  byte   // 20 times
	comm     uint32 // offset of task_struct.comm
	writable bool   // rodata=off
	long     bool   // with a name of more than 127 compressed bytes
	btf      []byte // instead of the encoder's
}

// Where things are, in bytes from the image's start, and the image in RAM.
const (
	synthRAM    = 20 << 20
	synthPhys   = 4 << 20
	synthVirt   = 0xffff_ffff_8120_0000
	synthSize   = 6 << 20
	synthRodata = 2 << 20
	synthData   = 4 << 20

	synthTop    = synthData
	synthLevel3 = synthData + 0x1000
	synthLevel2 = synthData + 0x2000
	synthFixmap = synthData + 0x3000
	synthLevel4 = synthData + 0x4000
	synthDirect = synthData + 0x5000
	synthDir4   = synthData + 0x6000
	synthVars   = synthData + 0x7000
	synthTask   = synthData + 0x8000

	synthBanner   = synthRodata + 0x100
	synthSyscalls = synthRodata + 0x1000
	synthNotes    = synthRodata + 0x2000
	synthTables   = synthRodata + 0x4000
	synthBTF      = synthRodata + 0x8_0004
)

const synthRelease = "5.4.0-synthetic"

type synthGuest struct {
	synth
	ram     []byte
	symbols []Symbol // sorted
	tables  []byte   // of kallsyms, in ram
	blob    []byte   // BTF, in ram
}

func (g *synthGuest) memory() *fileMemory { return newFileMemory(g.ram) }

func (g *synthGuest) put64(off int, v uint64) {
	binary.LittleEndian.PutUint64(g.ram[synthPhys+off:], v)
}

func va(off int) hypervisor.VirtAddr { return synthVirt + hypervisor.VirtAddr(off) }

func (o synth) build() *synthGuest {
	if o.align == 0 {
		o.align = 8
	}
	if o.form == 0 {
		o.form = formAbsolutePerCPU
	}
	if o.comm == 0 {
		o.comm = 40
	}
	g := &synthGuest{synth: o, ram: make([]byte, synthRAM)}
	g.pageTables()
	image := g.ram[synthPhys:][:synthSize]
	copy(image[synthBanner:], bannerMark+synthRelease+" (someone@somewhere) #1 SMP\n\x00")
	for i := range 64 {
		g.put64(synthSyscalls+8*i, uint64(va(0x1000+16*i)))
	}
	copy(image[synthTask+int(o.comm):], "swapper/0\x00")
	g.put64(synthVars, uint64(synthPageOffset(o.la57)))
	g.put64(synthVars+8, 0xffff_ea12_4000_0000)
	notes := 0
	if !o.noNotes {
		b := append([]byte("\x04\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00Xen\x00"), "\x04\x00\x00\x00\x14\x00\x00\x00\x03\x00\x00\x00GNU\x00"...)
		b = append(b, bytes.Repeat([]byte{o.buildID}, 20)...)
		notes = copy(image[synthNotes:], b)
	}
	btf := o.btf
	if btf == nil && !o.noBTF {
		btf = synthTypes(o.comm)
	}
	g.blob = image[synthBTF:][:copy(image[synthBTF:], btf)]
	if o.noSyms {
		return g
	}
	g.addSymbols(notes, len(btf))
	t := o.encode(g.symbols, va(synthTables))
	g.tables = image[synthTables:][:copy(image[synthTables:], t)]
	if synthTables+len(t) > synthBTF {
		panic("kallsyms run into BTF")
	}
	return g
}

func synthPageOffset(la57 bool) hypervisor.VirtAddr {
	if la57 {
		return pageOffset5
	}
	return 0xffff_8a00_0000_0000
}

// pageTables maps the image, and physical memory at page_offset.
func (g *synthGuest) pageTables() {
	const table = 0x63 // P, RW, A, D
	pa := func(off int) uint64 { return uint64(synthPhys + off) }
	index := func(shift int) int { return int(uint64(synthPageOffset(g.la57))>>shift) & 511 }
	last := 511 * 8
	if g.la57 {
		g.put64(synthTop+last, pa(synthLevel4)|table)
		g.put64(synthLevel4+last, pa(synthLevel3)|table)
		g.put64(synthTop+8*index(48), pa(synthDir4)|table)
		g.put64(synthDir4+8*index(39), pa(synthDirect)|table)
	} else {
		g.put64(synthTop+last, pa(synthLevel3)|table)
		g.put64(synthTop+8*index(39), pa(synthDirect)|table)
	}
	g.put64(synthDirect, 0x1e3|entryNX) // 1 GiB
	g.put64(synthLevel3+8*imageEntry, pa(synthLevel2)|table)
	g.put64(synthLevel3+last, pa(synthFixmap)|0x67)
	first := (synthVirt - kernelMap) / largePage
	g.put64(synthLevel2+8*first, pa(0)|0x1a1)
	rodata := uint64(0x1a1 | entryNX)
	if g.writable {
		rodata = 0x1e3
	}
	g.put64(synthLevel2+8*(first+1), pa(synthRodata)|rodata)
	g.put64(synthLevel2+8*(first+2), pa(synthData)|0x1e3|entryNX)
}

func (g *synthGuest) addSymbols(notes, btf int) {
	add := func(name string, typ byte, addr hypervisor.VirtAddr) {
		percpu := g.form == formAbsolutePerCPU && addr < 1<<31
		if g.textOnly && addr >= va(synthRodata) {
			return
		}
		g.symbols = append(g.symbols, Symbol{Name: name, Addr: addr, Type: typ, PerCPU: percpu})
	}
	add("_text", 'T', va(0))
	add("_stext", 'T', va(0))
	add("_etext", 'T', va(synthRodata-0x1000))
	for i := range 1500 {
		add(fmt.Sprintf("the_function_%d", i), "tT"[i%2], va(0x1000+16*i))
	}
	add("twice", 't', va(0x100))
	add("twice", 't', va(0x200))
	add("linux_banner", 'D', va(synthBanner))
	add("sys_call_table", 'R', va(synthSyscalls))
	add("__start_notes", 'R', va(synthNotes))
	add("__stop_notes", 'R', va(synthNotes+notes))
	if !g.noBTF {
		add("__start_BTF", 'R', va(synthBTF))
		add("__stop_BTF", 'R', va(synthBTF+btf))
	}
	add("init_top_pgt", 'D', va(synthTop))
	add("page_offset_base", 'D', va(synthVars))
	add("vmemmap_base", 'D', va(synthVars+8))
	add("init_task", 'D', va(synthTask))
	if g.form == formAbsolutePerCPU {
		add("__per_cpu_start", 'A', 0)
		add("runqueues", 'A', 0x2000)
		add("__per_cpu_end", 'A', 0x30000)
	} else {
		add("__per_cpu_start", 'D', va(synthData+0x10000))
		add("runqueues", 'D', va(synthData+0x12000))
		add("__per_cpu_end", 'D', va(synthData+0x20000))
		for i, s := range g.symbols {
			g.symbols[i].PerCPU = s.Name == "runqueues" || s.Name == "__per_cpu_start"
		}
	}
	if g.long {
		add(strings.Repeat("X", 300), 't', va(0x300))
	}
	sort.SliceStable(g.symbols, func(i, j int) bool { return g.symbols[i].Addr < g.symbols[j].Addr })
}

// synthTokens stand for more than one character each.
var synthTokens = map[string]byte{"the_": 0x80, "function_": 0x81, "init": 0x82, "Tthe_": 0xff}

// encode writes the tables of kallsyms, which begin at va.
func (o synth) encode(symbols []Symbol, va hypervisor.VirtAddr) []byte {
	var b []byte
	le := binary.LittleEndian
	pad := func(to int) {
		for len(b)%to != 0 {
			b = append(b, 0)
		}
	}
	offsets := func() {
		pad(o.align)
		base := symbols[len(symbols)-1].Addr
		for _, s := range symbols {
			if s.Addr >= kernelMap {
				base = min(base, s.Addr)
			}
		}
		at := va + hypervisor.VirtAddr(len(b))
		for i, s := range symbols {
			var v uint64
			switch o.form {
			case formAbsolutePerCPU:
				if v = uint64(s.Addr); s.Addr >= kernelMap {
					v = uint64(base) - uint64(s.Addr) - 1
				}
			case formBaseRelative:
				v = uint64(s.Addr - base)
			case formSelfRelative:
				v = uint64(s.Addr - at - hypervisor.VirtAddr(4*i))
			}
			b = le.AppendUint32(b, uint32(v))
		}
		if o.form != formSelfRelative {
			pad(8)
			b = le.AppendUint64(b, uint64(base))
		}
	}
	names, markers := o.encodeNames(symbols)
	seqs := func() {
		pad(o.align)
		for i := range symbols {
			s := le.AppendUint32(nil, bits.ReverseBytes32(uint32(i)))
			b = append(b, s[4-o.seqs:]...)
		}
	}
	if !o.newOrder {
		offsets()
	}
	pad(o.align)
	b = le.AppendUint32(b, uint32(len(symbols)))
	pad(o.align)
	b = append(b, names...)
	pad(o.align)
	for _, m := range markers {
		b = le.AppendUint32(b, m)
	}
	if !o.newOrder {
		seqs()
	}
	pad(o.align)
	var index []byte
	table := len(b)
	for i := range tokenCount {
		index = le.AppendUint16(index, uint16(len(b)-table))
		if i >= 0x21 && i < 0x7f {
			b = append(b, byte(i))
		}
		for t, c := range synthTokens {
			if int(c) == i {
				b = append(b, t...)
			}
		}
		b = append(b, 0)
	}
	pad(o.align)
	b = append(b, index...)
	if o.newOrder {
		offsets()
		seqs()
	}
	return b
}

func (o synth) encodeNames(symbols []Symbol) (names []byte, markers []uint32) {
	for i, s := range symbols {
		if i%markerStep == 0 {
			markers = append(markers, uint32(len(names)))
		}
		name := string(s.Type) + s.Name
		for _, t := range []string{"Tthe_", "the_", "function_", "init"} {
			name = strings.ReplaceAll(name, t, string([]byte{synthTokens[t]}))
		}
		if len(name) > 0x7f && !o.plain {
			names = append(names, byte(len(name)|0x80), byte(len(name)>>7))
		} else {
			names = append(names, byte(len(name)))
		}
		names = append(names, name...)
	}
	return names, markers
}

// btfWriter writes BTF.
type btfWriter struct {
	types, strs []byte
	n           uint32
}

func (w *btfWriter) name(s string) uint32 {
	if len(w.strs) == 0 {
		w.strs = []byte{0}
	}
	if s == "" {
		return 0
	}
	off := len(w.strs)
	w.strs = append(append(w.strs, s...), 0)
	return uint32(off)
}

// add adds a type and returns its id.
func (w *btfWriter) add(name string, kind, vlen int, flag bool, sizeOrRef uint32, data ...uint32) uint32 {
	info := uint32(kind)<<24 | uint32(vlen)
	if flag {
		info |= 1 << 31
	}
	for _, v := range append([]uint32{w.name(name), info, sizeOrRef}, data...) {
		w.types = binary.LittleEndian.AppendUint32(w.types, v)
	}
	w.n++
	return w.n
}

func (w *btfWriter) blob() []byte {
	w.name("")
	b := append([]byte{}, btfMark...)
	for _, v := range []int{btfHeaderLen, 0, len(w.types), len(w.types), len(w.strs)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	return append(append(b, w.types...), w.strs...)
}

// synthTypes has a task_struct with its name at offset comm, and one of each
// kind.
func synthTypes(comm uint32) []byte {
	w := &btfWriter{}
	char := w.add("char", btfInt, 0, false, 1, 1<<24|8)
	u32 := w.add("unsigned int", btfInt, 0, false, 4, 32)
	u64 := w.add("long unsigned int", btfInt, 0, false, 8, 64)
	s64 := w.add("long long int", btfInt, 0, false, 8, 1<<24|64)
	comm16 := w.add("", btfArray, 0, false, 0, char, u32, 16)
	matrix := w.add("", btfArray, 0, false, 0, comm16, u32, 3)
	td := w.add("u64", btfTypedef, 0, false, u64)
	cv := w.add("", btfConst, 0, false, td)
	vol := w.add("", btfVolatile, 0, false, cv)
	tag := w.add("percpu", btfTypeTag, 0, false, vol)
	restrict := w.add("", btfRestrict, 0, false, tag)
	fwd := w.add("mystery", btfFwd, 0, false, 0)
	ptr := w.add("", btfPtr, 0, false, fwd)
	voidPtr := w.add("", btfPtr, 0, false, 0)
	en := w.add("state", btfEnum, 2, true, 4, w.name("RUNNING"), 1, w.name("DEAD"), 0xffff_ffff)
	un := w.add("flags32", btfEnum, 1, false, 4, w.name("HIGH"), 0x8000_0000)
	e64 := w.add("big", btfEnum64, 1, false, 8, w.name("BIG"), 5, 1)
	fl := w.add("double", btfFloat, 0, false, 8)
	se := w.add("sched_entity", btfStruct, 2, false, 16, w.name("load"), restrict, 0, w.name("exec_start"), s64, 64)
	inner := w.add("", btfUnion, 2, false, 8, w.name("left"), u32, 0, w.name("right"), u64, 0)
	anon := w.add("", btfStruct, 2, false, 16, 0, inner, 0, w.name("deep"), u64, 64)
	proto := w.add("", btfFuncProto, 1, false, 0, w.name("arg"), u32)
	w.add("function", btfFunc, 0, false, proto)
	fnPtr := w.add("", btfPtr, 0, false, proto)
	task := w.add("task_struct", btfStruct, 12, true, comm+300,
		w.name("flags"), u32, 0,
		w.name("bit_a"), u32, 3<<24|32,
		w.name("bit_b"), u32, 7<<24|35,
		w.name("comm"), comm16, comm*8,
		0, anon, (comm+16)*8,
		w.name("se"), se, (comm+32)*8,
		w.name("mystery"), ptr, (comm+48)*8,
		w.name("matrix"), matrix, (comm+56)*8,
		w.name("state"), en, (comm+104)*8,
		w.name("fn"), fnPtr, (comm+112)*8,
		w.name("weight"), fl, (comm+120)*8,
		w.name("data"), voidPtr, (comm+128)*8)
	w.add("task_struct_t", btfTypedef, 0, false, task)
	v := w.add("variable", btfVar, 0, false, u32, 1)
	w.add(".data..percpu", btfDatasec, 1, false, 4, v, 0, 4)
	w.add("tag", btfDeclTag, 0, false, task, 0xffff_ffff)
	w.add("users", btfStruct, 2, false, 16, w.name("a"), e64, 0, w.name("b"), un, 64)
	return w.blob()
}
