package savefile

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"math/bits"
	"os"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// A block is up to 256 neighbouring pages of one range: a header, then the pages
// that have data.
//
//	magic uint32, number of bytes behind the header uint32, gpa uint64
//	data [32]byte: a bit for each page that follows
//	zero [32]byte: a bit for each page that has become zero
//	sum [16]byte: XXH3-128 of all of the above and the pages
const (
	blockPages  = 256
	blockMagic  = 0x42474156 // "VAGB"
	bitmapSize  = blockPages / 8
	sumAt       = 16 + 2*bitmapSize
	blockHeader = sumAt + 16
)

// Writer saves a machine.
type Writer struct {
	to       Folder
	manifest Manifest
	sections map[string][]byte
	memory   *os.File
	out      *bufio.Writer
	sums     *xxh3.Hasher
}

// NewWriter begins a save. parent is nil for a whole one.
func NewWriter(to Folder, machine json.RawMessage, ranges []hypervisor.Range, parent *Manifest) (*Writer, error) {
	w := &Writer{to: to, sections: map[string][]byte{}, sums: xxh3.New(), manifest: Manifest{
		Version: Version, ID: rand.Text(), Created: time.Now().UTC(), Machine: machine, Ranges: ranges,
	}}
	if parent != nil {
		w.manifest.Parent, w.manifest.Depth = parent.ID, parent.Depth+1
		if w.manifest.Depth > maxDepth {
			return nil, fmt.Errorf("%w: it has %d parents already: save the machine whole", ErrParent, parent.Depth)
		}
	}
	var err error
	if w.memory, err = to.Create(fileMemory); err != nil {
		return nil, err
	}
	w.out = bufio.NewWriterSize(w.memory, 1<<20)
	return w, nil
}

// ID returns the ID that the saved machine will have.
func (w *Writer) ID() string { return w.manifest.ID }

// Section keeps a part of the state by its name.
func (w *Writer) Section(name string, b []byte) { w.sections[name] = b }

// Memory writes the pages of which changed has some (in whole pages, sorted,
// merged): all ranges for a whole save. view gives guest memory that does not
// change meanwhile. progress, which may be nil, is told the bytes looked at.
func (w *Writer) Memory(changed []hypervisor.Range, view func(hypervisor.PhysAddr, uint64) ([]byte, error), progress func(uint64)) error {
	var done uint64
	for _, r := range changed {
		for gpa := r.Start; gpa < r.End(); gpa += blockPages * hypervisor.PageSize {
			size := min(uint64(r.End()-gpa), blockPages*hypervisor.PageSize)
			b, err := view(gpa, size)
			if err != nil {
				return err
			}
			if err := w.block(gpa, b); err != nil {
				return fmt.Errorf("write %s: %w", fileMemory, err)
			}
			done += size
			if progress != nil {
				progress(done)
			}
		}
	}
	return nil
}

func (w *Writer) block(gpa hypervisor.PhysAddr, b []byte) error {
	var head [blockHeader]byte
	data, zero := head[16:16+bitmapSize], head[16+bitmapSize:sumAt]
	n := 0
	for i := 0; i < len(b)/hypervisor.PageSize; i++ {
		if isZero(b[i*hypervisor.PageSize : (i+1)*hypervisor.PageSize]) {
			zero[i/8] |= 1 << (i % 8)
			continue
		}
		data[i/8] |= 1 << (i % 8)
		n++
	}
	if w.manifest.Depth == 0 {
		clear(zero) // what is not there is zero in a whole save
		if n == 0 {
			return nil
		}
	}
	le := binary.LittleEndian
	le.PutUint32(head[0:], blockMagic)
	le.PutUint32(head[4:], uint32(n*hypervisor.PageSize))
	le.PutUint64(head[8:], uint64(gpa))
	h := xxh3.New()
	_, _ = h.Write(head[:sumAt])
	_ = each(data, func(i int) error {
		_, err := h.Write(b[i*hypervisor.PageSize : (i+1)*hypervisor.PageSize])
		return err
	})
	sum := h.Sum128().Bytes()
	copy(head[sumAt:], sum[:])
	_, _ = w.sums.Write(sum[:])
	w.manifest.Blocks++
	w.manifest.Pages += int64(n)
	_ = each(zero, func(int) error { w.manifest.ZeroPages++; return nil })
	w.manifest.MemoryBytes += int64(blockHeader + n*hypervisor.PageSize)
	if _, err := w.out.Write(head[:]); err != nil {
		return err
	}
	return each(data, func(i int) error {
		_, err := w.out.Write(b[i*hypervisor.PageSize : (i+1)*hypervisor.PageSize])
		return err
	})
}

// each calls f with the numbers of the bits that are set.
func each(bitmap []byte, f func(int) error) error {
	for i, b := range bitmap {
		for ; b != 0; b &= b - 1 {
			if err := f(i*8 + bits.TrailingZeros8(b)); err != nil {
				return err
			}
		}
	}
	return nil
}

func isZero(p []byte) bool {
	for ; len(p) >= 32; p = p[32:] {
		le := binary.LittleEndian
		if le.Uint64(p)|le.Uint64(p[8:])|le.Uint64(p[16:])|le.Uint64(p[24:]) != 0 {
			return false
		}
	}
	return true
}

// Commit writes the rest, and returns when all is on stable storage.
func (w *Writer) Commit() (*Manifest, error) {
	err := w.out.Flush()
	if err == nil {
		err = w.memory.Sync()
	}
	if err = errors.Join(err, w.memory.Close()); err != nil {
		return nil, fmt.Errorf("write %s: %w", fileMemory, err)
	}
	w.memory = nil
	state, err := json.Marshal(w.sections) // sorted by name, []byte as base64
	if err != nil {
		return nil, err
	}
	m := &w.manifest
	m.MemorySum = sumText(w.sums.Sum128())
	m.StateBytes, m.StateSum = int64(len(state)), sumText(xxh3.Hash128(state))
	text, err := m.seal()
	if err != nil {
		return nil, err
	}
	if err := w.write(fileState, state); err != nil {
		return nil, err
	}
	return m, w.write(fileManifest, text)
}

func (w *Writer) write(name string, b []byte) error {
	f, err := w.to.Create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// Abandon gives up a save that was not committed.
func (w *Writer) Abandon() {
	if w.memory != nil {
		w.memory.Close()
	}
}
