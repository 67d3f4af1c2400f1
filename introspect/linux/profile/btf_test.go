package profile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

func mustTypes(t testing.TB, blob []byte) *Types {
	t.Helper()
	types, err := newTypes(blob, nil)
	if err != nil {
		t.Fatal(err)
	}
	return types
}

func TestField(t *testing.T) {
	types := mustTypes(t, synthTypes(40))
	for path, want := range map[string]Field{
		"task_struct.flags":         {Offset: 0, Size: 4, Kind: KindInt, TypeName: "unsigned int"},
		"task_struct.bit_a":         {Offset: 4, Size: 4, BitSize: 3, Kind: KindInt, TypeName: "unsigned int"},
		"task_struct.bit_b":         {Offset: 4, Size: 4, BitOffset: 3, BitSize: 7, Kind: KindInt, TypeName: "unsigned int"},
		"task_struct.comm":          {Offset: 40, Size: 16, Kind: KindArray, TypeName: "char", Elem: 1, Len: 16},
		"task_struct.left":          {Offset: 56, Size: 4, Kind: KindInt, TypeName: "unsigned int"},
		"task_struct.right":         {Offset: 56, Size: 8, Kind: KindInt, TypeName: "long unsigned int"},
		"task_struct.deep":          {Offset: 64, Size: 8, Kind: KindInt, TypeName: "long unsigned int"},
		"task_struct.se":            {Offset: 72, Size: 16, Kind: KindStruct, TypeName: "sched_entity"},
		"task_struct.se.exec_start": {Offset: 80, Size: 8, Kind: KindInt, Signed: true, TypeName: "long long int"},
		"task_struct.se.load":       {Offset: 72, Size: 8, Kind: KindInt, TypeName: "long unsigned int"},
		"task_struct.mystery":       {Offset: 88, Size: 8, Kind: KindPointer, TypeName: "mystery"},
		"task_struct.matrix":        {Offset: 96, Size: 48, Kind: KindArray, TypeName: "char", Elem: 1, Len: 48},
		"task_struct.state":         {Offset: 144, Size: 4, Kind: KindEnum, Signed: true, TypeName: "state"},
		"task_struct.fn":            {Offset: 152, Size: 8, Kind: KindPointer},
		"task_struct.weight":        {Offset: 160, Size: 8, Kind: KindFloat, TypeName: "double"},
		"task_struct.data":          {Offset: 168, Size: 8, Kind: KindPointer},
		"task_struct_t.deep":        {Offset: 64, Size: 8, Kind: KindInt, TypeName: "long unsigned int"},
		"struct task_struct.comm":   {Offset: 40, Size: 16, Kind: KindArray, TypeName: "char", Elem: 1, Len: 16},
		"users.a":                   {Offset: 0, Size: 8, Kind: KindEnum, TypeName: "big"},
		"users.b":                   {Offset: 8, Size: 4, Kind: KindEnum, TypeName: "flags32"},
		"u64":                       {Size: 8, Kind: KindInt, TypeName: "long unsigned int"},
		"sched_entity":              {Size: 16, Kind: KindStruct, TypeName: "sched_entity"},
	} {
		if got, err := types.Field(path); err != nil || got != want {
			t.Errorf("Field(%s) = %+v, %v, want %+v", path, got, err, want)
		}
		if !types.Has(path) {
			t.Errorf("Has(%s) is false", path)
		}
	}
	for _, path := range []string{
		"", ".", "task_struct.", "task_struct.nothing", "task_struct.comm.x", "task_struct.mystery.x",
		"nothing", "mystery", "union task_struct", "variable", "function", "task_struct..comm", "RUNNING",
	} {
		if f, err := types.Field(path); !errors.Is(err, ErrNoType) {
			t.Errorf("Field(%s) = %+v, %v, want ErrNoType", path, f, err)
		}
	}
	if n, err := types.Size("task_struct"); n != 340 || err != nil {
		t.Errorf("Size = %d, %v", n, err)
	}
	for _, c := range []struct {
		enum, name string
		want       int64
	}{
		{"state", "RUNNING", 1}, {"state", "DEAD", -1}, {"flags32", "HIGH", 0x8000_0000},
		{"big", "BIG", 1<<32 + 5}, {"", "BIG", 1<<32 + 5}, {"enum state", "DEAD", -1},
	} {
		if v, err := types.EnumValue(c.enum, c.name); v != c.want || err != nil {
			t.Errorf("EnumValue(%s, %s) = %d, %v, want %d", c.enum, c.name, v, err, c.want)
		}
	}
	for _, c := range [][2]string{{"state", "BIG"}, {"", "NOTHING"}, {"nothing", "RUNNING"}, {"task_struct", "comm"}} {
		if _, err := types.EnumValue(c[0], c[1]); !errors.Is(err, ErrNoType) {
			t.Errorf("EnumValue(%s, %s): %v, want ErrNoType", c[0], c[1], err)
		}
	}
}

