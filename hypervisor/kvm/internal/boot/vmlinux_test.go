package boot

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// vmlinux is what the compressors' own programs make of a kernel's payload.
func vmlinux(t *testing.T, image []byte) []byte {
	t.Helper()
	le := binary.LittleEndian
	off := (int(image[0x1f1])+1)*512 + int(le.Uint32(image[0x248:]))
	b := image[off:][:le.Uint32(image[0x24c:])]
	program := "zstd"
	if le.Uint32(b) == lz4Magic {
		program = "lz4"
	}
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("%s is not installed: apt-get install %s", program, program)
	}
	cmd := exec.Command(program, "-dc")
	cmd.Stdin = bytes.NewReader(b[:len(b)-4])
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	return out
}

// A stock kernel that is decompressed is byte for byte what the compressors' own
// programs give; moved, it is the same but for words that differ by how far.
func TestUnpack(t *testing.T) {
	for _, suite := range []lab.Suite{lab.Bookworm, lab.Trixie} {
		t.Run(string(suite), func(t *testing.T) {
			image, err := os.ReadFile(labtest.Kernel(t, suite).Image)
			if err != nil {
				t.Fatal(err)
			}
			want, err := elf.NewFile(bytes.NewReader(vmlinux(t, image)))
			if err != nil {
				t.Fatal(err)
			}
			load := func(commandLine string) ([]byte, *place, hypervisor.PhysAddr) {
				mem := memory(t, 512<<20)
				le := binary.LittleEndian
				setup := (int64(image[0x1f1]) + 1) * 512
				entry, p, err := unpack(mem, Config{Kernel: file(image), CommandLine: commandLine}, image[:4096], setup,
					hypervisor.PhysAddr(le.Uint64(image[0x258:])), 512<<20, uint64(le.Uint32(image[0x260:])))
				if err != nil {
					t.Fatal(err)
				}
				b, err := mem.View(p.phys, p.size)
				if err != nil {
					t.Fatal(err)
				}
				return b, p, entry
			}
			still, p, entry := load("nokaslr")
			if uint64(p.phys) != 16<<20 || p.kaslr || p.virt != 0 || uint64(entry) != want.Entry {
				t.Errorf("without KASLR it is at %+v, its entry at %v, want %#x", p, entry, want.Entry)
			}
			for _, seg := range want.Progs {
				if seg.Type != elf.PT_LOAD {
					continue
				}
				b := make([]byte, seg.Filesz)
				if _, err := seg.ReadAt(b, 0); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(b, still[seg.Paddr-16<<20:][:seg.Filesz]) {
					t.Errorf("the segment at %#x differs", seg.Paddr)
				}
			}
			places := map[hypervisor.PhysAddr]bool{}
			for range 3 {
				moved, p, entry := load("")
				places[p.phys] = true
				if uint64(entry)-uint64(p.phys) != want.Entry-16<<20 || p.phys%(2<<20) != 0 || p.virt%(2<<20) != 0 || !p.kaslr {
					t.Errorf("it is at %+v, its entry at %v", p, entry)
				}
				changed := differences(still, moved, uint32(p.virt))
				if p.virt != 0 && changed < 10_000 {
					t.Errorf("%d words were moved", changed)
				}
				if changed < 0 {
					t.Error("words differ by something else than how far it was moved")
				}
			}
			if len(places) == 1 {
				t.Error("it is always at the same place")
			}
		})
	}
}

// differences counts the words that differ by delta; -1: one differs otherwise.
func differences(a, b []byte, delta uint32) (n int) {
	le := binary.LittleEndian
	for i := 0; i < len(a)-8; {
		if bytes.Equal(a[i:i+8], b[i:i+8]) {
			i += 8
			continue
		}
		for ; a[i] == b[i]; i++ {
		}
		// delta's lowest bytes are zero: the word begins up to three bytes before.
		at := -1
		for back := range 4 {
			if d := le.Uint32(b[i-back:]) - le.Uint32(a[i-back:]); d == delta || d == -delta {
				at = i - back
			}
		}
		if at < 0 {
			return -1
		}
		n++
		i = at + 4
	}
	return n
}

// A payload that is cut off or damaged is left to the guest, with nothing of it in
// memory.
func TestDamagedPayload(t *testing.T) {
	for _, suite := range []lab.Suite{lab.Bookworm, lab.Trixie} {
		image, err := os.ReadFile(labtest.Kernel(t, suite).Image)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, 4, 1000, 5 << 20, 10 << 20} {
			damaged(t, image, at)
		}
	}
}

// damaged boots image with some bytes of its payload turned round.
func damaged(t *testing.T, image []byte, at int) {
	t.Helper()
	setup := (int64(image[0x1f1]) + 1) * 512
	bad := bytes.Clone(image)
	off := int(setup) + int(binary.LittleEndian.Uint32(bad[0x248:]))
	for i := range 64 {
		bad[off+at+i] ^= 0xff
	}
	mem := memory(t, 256<<20)
	regs, err := Load(mem, Config{Kernel: file(bad)})
	if err != nil {
		t.Fatal(err)
	}
	code, err := mem.View(hypervisor.PhysAddr(regs.RIP)-0x200, uint64(len(bad))-uint64(setup))
	if err != nil || !bytes.Equal(code, bad[setup:]) {
		t.Errorf("damaged at %d: it is not the guest's to decompress: entry %v, %v", at, regs.RIP, err)
	}
}
