package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor/kvm/internal/savefile"
)

// savedFolder is a folder of the host's filesystem.
type savedFolder string

// Create is control.Folder's.
func (f savedFolder) Create(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(string(f), name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
}

// Open is control.Folder's.
func (f savedFolder) Open(name string) (*os.File, error) {
	return os.Open(filepath.Join(string(f), name))
}

// handed is a folder whose files were opened by someone else.
type handed map[string]*os.File

// Create is control.Folder's.
func (h handed) Create(name string) (*os.File, error) {
	return nil, fmt.Errorf("create %s: %w", name, os.ErrPermission)
}

// Open is control.Folder's. A file can be opened once.
func (h handed) Open(name string) (*os.File, error) {
	f, ok := h[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, os.ErrNotExist)
	}
	// The manifest is read more than once: its reader closes what it is given.
	return dup(f)
}

// savedFiles opens the files of the state to restore and of its parents.
func (o *Options) savedFiles(s *spec) (files []*os.File, err error) {
	if o.Restore == "" {
		return nil, nil
	}
	chain, err := savedChain(o.Restore)
	if err != nil {
		return nil, err
	}
	for _, dir := range chain {
		for _, name := range savefile.Files() {
			f, err := os.Open(filepath.Join(dir, name))
			if err != nil {
				return files, fmt.Errorf("saved machine %s: %w", dir, err)
			}
			files = append(files, f)
		}
		s.Saved = append(s.Saved, savefile.Files())
	}
	return files, nil
}

// savedChain returns the folders of a state and of its parents, which lie beside
// it, the newest first.
func savedChain(dir string) ([]string, error) {
	chain := []string{dir}
	m, err := savefile.ReadManifest(savedFolder(dir))
	if err != nil {
		return nil, fmt.Errorf("saved machine %s: %w", dir, err)
	}
	for m.Parent != "" {
		abs, err := filepath.Abs(chain[len(chain)-1])
		if err != nil {
			return nil, err
		}
		next, parent, err := findSaved(filepath.Dir(abs), m.Parent)
		if err != nil {
			return nil, fmt.Errorf("saved machine %s: %w", dir, err)
		}
		if slices.Contains(chain, next) {
			return nil, fmt.Errorf("saved machine %s: it stands on itself: %w", dir, savefile.ErrDamaged)
		}
		chain, m = append(chain, next), parent
	}
	return chain, nil
}

// findSaved looks for the state with an ID in the folders of dir.
func findSaved(dir, id string) (string, *savefile.Manifest, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		m, err := savefile.ReadManifest(savedFolder(path))
		if err == nil && m.ID == id {
			return path, m, nil
		}
	}
	return "", nil, fmt.Errorf("it stands on the state %s, which is not in %s: put its folder there: %w", id, dir, errors.Join(savefile.ErrParent, os.ErrNotExist))
}
