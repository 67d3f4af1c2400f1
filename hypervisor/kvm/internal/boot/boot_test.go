package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/guestmem"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func memory(t testing.TB, size uint64) *guestmem.Memory {
	t.Helper()
	m, err := guestmem.New(layout.RAM(size), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func file(b []byte) File { return File{bytes.NewReader(b), int64(len(b))} }

func kernel(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(labtest.Kernel(t, lab.Bookworm).Image)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A stock kernel is where its header says, and the zero page tells what the
// specification wants told; that it boots is shown by package vmm's tests.
func TestBzImage(t *testing.T) {
	image := kernel(t)
	mem := memory(t, 256<<20)
	initrd := make([]byte, 5<<20+123)
	for i := range initrd {
		initrd[i] = byte(rand.Uint32())
	}
	regs, err := Load(mem, Config{Kernel: file(image), Initrd: file(initrd), CommandLine: "console=ttyS0 quiet", RSDP: 0xe0000, GuestDecompresses: true})
	if err != nil {
		t.Fatal(err)
	}
	setup := (int(image[0x1f1]) + 1) * 512
	code, err := mem.View(hypervisor.PhysAddr(regs.RIP)-0x200, uint64(len(image)-setup))
	if err != nil || !bytes.Equal(code, image[setup:]) {
		t.Errorf("the kernel is not at its entry: %v", err)
	}
	zero, err := mem.View(hypervisor.PhysAddr(regs.RSI), 4096)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	if string(zero[0x202:0x206]) != "HdrS" || zero[0x210] != 0xff || le.Uint64(zero[0x70:]) != 0xe0000 {
		t.Error("header, loader type or RSDP is wrong")
	}
	cmd, err := mem.View(hypervisor.PhysAddr(le.Uint32(zero[0x228:])), 20)
	if err != nil || string(cmd) != "console=ttyS0 quiet\x00" {
		t.Errorf("command line %q, %v", cmd, err)
	}
	at := hypervisor.PhysAddr(le.Uint32(zero[0x218:]))
	got, err := mem.View(at, uint64(le.Uint32(zero[0x21c:])))
	if err != nil || !bytes.Equal(got, initrd) || at%4096 != 0 {
		t.Errorf("initrd at %v, %v", at, err)
	}
	var ram uint64
	for i := range int(zero[0x1e8]) {
		if e := zero[0x2d0+20*i:]; le.Uint32(e[16:]) == 1 {
			ram += le.Uint64(e[8:])
		}
	}
	if ram > 256<<20 || ram < 255<<20 {
		t.Errorf("the memory map has %d bytes of RAM", ram)
	}
}

func TestRefusals(t *testing.T) {
	image := kernel(t)
	old := bytes.Clone(image)
	binary.LittleEndian.PutUint16(old[0x206:], 0x0204)
	no64 := bytes.Clone(image)
	no64[0x236] &^= 1
	for _, c := range []struct {
		name string
		mem  uint64
		c    Config
		is   error
		says string
	}{
		{"empty", 64, Config{Kernel: file(nil)}, ErrNotKernel, "0 bytes"},
		{"gzip", 64, Config{Kernel: file(append([]byte("\x1f\x8b"), make([]byte, 4096)...))}, ErrNotKernel, "gzip"},
		{"initramfs", 64, Config{Kernel: file(append([]byte("070701"), make([]byte, 4096)...))}, ErrNotKernel, "initramfs"},
		{"text", 64, Config{Kernel: file(bytes.Repeat([]byte("hello "), 1000))}, ErrNotKernel, "no boot header"},
		{"32-bit", 64, Config{Kernel: file(no64)}, ErrNotKernel, "x86-64"},
		{"old", 64, Config{Kernel: file(old)}, ErrNotKernel, "protocol 2.04"},
		{"little memory", 32, Config{Kernel: file(image)}, ErrMemory, "at least"},
		{"large initrd", 96, Config{Kernel: file(image), Initrd: file(make([]byte, 90<<20))}, ErrMemory, "at least"},
		{"long command line", 128, Config{Kernel: file(image), CommandLine: strings.Repeat("x", 5000)}, nil, "command line"},
		{"zero byte", 128, Config{Kernel: file(image), CommandLine: "a\x00b"}, nil, "zero byte"},
		{"cut off", 128, Config{Kernel: File{bytes.NewReader(image[:1<<20]), int64(len(image))}}, nil, "read kernel"},
		{"ELF program", 64, Config{Kernel: self(t)}, ErrNotKernel, "PVH"},
	} {
		_, err := Load(memory(t, c.mem<<20), c.c)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// self is an ELF file that is no kernel: this test.
func self(t *testing.T) File {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return File{f, st.Size()}
}

// header is a bzImage of a few bytes that Load takes.
func header() []byte {
	b := make([]byte, 1024+512)
	copy(b[0x202:], "HdrS")
	b[0x1f1], b[0x201], b[0x236] = 1, 0x66, 3
	binary.LittleEndian.PutUint16(b[0x206:], 0x20f)
	binary.LittleEndian.PutUint32(b[0x238:], 2047)
	binary.LittleEndian.PutUint32(b[0x22c:], 0x7fffffff)
	binary.LittleEndian.PutUint64(b[0x258:], 0x1000000)
	binary.LittleEndian.PutUint32(b[0x260:], 1<<20)
	return b
}

// What a kernel file says leads to an error or to writes in guest memory: never
// to a panic, and never far.
func FuzzLoad(f *testing.F) {
	f.Add(header(), []byte("initrd"), "quiet")
	f.Add(packed(f), []byte{}, "")
	if b, err := os.ReadFile("/proc/self/exe"); err == nil {
		f.Add(b[:min(len(b), 8192)], []byte{}, "")
	}
	mem := memory(f, 32<<20)
	f.Fuzz(func(t *testing.T, kernel, initrd []byte, cmd string) {
		regs, err := Load(mem, Config{Kernel: file(kernel), Initrd: file(initrd), CommandLine: cmd})
		if err == nil && uint64(regs.RIP) >= 32<<20 {
			t.Errorf("the entry is at %v", regs.RIP)
		}
	})
}

// packed is a bzImage whose payload is a vmlinux of a few bytes, with one
// relocation of each kind.
func packed(t testing.TB) []byte {
	t.Helper()
	le := binary.LittleEndian
	elf := make([]byte, 4096+64)
	copy(elf, "\x7fELF\x02\x01\x01")
	le.PutUint16(elf[16:], 2)
	le.PutUint16(elf[18:], 62)
	le.PutUint64(elf[24:], 0x1000000)
	le.PutUint64(elf[32:], 64)
	le.PutUint64(elf[40:], uint64(len(elf))) // no sections: the end
	le.PutUint16(elf[54:], 56)
	le.PutUint16(elf[56:], 1)
	le.PutUint16(elf[58:], 64)
	p := elf[64:]
	le.PutUint32(p, 1)
	le.PutUint64(p[8:], 4096)
	le.PutUint64(p[24:], 0x1000000)
	le.PutUint64(p[32:], 64)
	le.PutUint64(p[40:], 4096)
	for _, v := range []uint32{0, 0x81000000, 0, 0x81000008, 0, 0x81000010} {
		elf = le.AppendUint32(elf, v)
	}
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(elf); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	k := header()[:1024]
	le.PutUint32(k[0x230:], 2<<20)
	le.PutUint32(k[0x24c:], uint32(b.Len()))
	return append(k, b.Bytes()...)
}

// Each relocation is done by how far the kernel is moved.
func TestRelocations(t *testing.T) {
	k := packed(t)
	mem := memory(t, 64<<20)
	for range 8 {
		entry, p, err := unpack(mem, Config{Kernel: file(k)}, k[:1024], 1024, 16<<20, 64<<20, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		b, err := mem.View(p.phys, 64)
		if err != nil {
			t.Fatal(err)
		}
		le := binary.LittleEndian
		if entry != p.phys || le.Uint64(b) != p.virt || le.Uint32(b[8:]) != -uint32(p.virt) || le.Uint32(b[16:]) != uint32(p.virt) || !p.kaslr {
			t.Errorf("moved by %#x to %v: %x, entry %v", p.virt, p.phys, b[:24], entry)
		}
	}
}

func TestHeaderIsTaken(t *testing.T) {
	if _, err := Load(memory(t, 32<<20), Config{Kernel: file(header())}); err != nil {
		t.Fatal(err)
	}
}