// TestOldBTF: before kind_flag a bit-field's width was its int's, and all
// enumerators were signed.
func TestOldBTF(t *testing.T) {
	w := &btfWriter{}
	three := w.add("unsigned int", btfInt, 0, false, 4, 2<<16|3)
	w.add("s", btfStruct, 1, false, 4, w.name("f"), three, 8)
	w.add("e", btfEnum, 1, false, 4, w.name("MINUS"), 0xffff_ffff)
	types := mustTypes(t, w.blob())
	want := Field{Offset: 1, Size: 4, BitOffset: 2, BitSize: 3, Kind: KindInt, TypeName: "unsigned int"}
	if f, err := types.Field("s.f"); err != nil || f != want {
		t.Errorf("%+v, %v, want %+v", f, err, want)
	}
	if v, err := types.EnumValue("e", "MINUS"); err != nil || v != -1 {
		t.Errorf("MINUS = %d, %v", v, err)
	}
}

func TestDamagedBTF(t *testing.T) {
	good := synthTypes(40)
	change := func(off int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[off:], v)
		return b
	}
	kind := func(k, vlen uint32) []byte { return change(btfHeaderLen+4, k<<24|vlen) }
	for name, c := range map[string]struct {
		blob []byte
		want string
	}{
		"empty":          {nil, "0 bytes"},
		"magic":          {change(0, 0), "magic"},
		"version":        {change(0, 0x2eb9f), "version 2"},
		"header length":  {change(4, 1<<31), "header length"},
		"types too long": {change(12, 1<<30), "types"},
		"types far off":  {change(8, 0xffff_fff0), "types"},
		"strings":        {change(20, 0xffff_ffff), "strings"},
		"no strings":     {change(20, 0), "no types"},
		"cut":            {good[:len(good)-8], "strings"},
		"end of strings": {append(bytes.Clone(good[:len(good)-1]), 'x'), "NUL"},
		"unknown kind":   {kind(25, 0), "unknown BTF kind 25"},
		"kind 0":         {kind(0, 0), "unknown BTF kind 0"},
		"huge count":     {kind(btfStruct, 0xffff), "do not fit"},
		"odd types":      {change(12, binary.LittleEndian.Uint32(good[12:])-4), "type"},
	} {
		_, err := newTypes(c.blob, nil)
		var damaged *DamagedError
		if !errors.As(err, &damaged) || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want a DamagedError of %q", name, err, c.want)
		}
	}
}

