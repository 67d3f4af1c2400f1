package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// parseBytes parses a file that lies in memory.
func parseBytes(b []byte, p params) (*parsed, error) {
	s := &source{path: "x", r: bytes.NewReader(b), size: int64(len(b)), partial: p.partial}
	return s.parse(p)
}

// with returns b with v at off.
func with(b []byte, off int, v any) []byte {
	b = slices.Clone(b)
	copy(b[off:], le(v))
	return b
}

func TestLyingFiles(t *testing.T) {
	data := pattern(0x1000, 0x2000)
	lime := encodeLiME(piece{0x1000, data}, piece{0x8000, data})
	avml := encodeAVML(piece{0x1000, data}, piece{0x8000, data})
	elf := encodeELF(elfNote("QEMU", 0, testCPU(0)), piece{0x1000, data}, piece{0x8000, data})
	const (
		load1  = 64 + 56   // the first PT_LOAD header
		notes  = 64 + 56*3 // where the notes are
		second = 32 + 0x2000
	)
	for _, c := range []struct {
		name   string
		file   []byte
		offset int64
		what   string
	}{
		{"empty", nil, 0, "empty"},

		{"lime: second magic", with(lime, second, uint32(1)), second, "bad magic"},
		{"lime: version", with(lime, 4, uint32(2)), 4, "unknown version 2"},
		{"lime: end before start", with(lime, 16, uint64(0xfff)), 16, "before start"},
		{"lime: all addresses", with(with(lime, 8, uint64(0)), 16, uint64(math.MaxUint64)), 16, "address space"},
		{"lime: reserved", with(lime, 24, uint64(7)), 24, "reserved"},
		{"lime: too long", with(lime, 16, uint64(1<<40)), int64(len(lime)), "truncated"},
		{"lime: beyond any file", with(lime, 16, uint64(math.MaxUint64-1)), int64(len(lime)), "beyond any file"},
		{"lime: cut in the header", lime[:second+10], second, "file ends at"},
		{"lime: overlap", with(lime, second+8, [2]uint64{0x2000, 0x3fff}), second + 32, "overlaps"},
		{"lime: another kind", append(slices.Clone(lime), avml...), int64(len(lime)), "in a file of"},

		{"avml: version", with(avml, 4, uint32(1)), 4, "unknown version 1"},
		{"avml: no identifier", with(avml, 32, byte(0)), 32, "stream identifier"},
		{"avml: bad identifier", with(avml, 36, byte('x')), 36, "bad identifier"},
		{"avml: reserved chunk", with(avml, 42, byte(0x33)), 42, "reserved"},
		{"avml: chunk too long", with(avml, 43, uint16(0xffff)), int64(len(avml)), "truncated"},
		{"avml: chunk too short", with(with(avml, 43, uint16(4)), 45, byte(0)), 42, "4 bytes long"},
		{"avml: chunk of too much", with(avml, 50, [5]byte{0xff, 0xff, 0xff, 0xff, 0x0f}), 42, "more than the format"},
		{"avml: chunk beyond the range", with(avml, 16, uint64(0x1fff)), 42, "beyond the range"},
		{"avml: trailer", with(avml, len(avml)-8, uint64(1)), int64(len(avml) - 8), "trailer"},
		{"avml: cut", avml[:len(avml)-20], int64(len(avml) - 20), "truncated"},

		{"elf: cut in the header", elf[:60], 0, "file ends at"},
		{"elf: class", with(elf, 4, byte(3)), 4, "class"},
		{"elf: big-endian", with(elf, 5, byte(2)), 5, "little-endian"},
		{"elf: a program", with(elf, 16, uint16(2)), 16, "no core"},
		{"elf: machine", with(elf, 18, uint16(183)), 18, "no x86"},
		{"elf: phentsize", with(elf, 54, uint16(8)), 54, "of 8 bytes"},
		{"elf: phoff", with(elf, 32, uint64(1<<60)), 1 << 60, "file ends at"},
		{"elf: phoff wraps", with(elf, 32, uint64(math.MaxUint64)), 0, "file ends at"},
		{"elf: phnum", with(elf, 56, uint16(0xfffe)), 0, "file ends at"},
		{"elf: no section header for phnum", with(elf, 56, uint16(0xffff)), 56, "section header"},
		{"elf: section header outside", with(with(with(elf, 56, uint16(0xffff)), 40, uint64(1<<40)), 58, uint16(64)), 1<<40 + 44, "file ends at"},
		{"elf: filesz > memsz", with(elf, load1+32, uint64(0x3000)), load1, "in memory"},
		{"elf: wraps", with(elf, load1+24, uint64(math.MaxUint64-1)), load1, "wrap"},
		{"elf: off", with(elf, load1+8, uint64(1<<50)), int64(len(elf)), "truncated"},
		{"elf: overlap", with(elf, load1+56+24, uint64(0x2000)), int64(len(elf) - 0x2000), "overlaps"},
		{"elf: note", with(elf, notes, uint32(math.MaxUint32)), notes, "notes' end"},
		{"elf: QEMU's version", with(elf, notes+12+8, uint32(2)), notes + 20, "unknown version"},
		{"elf: QEMU's size", with(elf, notes+12+8+4, uint32(12)), notes + 20, "size field"},
		{"elf: notes too many", with(with(elf, 64+32, uint64(1<<40)), 64+40, uint64(1<<40)), 64, "ELF notes"},
		{"elf: no memory", encodeELF(nil), 0, "no memory"},

		{"kdump", append([]byte("KDUMP   "), data...), 0, "kdump-compressed"},
		{"qcow2", append([]byte("QFI\xfb"), data...), 0, "qcow2"},
		{"gzip", append([]byte("\x1f\x8b\x08"), data...), 0, "gzip"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseBytes(c.file, params{})
			var bad *FormatError
			if !errors.As(err, &bad) {
				t.Fatalf("%v; want a *FormatError", err)
			}
			if c.offset != 0 && bad.Offset != c.offset || !strings.Contains(bad.What, c.what) {
				t.Errorf("%v; want %q at %#x", err, c.what, c.offset)
			}
			// Whatever it is, it opens as raw memory if one insists.
			if len(c.file) > 0 {
				if _, err := parseBytes(c.file, params{format: formatRaw}); err != nil {
					t.Errorf("format=raw: %v", err)
				}
			}
		})
	}
}

