package linux

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// A core's headers say what they should, also with more segments than an ELF
// header can count.
func TestCoreHeader(t *testing.T) {
	for _, n := range []int{1, 3, 70000} {
		c := core{notes: coreNote(nil, ntAUXV, make([]byte, 33))}
		v := &VMA{Perms: "r-xp"}
		for i := range n {
			start := hypervisor.VirtAddr(0x1000_0000 + i*0x2000)
			c.segments = append(c.segments, coreSegment{vma: v, start: start, end: start + 0x2000, file: uint64(i % 2 * 0x1000)})
		}
		b := c.header()
		if n == 70000 {
			le := binary.LittleEndian
			at := le.Uint64(b[40:])
			if le.Uint16(b[56:]) != pnXNum || le.Uint32(b[at+44:]) != uint32(n+1) || le.Uint64(b[at+32:]) != 1 {
				t.Errorf("count of %d segments: %x", n+1, b[at:at+64])
			}
			continue
		}
		f, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Progs) != n+1 {
			t.Fatalf("%d segments, want %d", len(f.Progs), n+1)
		}
		off := uint64(len(b))
		for i, p := range f.Progs[1:] {
			s := c.segments[i]
			if p.Off != off || p.Vaddr != uint64(s.start) || p.Memsz != 0x2000 || p.Filesz != s.file || p.Flags != elf.PF_R|elf.PF_X {
				t.Errorf("segment %d: %+v", i, p.ProgHeader)
			}
			off += p.Filesz
		}
		if p := f.Progs[0]; p.Filesz != uint64(len(c.notes)) || p.Filesz%4 != 0 {
			t.Errorf("notes: %+v", p.ProgHeader)
		}
	}
}

func TestCoreNotes(t *testing.T) {
	auxv := make([]byte, 64)
	auxv[0] = 6
	if got := coreAUXV(auxv); len(got) != 32 {
		t.Errorf("%d bytes up to AT_NULL", len(got))
	}
	if got := coreAUXV(bytes.Repeat([]byte{1}, 41)); len(got) != 32 {
		t.Errorf("%d bytes without AT_NULL", len(got))
	}
	b := coreFiles([]VMA{{Start: 0x1000, End: 0x3000, Offset: 0x2000, Path: "/a\x00b", file: 1}, {Start: 0x4000, End: 0x5000}})
	if binary.LittleEndian.Uint64(b) != 1 || binary.LittleEndian.Uint64(b[32:]) != 2 || !bytes.HasSuffix(b, []byte("/a?b\x00")) {
		t.Errorf("%x", b)
	}
	if coreFiles([]VMA{{Start: 1}}) != nil {
		t.Error("a note of no files")
	}
}

func TestSwapEntries(t *testing.T) {
	for _, c := range []struct{ kind, offset uint64 }{{0, 1}, {1, 12345}, {31, 1<<50 - 1}} {
		pte := c.kind<<59 | ^(c.offset<<14)>>5&(1<<59-1)&^0x1ff
		if got := swapEntryOfPTE(pte); got != c.kind<<swapOffsetBits|c.offset {
			t.Errorf("%+v: %s", c, fmt.Sprintf("%#x", got))
		}
	}
}

// Registers of user mode are known from what else may lie there.
func TestCoreRegsOfUser(t *testing.T) {
	good := make([]byte, ptRegsLen)
	for i, v := range map[int]uint64{16: 0x401000, 17: userCS, 18: 0x246, 19: 0x7ffc_0000_0000, 20: userDS} {
		binary.LittleEndian.PutUint64(good[8*i:], v)
	}
	if !coreRegsOfUser(good) {
		t.Error("registers of user mode are not known")
	}
	for i, v := range map[int]uint64{16: ^uint64(0), 17: 0x10, 18: 0x46, 19: 0xffff_8880_0000_0000, 20: 0x18} {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint64(b[8*i:], v)
		if coreRegsOfUser(b) {
			t.Errorf("register %d of %#x is believed", i, v)
		}
	}
}
