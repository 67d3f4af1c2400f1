// Package savefile is the format of a saved machine: a folder of three files.
//
//	memory         the pages of RAM, in blocks, each with its checksum
//	state          what processors and devices have, by name
//	manifest.json  what this is, of which parent, with the checksums of the others
//
// The manifest is written last: a save that was broken off has none. A state with
// a parent has only the pages that have changed since. Everything that is read is
// checked before it is used: a saved machine may be damaged, cut off or made by
// someone else.
//
// It must not import anything of Vantage but package hypervisor.
package savefile

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/zeebo/xxh3"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// Names of the files.
const (
	fileMemory   = "memory"
	fileState    = "state"
	fileManifest = "manifest.json"
)

// Version of the format. One that is newer is refused; older ones are read.
const Version = 1

// maxDepth is how many parents a state may have: each is read by a restore.
const maxDepth = 64

// Errors that others wrap.
var (
	// ErrDamaged says that a file is not what was saved.
	ErrDamaged = errors.New("the saved machine is damaged")
	// ErrParent says that a state cannot stand on the parent that was given.
	ErrParent = errors.New("not the parent")
)

// Folder is where the files are.
type Folder interface {
	Create(name string) (*os.File, error)
	Open(name string) (*os.File, error)
}

// Manifest says what a saved machine is.
type Manifest struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`               // random; how a child names its parent
	Parent  string    `json:"parent,omitempty"` // its ID
	Depth   int       `json:"depth"`            // how many parents
	Created time.Time `json:"created"`
	// Machine is what the machine is made of, as its owner encodes it.
	Machine json.RawMessage    `json:"machine"`
	Ranges  []hypervisor.Range `json:"ranges"`

	Blocks      int64  `json:"blocks"`
	Pages       int64  `json:"pages"`      // with data
	ZeroPages   int64  `json:"zero_pages"` // of a child: that have become zero
	MemoryBytes int64  `json:"memory_bytes"`
	MemorySum   string `json:"memory_xxh3"` // over the blocks' checksums
	StateBytes  int64  `json:"state_bytes"`
	StateSum    string `json:"state_xxh3"`
	// Sum is that of the manifest itself, with Sum empty.
	Sum string `json:"manifest_xxh3"`
}

func damaged(file, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w: save it again, or restore another state", file, fmt.Sprintf(format, args...), ErrDamaged)
}

func sumText(sum xxh3.Uint128) string {
	b := sum.Bytes()
	return hex.EncodeToString(b[:])
}

// seal returns the manifest as it is written.
func (m *Manifest) seal() ([]byte, error) {
	m.Sum = ""
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	m.Sum = sumText(xxh3.Hash128(b))
	b, err = json.MarshalIndent(m, "", "  ")
	return append(b, '\n'), err
}

const maxManifest = 1 << 20

// ReadManifest reads and checks the manifest of a saved machine.
func ReadManifest(f Folder) (*Manifest, error) {
	b, err := readAll(f, fileManifest, maxManifest)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("no saved machine there, or its save was broken off: %w", err)
	}
	if err != nil {
		return nil, err
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, damaged(fileManifest, "%v", err)
	}
	if m.Version > Version {
		return nil, fmt.Errorf("saved by a newer release (format %d, this one reads up to %d): restore it with that", m.Version, Version)
	}
	want := m.Sum
	if _, err := m.seal(); err != nil {
		return nil, damaged(fileManifest, "%v", err)
	}
	if m.Sum != want {
		return nil, damaged(fileManifest, "its checksum is %s, it says %s", m.Sum, want)
	}
	ranges, err := hypervisor.NormalizeRanges(m.Ranges)
	switch {
	case err != nil || len(ranges) == 0 || len(ranges) != len(m.Ranges):
		return nil, damaged(fileManifest, "its memory is %v", m.Ranges)
	case m.Version < 1 || m.Depth < 0 || m.Depth > maxDepth || (m.Depth == 0) != (m.Parent == ""):
		return nil, damaged(fileManifest, "version %d, depth %d", m.Version, m.Depth)
	}
	return &m, nil
}

// readAll reads a small file whole.
func readAll(f Folder, name string, most int64) ([]byte, error) {
	file, err := f.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() > most {
		return nil, damaged(name, "%d bytes: at most %d", st.Size(), most)
	}
	b := make([]byte, st.Size())
	n, err := file.ReadAt(b, 0)
	if n < len(b) {
		return nil, damaged(name, "%d of %d bytes: %v", n, len(b), err)
	}
	return b, nil
}

// Files returns the names of the files of a saved machine.
func Files() []string { return []string{fileManifest, fileState, fileMemory} }