func TestELFManyProgramHeaders(t *testing.T) {
	// PN_XNUM: the real number is in sh_info of section header 0.
	const n = 70_000
	var pieces []piece
	for i := range uint64(n) {
		pieces = append(pieces, piece{i << 13, []byte{byte(i), byte(i >> 8)}})
	}
	b := encodeELF(nil, pieces...)
	binary.LittleEndian.PutUint16(b[56:], 0xffff)
	binary.LittleEndian.PutUint16(b[58:], 64)
	binary.LittleEndian.PutUint64(b[40:], uint64(len(b)))
	b = append(b, with(make([]byte, 64), 44, uint32(n+1))...)
	im, err := parseBytes(b, params{})
	if err != nil {
		t.Fatal(err)
	}
	if len(im.segments) != n || im.segments[n-1].phys != (n-1)<<13 {
		t.Errorf("%d segments", len(im.segments))
	}
}

// dump-guest-memory with paging=on names the same memory once per virtual
// mapping.
func TestELFAliases(t *testing.T) {
	data := pattern(0, 0x4000)
	b := encodeELF(nil, piece{0x10000, data}, piece{0x11000, nil}, piece{0x12000, nil}, piece{0x8000, nil})
	at := binary.LittleEndian.Uint64(b[64+56+8:])
	alias := func(i int, skip, size, paddr uint64) {
		h := 64 + 56*(i+1)
		copy(b[h+8:], le(at+skip))
		copy(b[h+24:], le(paddr, size, size))
	}
	alias(1, 0x1000, 0x1000, 0x11000) // inside the first
	alias(2, 0x2000, 0x2000, 0x12000) // up to its end
	alias(3, 0, 0x1000, 0x8000)       // the same bytes at another address: no overlap
	im, err := parseBytes(b, params{})
	if err != nil {
		t.Fatal(err)
	}
	want := []segment{
		{phys: 0x8000, size: 0x1000, off: int64(at), have: 0x1000},
		{phys: 0x10000, size: 0x4000, off: int64(at), have: 0x4000},
	}
	if !slices.Equal(im.segments, want) {
		t.Errorf("segments %+v, want %+v", im.segments, want)
	}
	alias(1, 0x1008, 0x1000, 0x11000) // the same address, other bytes
	if _, err := parseBytes(b, params{}); err == nil || !strings.Contains(err.Error(), "overlaps") {
		t.Errorf("overlapping segments that differ: %v", err)
	}
}

