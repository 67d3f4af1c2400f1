package profile

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func FuzzBTF(f *testing.F) {
	f.Add(synthTypes(40))
	f.Add([]byte{})
	f.Add(synthTypes(40)[:100])
	for _, k := range []int{btfStruct, btfArray, btfEnum64, btfDatasec, 31} {
		w := &btfWriter{}
		w.add("x", k, 1, true, 1, 1, 1, 1)
		f.Add(w.blob())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		types, err := newTypes(b, nil)
		if err != nil {
			return
		}
		useTypes(types)
		// What the cache keeps of it reads back the same.
		again, err := newTypes(b, types.appendIndex())
		if err != nil || again.Len() != types.Len() {
			t.Errorf("index read back: %v", err)
		}
	})
}

// FuzzIndex: an index of types is used only when its seal is right, and still
// must not be able to do harm.
func FuzzIndex(f *testing.F) {
	blob := synthTypes(40)
	types, err := newTypes(blob, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(types.appendIndex())
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, b []byte) {
		if types, err := newTypes(blob, b); err == nil {
			useTypes(types)
		}
	})
}

func FuzzKallsyms(f *testing.F) {
	for _, o := range variants {
		g := o.build()
		f.Add(bytes.Clone(g.tables))
	}
	f.Add([]byte(digits))
	f.Fuzz(func(_ *testing.T, b []byte) {
		im := &image{virt: synthVirt, size: synthSize}
		for at := nextDigits(b, 0); at >= 0; at = nextDigits(b, at+1) {
			t, err := checkTokens(b, at)
			if err != nil {
				continue
			}
			s, err := openSymbols(im, synthTables, b, t)
			if err != nil {
				continue
			}
			useKernel(&Kernel{Symbols: s})
		}
	})
}

// FuzzFind changes bytes of a guest's image: each 8 bytes of patches are an
// offset and what is to be there.
func FuzzFind(f *testing.F) {
	guests := []*synthGuest{synth{}.build(), synth{la57: true, newOrder: true, form: formSelfRelative, align: 4, seqs: 3}.build(), synth{textOnly: true}.build()}
	patch := func(words ...uint32) (b []byte) {
		for _, w := range words {
			b = binary.LittleEndian.AppendUint32(b, w)
		}
		return b
	}
	f.Add(uint8(0), []byte{})
	f.Add(uint8(1), patch(synthLevel3+8*imageEntry, 0x1063))
	f.Add(uint8(0), patch(synthLevel2+8*9, 0x80, synthTop, 0xffff_ffff))
	f.Add(uint8(2), patch(synthTables, 1, synthTables+0x4000, 0, synthBTF+12, 0x7fff_ffff))
	f.Add(uint8(0), patch(synthNotes, 0xffff_fffc, synthBanner, 0, synthTask+40, 0, synthSyscalls, 0))
	f.Fuzz(func(t *testing.T, which uint8, patches []byte) {
		g := guests[int(which)%len(guests)]
		image := g.ram[synthPhys:]
		type old struct {
			off uint32
			v   uint32
		}
		var undo []old
		for len(patches) >= 8 && len(undo) < 64 {
			off := binary.LittleEndian.Uint32(patches) % (synthSize - 4)
			undo = append(undo, old{off, binary.LittleEndian.Uint32(image[off:])})
			copy(image[off:off+4], patches[4:8])
			patches = patches[8:]
		}
		_, _ = findLie(t, g.memory())
		for i := len(undo) - 1; i >= 0; i-- {
			binary.LittleEndian.PutUint32(image[undo[i].off:], undo[i].v)
		}
	})
}