// TestEndlessBTF: types that lead to themselves.
func TestEndlessBTF(t *testing.T) {
	w := &btfWriter{}
	w.add("ring", btfTypedef, 0, false, 1)
	w.add("array", btfTypedef, 0, false, 3)
	w.add("", btfArray, 0, false, 0, 3, 3, 1)
	w.add("self", btfStruct, 1, false, 8, 0, 4, 0)
	w.add("wild", btfTypedef, 0, false, 0xffff_ffff)
	w.add("s", btfStruct, 1, false, 8, w.name("m"), 1, 0)
	w.add("huge", btfTypedef, 0, false, 8)
	w.add("", btfArray, 0, false, 0, 9, 9, 0x7fff_ffff)
	w.add("", btfArray, 0, false, 0, 6, 6, 0x7fff_ffff)
	types := mustTypes(t, w.blob())
	for _, path := range []string{"ring", "ring.x", "array", "self.x", "wild", "wild.x", "s.m", "huge"} {
		if _, err := types.Field(path); !errors.Is(err, ErrDamaged) {
			t.Errorf("Field(%s): %v, want ErrDamaged", path, err)
		}
	}
	// A struct of anonymous members, each of a struct of such, and so on, has
	// more members than anyone can look at.
	w = &btfWriter{}
	const width, depth = 1000, 20
	for d := range depth {
		members := make([]uint32, 0, 3*width)
		for range width {
			members = append(members, 0, uint32(d), 0)
		}
		w.add(fmt.Sprintf("level%d", d), btfStruct, width, false, 8, members...)
	}
	types = mustTypes(t, w.blob())
	if _, err := types.Field(fmt.Sprintf("level%d.x", depth-1)); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

// compareBTF compares every member of every struct and union, and every
// enumerator, with what an independent reader says of the same blob.
func compareBTF(t *testing.T, blob []byte) {
	t.Helper()
	types := mustTypes(t, blob)
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(blob))
	if err != nil {
		t.Fatal(err)
	}
	members, enums := 0, 0
	wrong := 0
	bad := func(format string, args ...any) {
		t.Helper()
		t.Errorf(format, args...)
		if wrong++; wrong > 20 {
			t.Fatal("too many differences")
		}
	}
	for typ, err := range spec.All() {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := typ.(*btf.Void); ok {
			continue
		}
		tid, err := spec.TypeID(typ)
		if err != nil {
			t.Fatal(err)
		}
		id := uint32(tid)
		var list []btf.Member
		switch typ := typ.(type) {
		case *btf.Struct:
			list = typ.Members
		case *btf.Union:
			list = typ.Members
		case *btf.Enum:
			enums += compareEnum(bad, types, id, typ)
			continue
		default:
			continue
		}
		bt, err := types.byID(id)
		if err != nil {
			t.Fatal(err)
		}
		if bt.vlen != len(list) || types.name(bt.nameOff) != typ.TypeName() {
			t.Fatalf("type %d: %s with %d members, want %s with %d", id, types.name(bt.nameOff), bt.vlen, typ.TypeName(), len(list))
		}
		for i, m := range list {
			members++
			mine := bt.member(i)
			f, err := types.describe(mine, uint64(mine.bit))
			if err != nil {
				t.Fatalf("%s.%s: %v", typ.TypeName(), m.Name, err)
			}
			size, err := btf.Sizeof(m.Type)
			if err != nil { // incomplete types and functions have none
				size = 0
			}
			if types.name(mine.nameOff) != m.Name || f.Size != uint64(size) || f.BitSize != uint32(m.BitfieldSize) ||
				f.Offset*8+uint64(f.BitOffset) != uint64(m.Offset) {
				bad("%s.%s: %+v, want offset %d bits %d size %d", typ.TypeName(), m.Name, f, m.Offset, m.BitfieldSize, size)
			}
			// By path: what C would find, the first type of this name.
			if typ.TypeName() == "" || m.Name == "" || m.Name == "x" {
				continue
			}
			budget := maxMembers
			if byPath, err := types.fieldOf(bt, m.Name, true, &budget); err != nil || byPath != f {
				bad("%s.%s: by path %+v, %v, want %+v", typ.TypeName(), m.Name, byPath, err, f)
			}
			if !types.Has(typ.TypeName() + "." + m.Name) {
				bad("no %s.%s", typ.TypeName(), m.Name)
			}
		}
	}
	t.Logf("%d members, %d enumerators of %d types compared", members, enums, types.Len())
}

func compareEnum(bad func(string, ...any), types *Types, id uint32, want *btf.Enum) int {
	bt, err := types.byID(id)
	if err != nil || bt.vlen != len(want.Values) {
		bad("enum %s: %d enumerators (%v), want %d", want.Name, bt.vlen, err, len(want.Values))
		return 0
	}
	for _, v := range want.Values {
		got, ok := types.enumerator(bt, v.Name)
		w := int64(v.Value)
		// BTF from before enum64 has the lower half only of enums of 8 bytes.
		if bt.kind == btfEnum && types.isSigned(bt) {
			w = int64(int32(v.Value))
		}
		if !ok || got != w {
			bad("enum %s: %s = %d, %v, want %d", want.Name, v.Name, got, ok, w)
		}
	}
	return len(want.Values)
}

func TestCompareSynthetic(t *testing.T) { compareBTF(t, synthTypes(40)) }