func TestRawHole(t *testing.T) {
	for _, c := range []struct {
		size uint64
		hole string
		want []hypervisor.Range
	}{
		{5 << 30, "", []hypervisor.Range{{Size: 5 << 30}}},
		{5 << 30, "pc", []hypervisor.Range{{Size: 3 << 30}, {Start: 1 << 32, Size: 2 << 30}}},
		{5 << 30, "q35", []hypervisor.Range{{Size: 2 << 30}, {Start: 1 << 32, Size: 3 << 30}}},
		{3 << 30, "pc", []hypervisor.Range{{Size: 3 << 30}}},
		{3584 << 20, "pc", []hypervisor.Range{{Size: 3 << 30}, {Start: 1 << 32, Size: 512 << 20}}},
		{2815 << 20, "q35", []hypervisor.Range{{Size: 2815 << 20}}},
		{2816 << 20, "q35", []hypervisor.Range{{Size: 2 << 30}, {Start: 1 << 32, Size: 768 << 20}}},
	} {
		s := &source{size: int64(c.size)}
		im, err := s.parseRaw(c.hole)
		if err != nil {
			t.Fatal(err)
		}
		var got []hypervisor.Range
		for _, g := range im.segments {
			got = append(got, hypervisor.Range{Start: g.phys, Size: g.size})
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d MiB with hole=%s: %v, want %v", c.size>>20, c.hole, got, c.want)
		}
	}
}

func TestOddRawIsTold(t *testing.T) {
	im, err := parseBytes(make([]byte, 4100), params{})
	if err != nil || len(im.warnings) != 1 || !strings.Contains(im.warnings[0], "last 4 bytes") {
		t.Errorf("warnings %q, %v", im.warnings, err)
	}
}

// testCPU is a QEMUCPUState whose every field is told apart.
func testCPU(cpu uint64) []byte {
	b := le(uint32(1), uint32(440))
	for i := range uint64(16) {
		b = append(b, le(0x1000+i+cpu<<32)...) // rax rbx rcx rdx rsi rdi rsp rbp r8…
	}
	b = append(b, le(uint64(0xffffffff81000000), uint64(0x246))...)
	for i := range uint32(10) { // cs ds es fs gs ss ldt tr gdt idt
		b = append(b, le(0x10+i, 0xfff00+i, uint32(0x00af9b00), uint32(0), 0xffff800000000000+uint64(i))...)
	}
	return append(b, le(uint64(0x80050033), uint64(0), uint64(0xdead), uint64(0x101000), uint64(0x6f0), uint64(0xffff888000000000))...)
}

