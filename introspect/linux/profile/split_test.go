package profile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// splitBlob makes a module's own types: struct zram with a member of the type id
// of the kernel, its strings and types numbered on from there.
func splitBlob(base *Types, id uint32) []byte {
	strs := []byte("zram\x00table\x00")
	at := uint32(len(base.strs))
	var types []byte
	for _, w := range []uint32{at, btfStruct<<24 | 1, 16, at + 5, id, 64} {
		types = binary.LittleEndian.AppendUint32(types, w)
	}
	b := binary.LittleEndian.AppendUint32(nil, 1<<16|btfMagic)
	for _, w := range []int{btfHeaderLen, 0, len(types), len(types), len(strs)} {
		b = binary.LittleEndian.AppendUint32(b, uint32(w))
	}
	return append(append(b, types...), strs...)
}

func TestModuleTypes(t *testing.T) {
	base := mustTypes(t, synthTypes(40))
	comm, err := base.Field("task_struct.comm")
	if err != nil {
		t.Fatal(err)
	}
	var id uint32
	for bt, err := range base.named("task_struct") {
		if err != nil {
			t.Fatal(err)
		}
		id = bt.id
	}
	all, err := base.WithModule(splitBlob(base, id))
	if err != nil {
		t.Fatal(err)
	}
	if f, err := all.Field("zram.table.comm"); err != nil || f.Offset != 8+comm.Offset {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := all.Field("task_struct.comm"); err != nil || f != comm {
		t.Errorf("%+v, %v, want %+v", f, err, comm)
	}
	if all.Len() != base.Len()+1 || base.Has("zram") {
		t.Errorf("%d types, %d before", all.Len(), base.Len())
	}
	if _, err := base.WithModule(nil); !isDamaged(err) {
		t.Error(err)
	}
	if _, err := (*Types)(nil).WithModule(nil); !errors.Is(err, ErrNoBTF) {
		t.Error(err)
	}
}

func FuzzModuleTypes(f *testing.F) {
	base, err := newTypes(synthTypes(40), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(splitBlob(base, 1))
	f.Add(synthTypes(8))
	before := bytes.Clone(base.types)
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := base.WithModule(b)
		if err != nil {
			return
		}
		useTypes(all)
		if !bytes.Equal(before, base.types) {
			t.Error("the kernel's own types were changed")
		}
	})
}
