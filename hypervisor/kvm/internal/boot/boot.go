package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/bus"
	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/layout"
)

// Memory is the guest's RAM.
type Memory interface {
	bus.Memory
	Ranges() []hypervisor.Range
}

// File is a kernel or an initrd: what *os.File and *bytes.Reader are.
type File struct {
	io.ReaderAt
	Size int64
}

// Config says what to boot.
type Config struct {
	Kernel      File
	Initrd      File // a nil ReaderAt: none
	CommandLine string
	RSDP        hypervisor.PhysAddr // of the ACPI tables; 0: none
	// GuestDecompresses leaves a bzImage to its own decompressor.
	GuestDecompresses bool
}

// Errors of Load, besides those of reading.
var (
	// ErrNotKernel is wrapped when the file is neither a bzImage nor an ELF kernel.
	ErrNotKernel = errors.New("not a kernel that can be booted")
	// ErrMemory is wrapped when kernel and initrd do not fit into the guest.
	ErrMemory = errors.New("the guest has too little memory")
)

// Load fills guest memory and returns the boot processor's registers: general,
// segments and control.
func Load(mem Memory, c Config) (hypervisor.Registers, error) {
	head := make([]byte, min(c.Kernel.Size, 4096))
	if _, err := c.Kernel.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return hypervisor.Registers{}, fmt.Errorf("read kernel: %w", err)
	}
	if bytes.ContainsRune([]byte(c.CommandLine), 0) {
		return hypervisor.Registers{}, errors.New("the kernel's command line has a zero byte")
	}
	switch {
	case len(head) >= 0x268 && bytes.Equal(head[0x202:0x206], []byte("HdrS")):
		return loadBzImage(mem, c, head)
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return loadELF(mem, c)
	}
	return hypervisor.Registers{}, fmt.Errorf("%w: %s: want a bzImage (vmlinuz) or an ELF vmlinux for x86-64", ErrNotKernel, guess(head))
}

// guess says what a file that is no kernel seems to be.
func guess(head []byte) string {
	for _, m := range []struct {
		at    int
		magic string
		what  string
	}{
		{0x38, "ARM\x64", "this is an arm64 Image"},
		{0, "\x1f\x8b", "this is a gzip file: unpack it"},
		{0, "\x28\xb5\x2f\xfd", "this is a zstd file: unpack it"},
		{0, "\xfd7zXZ", "this is an xz file: unpack it"},
		{0, "070701", "this is an initramfs"},
		{0, "QFI\xfb", "this is a qcow2 image: name it with --disk"},
		{0x8001, "CD001", "this is an ISO image"},
		{0, "!<arch>", "this is a package: take the vmlinuz out of it"},
		{0, "MZ", "this is an EFI program without a Linux boot header"},
	} {
		if len(head) >= m.at+len(m.magic) && string(head[m.at:m.at+len(m.magic)]) == m.magic {
			return m.what
		}
	}
	if len(head) < 0x268 {
		return fmt.Sprintf("it has %d bytes", len(head))
	}
	return "it has no boot header"
}

// read copies size bytes of f at off to gpa.
func read(mem Memory, f File, off, size int64, gpa hypervisor.PhysAddr) error {
	if off < 0 || size < 0 || off > f.Size || size > f.Size-off {
		return fmt.Errorf("%d bytes at %d: the file has %d: %w", size, off, f.Size, io.ErrUnexpectedEOF)
	}
	if size == 0 {
		return nil
	}
	view, err := mem.View(gpa, uint64(size))
	if err != nil {
		return fmt.Errorf("%w: %d bytes at %v: %w", ErrMemory, size, gpa, err)
	}
	n, err := f.ReadAt(view, off)
	if n == len(view) {
		err = nil
	} else if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	mem.Dirtied(gpa, uint64(size))
	return err
}

// put copies b to gpa.
func put(mem Memory, b []byte, gpa hypervisor.PhysAddr) error {
	view, err := mem.View(gpa, uint64(len(b)))
	if err != nil {
		return err
	}
	copy(view, b)
	mem.Dirtied(gpa, uint64(len(b)))
	return nil
}

// lowRAM returns the end of the range that begins at 0.
func lowRAM(mem Memory) hypervisor.PhysAddr {
	if rs := mem.Ranges(); len(rs) > 0 && rs[0].Start == 0 {
		return rs[0].End()
	}
	return 0
}

// placeInitrd puts the initrd as high as it may go below limit, and above what
// the kernel needs.
func placeInitrd(mem Memory, f File, kernelEnd, limit hypervisor.PhysAddr) (hypervisor.PhysAddr, error) {
	if f.ReaderAt == nil || f.Size == 0 {
		return 0, nil
	}
	limit = min(limit, lowRAM(mem))
	room := int64(limit) - int64(kernelEnd)
	if f.Size > room {
		return 0, fmt.Errorf("%w: the kernel needs memory up to %v and the initrd %d MiB more: give it at least %d MiB",
			ErrMemory, kernelEnd, f.Size>>20+1, (int64(kernelEnd)+f.Size)>>20+2)
	}
	at := (limit - hypervisor.PhysAddr(f.Size)) &^ (hypervisor.PageSize - 1)
	if at < kernelEnd {
		return 0, fmt.Errorf("%w: no whole page is left for the initrd", ErrMemory)
	}
	if err := read(mem, f, 0, f.Size, at); err != nil {
		return 0, fmt.Errorf("read initrd: %w", err)
	}
	return at, nil
}

// e820 is one entry of the memory map (Documentation/arch/x86/zero-page.rst).
type e820 struct {
	start hypervisor.PhysAddr
	size  uint64
	kind  uint32
}

// Kinds of memory.
const (
	e820RAM      = 1
	e820Reserved = 2
)

// memoryMap is what the kernel is told of the machine's memory.
func memoryMap(mem Memory) []e820 {
	m := []e820{
		{0, uint64(layout.EBDA), e820RAM},
		{layout.EBDA, uint64(layout.VGAHole - layout.EBDA), e820Reserved},
		{layout.ACPITables, uint64(layout.Megabyte - layout.ACPITables), e820Reserved},
	}
	for _, r := range mem.Ranges() {
		start := max(r.Start, layout.Megabyte)
		if start < r.End() {
			m = append(m, e820{start, uint64(r.End() - start), e820RAM})
		}
	}
	return append(m, e820{layout.PCIECAM, layout.PCIECAMSize, e820Reserved})
}
