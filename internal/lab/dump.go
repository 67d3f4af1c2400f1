package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// DumpELF writes the guest's memory to path as QEMU's dump-guest-memory does
// (an ELF core with its CPU notes). The guest stands still meanwhile. The file
// is as large as the guest's memory.
func (g *Guest) DumpELF(ctx context.Context, path string) error {
	abs, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("guest %s: dump: %w", g.cfg.Name, err)
	}
	_, err = g.Monitor(ctx, "dump-guest-memory", map[string]any{"paging": false, "protocol": "file:" + abs})
	return err
}

// DumpRaw writes the guest's memory to path so that a byte's offset is its
// guest-physical address; what is no RAM is a hole, and so is the BIOS below
// 4 GiB. Pages of zeros are holes too, so the file takes no more of the disk
// than what the guest has used, but a file of the guest's full size is needed
// next to it for a moment.
func (g *Guest) DumpRaw(ctx context.Context, path string) error {
	layout, err := g.Layout(ctx)
	if err != nil {
		return err
	}
	tmp := path + ".elf-tmp"
	defer os.Remove(tmp)
	if err := g.DumpELF(ctx, tmp); err != nil {
		return err
	}
	// Below 1 MiB the ROMs' shadows are taken along, as a reader of physical
	// memory would see them.
	layout = append([]PhysRange{{Size: 1 * MiB}}, layout...)
	if err := rawFromELF(path, tmp, layout); err != nil {
		return fmt.Errorf("guest %s: dump: %w", g.cfg.Name, err)
	}
	return nil
}

// rawFromELF writes what the PT_LOAD segments of an ELF core have of the given
// ranges, at its physical address.
func rawFromELF(path, core string, ranges []PhysRange) (err error) {
	in, err := os.Open(core)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := elf.NewFile(in)
	if err != nil {
		return err
	}
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	var size uint64
	for _, p := range f.Progs {
		for _, r := range ranges {
			start, end := max(p.Paddr, r.Start), min(p.Paddr+p.Filesz, r.Start+r.Size)
			if p.Type != elf.PT_LOAD || start >= end {
				continue
			}
			size = max(size, end)
			if err := copySparse(out, int64(start), io.NewSectionReader(p, int64(start-p.Paddr), int64(end-start))); err != nil {
				return err
			}
		}
	}
	return out.Truncate(int64(size))
}

// copySparse copies r to offset off of out, runs of zeros left out.
func copySparse(out *os.File, off int64, r io.Reader) error {
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(r, buf)
		if !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// PhysRange is a run of guest-physical RAM, as QEMU tells it.
type PhysRange struct {
	Start uint64 // guest-physical address
	Size  uint64 // bytes
	RAM   uint64 // offset of the range's first byte in the RAM block
	Block string // the RAM block's name
}

// Layout asks QEMU where the guest's RAM is (`info mtree -f`, the flat view of
// the address space "memory"): ground truth for what a driver works out. ROM
// and MMIO are left out.
func (g *Guest) Layout(ctx context.Context) ([]PhysRange, error) {
	text, err := g.HMP(ctx, "info mtree -f")
	if err != nil {
		return nil, err
	}
	out := parseMtree(text)
	if len(out) == 0 {
		return nil, fmt.Errorf("guest %s: info mtree -f: no RAM found", g.cfg.Name)
	}
	return out, nil
}

// parseMtree finds the RAM lines of the first flat view whose root is "system":
//
//	0000000000000000-000000000009ffff (prio 0, ram): ram
//	0000000100000000-000000013fffffff (prio 0, ram): ram @00000000c0000000
func parseMtree(text string) []PhysRange {
	var out []PhysRange
	in := false
	for line := range strings.SplitSeq(strings.ReplaceAll(text, "\r", ""), "\n") {
		if strings.HasPrefix(line, "FlatView") {
			if len(out) > 0 {
				break
			}
			in = false
		}
		if strings.Contains(line, "Root memory region: system") {
			in = true
		}
		if !in {
			continue
		}
		var start, end uint64
		var prio int
		line = strings.TrimSpace(line)
		head, rest, ok := strings.Cut(line, ", ram): ")
		if !ok {
			continue
		}
		if n, _ := fmt.Sscanf(head, "%x-%x (prio %d", &start, &end, &prio); n != 3 || end < start {
			continue
		}
		name, off, _ := strings.Cut(rest, " @")
		r := PhysRange{Start: start, Size: end - start + 1, Block: strings.TrimSuffix(strings.TrimSpace(name), " KVM")}
		fmt.Sscanf(off, "%x", &r.RAM) //nolint:errcheck // no offset means 0
		out = append(out, r)
	}
	return out
}
