package pci

import "testing"

// FuzzGuest lets a guest do anything to the bus. Whatever it does, functions keep
// their identity, BARs stay in the window, and nothing panics.
func FuzzGuest(f *testing.F) {
	f.Add([]byte{0, 1, 4, 2, 6, 0, 0, 0})
	f.Add([]byte{1, 1, 0x10, 4, 0, 0, 0, 0xd0, 0, 1, 4, 2, 6, 0, 0, 0, 2, 0, 0, 8, 1, 2, 3, 4})
	f.Add([]byte{0, 2, 0x42, 2, 0, 0x80, 0, 0, 3, 0, 12, 4, 0, 0, 0, 0, 4, 1, 1, 1, 1, 1, 1, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMachine(t)
		windows := []*regs{{}, {}}
		var fs []*Function
		for i := range windows {
			fs = append(fs, m.add(t, Spec{
				Vendor: 0x1af4, Device: 0x1040, Pin: true, Vectors: 4, BARs: []BAR{{0x1000, windows[i]}},
				Capabilities: []Capability{{ID: 9, Data: make([]byte, 18), Mask: []byte{0, 0, 0xff}, Read: func(_, _ int, data []byte) { data[0]++ }}},
			}))
		}
		for ; len(b) >= 8; b = b[8:] {
			slot, reg, n, v := int(b[1]&3), int(b[2]), 1<<(b[3]&3), uint64(le.Uint32(b[4:]))
			switch b[0] % 6 {
			case 0:
				m.set(slot, reg, n, v|v<<32)
			case 1:
				write(&m.ports, 0xcf8, 4, 1<<31|uint64(slot)<<11|uint64(reg&0xfc))
				write(&m.ports, 0xcfc, min(n, 4), v)
			case 2: // a register of a BAR, wherever it is
				write(&m.mmio, m.get(slot, 0x10+4*int(b[2]&1), 4)+v&0xfff&^uint64(n-1), n, v|v<<32)
			case 3: // the MSI-X table
				write(&m.mmio, m.get(slot, 0x14, 4)+uint64(reg)&^uint64(n-1), n, v)
			case 4:
				fs[slot&1].MSIX().Signal(reg & 7)
				fs[slot&1].SetINTx(reg&8 != 0)
			case 5:
				if err := fs[slot&1].SetState(fs[slot&1].State()); err != nil {
					t.Fatalf("a function's own state: %v", err)
				}
			}
			for s := range 3 {
				var p [8]byte
				m.mmio.Read(uint64(0xe000_0000+s<<15+reg&0xf8), p[:])
			}
		}
		for s := 1; s <= 2; s++ {
			if m.get(s, 0, 4) != 0x10401af4 || m.get(s, 0x2c, 4) != 0 {
				t.Fatal("a function has lost its identity")
			}
		}
		for _, f := range fs {
			for _, w := range f.bars {
				if w.mapped != 0 && (w.mapped < 0xc000_0000 || w.mapped+w.Size > 0xe000_0000) {
					t.Fatalf("a BAR is at %#x", w.mapped)
				}
			}
		}
	})
}

// FuzzState feeds states of any kind.
func FuzzState(f *testing.F) {
	f.Add([]byte(`{"version":1,"address":1,"bridge":{"config":"AAAA"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m := newMachine(t)
		_ = m.host.RestoreState(b)
		if m.get(0, 0, 4) != 0x00081b36 {
			t.Fatal("the bridge has lost its identity")
		}
	})
}
