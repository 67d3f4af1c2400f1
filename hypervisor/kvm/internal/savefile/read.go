package savefile

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"github.com/vantage-vmi/vantage/hypervisor"
)

const maxState = 256 << 20

// ReadState reads and checks the sections of a saved machine.
func ReadState(f Folder, m *Manifest) (map[string][]byte, error) {
	b, err := readAll(f, fileState, maxState)
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != m.StateBytes || sumText(xxh3.Hash128(b)) != m.StateSum {
		return nil, damaged(fileState, "its checksum is not the manifest's")
	}
	var sections map[string][]byte
	if err := json.Unmarshal(b, &sections); err != nil {
		return nil, damaged(fileState, "%v", err)
	}
	return sections, nil
}

// Chain returns a saved machine's folders and manifests from the oldest parent
// on: folders are given from the newest to the oldest.
func Chain(folders []Folder) ([]*Manifest, error) {
	var out []*Manifest
	for i, f := range folders {
		m, err := ReadManifest(f)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			child := out[i-1]
			if child.Parent != m.ID || child.Depth != m.Depth+1 || !equal(child.Ranges, m.Ranges) {
				return nil, fmt.Errorf("%w: the state wants %s, this is %s", ErrParent, child.Parent, m.ID)
			}
		}
		out = append(out, m)
	}
	if n := len(out); n == 0 || out[n-1].Parent != "" {
		return nil, fmt.Errorf("%w: the oldest state stands on another one: name the folders of all", ErrParent)
	}
	return out, nil
}

func equal(a, b []hypervisor.Range) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// ReadMemory reads the pages of one state and puts them where view says, over
// what is there: first of the oldest parent, last of the state itself. Only
// memory that was all zero before the first is complete then. progress, which may
// be nil, is told the bytes of the file that are done. After an error what was
// put is worth nothing.
func ReadMemory(f Folder, m *Manifest, view func(hypervisor.PhysAddr, uint64) ([]byte, error), progress func(int64)) error {
	file, err := f.Open(fileMemory)
	if err != nil {
		return err
	}
	defer file.Close()
	in := bufio.NewReaderSize(file, 1<<20)
	sums := xxh3.New()
	var blocks, done int64
	buf := make([]byte, blockPages*hypervisor.PageSize)
	for {
		var head [blockHeader]byte
		if _, err := io.ReadFull(in, head[:]); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return damaged(fileMemory, "block %d is cut off", blocks)
		}
		n, err := readBlock(in, &head, buf, view)
		if err != nil {
			return fmt.Errorf("block %d at byte %d: %w", blocks, done, err)
		}
		_, _ = sums.Write(head[sumAt:])
		blocks++
		done += int64(blockHeader + n)
		if progress != nil {
			progress(done)
		}
	}
	if blocks != m.Blocks || done != m.MemoryBytes || sumText(sums.Sum128()) != m.MemorySum {
		return damaged(fileMemory, "%d blocks of %d bytes, the manifest says %d of %d", blocks, done, m.Blocks, m.MemoryBytes)
	}
	return nil
}

// readBlock reads what follows a block's header, checks both and puts the pages.
func readBlock(in io.Reader, head *[blockHeader]byte, buf []byte, view func(hypervisor.PhysAddr, uint64) ([]byte, error)) (int, error) {
	le := binary.LittleEndian
	n, gpa := int(le.Uint32(head[4:])), hypervisor.PhysAddr(le.Uint64(head[8:]))
	data, zero := head[16:16+bitmapSize], head[16+bitmapSize:sumAt]
	pages, last := 0, -1
	note := func(i int) error { last = max(last, i); return nil }
	_ = each(data, func(i int) error { pages++; return note(i) })
	_ = each(zero, note)
	if le.Uint32(head[:]) != blockMagic || n != pages*hypervisor.PageSize || gpa.Offset() != 0 || last < 0 {
		return 0, damaged(fileMemory, "no header")
	}
	pagesOf := buf[:n]
	if _, err := io.ReadFull(in, pagesOf); err != nil {
		return 0, damaged(fileMemory, "cut off")
	}
	h := xxh3.New()
	_, _ = h.Write(head[:sumAt])
	_, _ = h.Write(pagesOf)
	if sum := h.Sum128().Bytes(); !bytes.Equal(sum[:], head[sumAt:]) {
		return 0, damaged(fileMemory, "its checksum is not its own")
	}
	to, err := view(gpa, uint64(last+1)*hypervisor.PageSize)
	if err != nil {
		return 0, damaged(fileMemory, "%v", err)
	}
	at := 0
	_ = each(data, func(i int) error {
		copy(to[i*hypervisor.PageSize:(i+1)*hypervisor.PageSize], pagesOf[at:])
		at += hypervisor.PageSize
		return nil
	})
	return n, each(zero, func(i int) error {
		clear(to[i*hypervisor.PageSize : (i+1)*hypervisor.PageSize])
		return nil
	})
}

// Verify reads all of a saved machine, without its parents, and tells the first
// thing that is wrong.
func Verify(f Folder, progress func(done, total int64)) (*Manifest, error) {
	m, err := ReadManifest(f)
	if err != nil {
		return nil, err
	}
	if _, err := ReadState(f, m); err != nil {
		return nil, err
	}
	scratch := make([]byte, blockPages*hypervisor.PageSize)
	return m, ReadMemory(f, m, func(gpa hypervisor.PhysAddr, size uint64) ([]byte, error) {
		r, ok := hypervisor.FindRange(m.Ranges, gpa)
		if !ok || size > uint64(r.End()-gpa) {
			return nil, hypervisor.ErrNotRAM
		}
		return scratch[:size], nil
	}, func(done int64) {
		if progress != nil {
			progress(done, m.MemoryBytes)
		}
	})
}