func TestELFNotes(t *testing.T) {
	var pr []byte
	pr = append(pr, make([]byte, 112)...)
	for i := range uint64(27) {
		pr = append(pr, le(0x2000+i)...)
	}
	notes := slices.Concat(
		elfNote("CORE", 1, pr), elfNote("CORE", 1, pr), elfNote("CORE", 4, nil),
		elfNote("QEMU", 0, testCPU(0)), elfNote("QEMU", 0, testCPU(1)),
		elfNote("VMCOREINFO", 0, []byte("OSRELEASE=6.1.0\n")), elfNote("", 9, nil),
	)
	im, err := parseBytes(encodeELF(notes, piece{0, make([]byte, 4096)}), params{})
	if err != nil {
		t.Fatal(err)
	}
	if string(im.vmcoreinfo) != "OSRELEASE=6.1.0\n" || len(im.regs) != 2 {
		t.Fatalf("vmcoreinfo %q, %d vCPUs", im.vmcoreinfo, len(im.regs))
	}
	r := im.regs[1]
	if r.VCPU != 1 || r.RAX != 0x1_0000_1000 || r.RBX != 0x1_0000_1001 || r.RSI != 0x1_0000_1004 || r.RSP != 0x1_0000_1006 ||
		r.RBP != 0x1_0000_1007 || r.R8 != 0x1_0000_1008 || r.R15 != 0x1_0000_100f ||
		r.RIP != 0xffffffff81000000 || r.RFLAGS != 0x246 {
		t.Errorf("general registers: %+v", r)
	}
	if r.CS != (hypervisor.Segment{Selector: 0x10, Limit: 0xfff00, Attributes: 0xa09b, Base: 0xffff800000000000}) ||
		r.DS.Selector != 0x11 || r.ES.Selector != 0x12 || r.FS.Selector != 0x13 || r.GS.Selector != 0x14 ||
		r.SS.Selector != 0x15 || r.LDT.Selector != 0x16 || r.TR.Selector != 0x17 ||
		r.GDT != (hypervisor.Table{Base: 0xffff800000000008, Limit: 0xff08}) || r.IDT.Base != 0xffff800000000009 {
		t.Errorf("segments: %+v", r)
	}
	if r.CR0 != 0x80050033 || r.CR2 != 0xdead || r.CR3 != 0x101000 || r.CR4 != 0x6f0 ||
		r.EFER != eferLME|eferLMA|eferNXE || r.KernelGSBase != 0xffff888000000000 {
		t.Errorf("control registers: %+v", r)
	}
	if r.Valid != hypervisor.GroupGeneral|hypervisor.GroupSegments|hypervisor.GroupControl {
		t.Errorf("valid: %#x", r.Valid)
	}
	// Without QEMU's notes there are the general registers.
	im, err = parseBytes(encodeELF(elfNote("CORE", 1, pr), piece{0, make([]byte, 4096)}), params{})
	if err != nil || len(im.regs) != 1 {
		t.Fatalf("%d vCPUs, %v", len(im.regs), err)
	}
	r = im.regs[0]
	if r.R15 != 0x2000 || r.RBP != 0x2004 || r.RAX != 0x200a || r.RDI != 0x200e || r.RIP != 0x2010 || r.RFLAGS != 0x2012 ||
		r.RSP != 0x2013 || r.Valid != hypervisor.GroupGeneral {
		t.Errorf("NT_PRSTATUS: %+v", r)
	}
}

// Segments that follow each other are one; a truncated file that ends before
// them has nothing of it.
func TestTruncatedBeforeSegments(t *testing.T) {
	data := pattern(0x1000, 0x1000)
	b := encodeELF(nil, piece{0x1000, data}, piece{0x5000, data}, piece{0x6000, data}, piece{0x7000, data})
	cut := bytes.LastIndex(b[:len(b)-0x1000], data[:64]) - 0x1800 // within the second piece
	im, err := parseBytes(b[:cut], params{format: formatELF, partial: true})
	checkParsed(t, b[:cut], im, err)
	if err != nil {
		t.Fatal(err)
	}
	last := im.segments[len(im.segments)-1]
	if last.phys != 0x5000 || last.size != 0x3000 || last.have >= 0x1000 {
		t.Errorf("the segment that the file ends in: %+v", last)
	}
}
