package policy

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader/filter"
)

// maxFileSize is the most that one file of a policy may hold, in bytes.
const maxFileSize = 64 << 20

// limits of a policy's files, so that a wrong path does not fill the memory.
type limits struct {
	files int
	file  int64 // bytes of one
	total int64 // bytes of all, unpacked
}

func defaultLimits() limits { return limits{files: 10_000, file: maxFileSize, total: 4 * maxFileSize} }

// file is one file of a policy, its name rooted at the policy's folder.
type file struct {
	name string // "/scan.rego"
	data []byte
}

// readFiles reads the policy at p: a folder, or a bundle (tar.gz). Tests
// (_test.rego) are left out unless asked for. Anything that cannot be read is
// an error: half a policy is worse than the last good one.
func readFiles(p string, tests bool) ([]file, error) {
	info, err := os.Stat(p)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return readFS(os.DirFS(p), tests, defaultLimits())
	}
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readBundle(f, tests, defaultLimits())
}

// readFS reads a folder's files. A file may be a symbolic link (as Kubernetes
// mounts them); links to folders are not followed.
func readFS(fsys fs.FS, tests bool, lim limits) ([]file, error) {
	var files []file
	var total int64
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && strings.HasPrefix(d.Name(), ".") {
				return fs.SkipDir // .git, Kubernetes' ..data
			}
			return nil
		}
		if !wanted(name, tests) {
			return nil
		}
		info, err := fs.Stat(fsys, name)
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		f, err := fsys.Open(name)
		if err != nil {
			return err
		}
		b, err := io.ReadAll(io.LimitReader(f, lim.file+1))
		if err := errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		files = append(files, file{"/" + name, b})
		total += int64(len(b))
		return lim.check(files, total)
	})
	return finish(files, err)
}

// readBundle reads the files of a tar.gz.
func readBundle(r io.Reader, tests bool, lim limits) ([]file, error) {
	gz, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	// One byte over the limit, for the error below: what follows it is a
	// truncated archive.
	in := &io.LimitedReader{R: gz, N: lim.total + 1}
	tr := tar.NewReader(in)
	var files []file
	var total int64
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return finish(files, nil)
		}
		if err != nil && in.N == 0 {
			return nil, fmt.Errorf("bundle: %w: more than %d bytes unpacked", ErrTooLarge, lim.total)
		}
		if err != nil {
			return nil, fmt.Errorf("bundle: %w", err)
		}
		name := path.Clean("/" + h.Name)
		if h.Typeflag != tar.TypeReg || !wanted(name, tests) {
			continue
		}
		b, err := io.ReadAll(io.LimitReader(tr, lim.file+1))
		if err != nil {
			return nil, fmt.Errorf("bundle: read %s: %w", name, err)
		}
		files = append(files, file{name, b})
		total += int64(len(b))
		if err := lim.check(files, total); err != nil {
			return nil, err
		}
	}
}

func (lim limits) check(files []file, total int64) error {
	last := files[len(files)-1]
	switch {
	case int64(len(last.data)) > lim.file:
		return fmt.Errorf("%s: %w: more than %d bytes", last.name, ErrTooLarge, lim.file)
	case total > lim.total:
		return fmt.Errorf("%w: more than %d bytes in all", ErrTooLarge, lim.total)
	case len(files) > lim.files:
		return fmt.Errorf("%w: more than %d files", ErrTooLarge, lim.files)
	}
	return nil
}

func finish(files []file, err error) ([]file, error) {
	if err != nil {
		return nil, err
	}
	slices.SortFunc(files, func(a, b file) int { return strings.Compare(a.name, b.name) })
	for i := 1; i < len(files); i++ {
		if files[i].name == files[i-1].name {
			return nil, fmt.Errorf("%s is there twice", files[i].name)
		}
	}
	if !slices.ContainsFunc(files, func(f file) bool { return path.Ext(f.name) == ".rego" }) {
		return nil, errors.New("no .rego file")
	}
	return files, nil
}

// wanted reports whether a file is a part of a policy, by OPA's rules of
// bundles: *.rego, data.json, data.yaml, and what a bundle says of itself.
func wanted(name string, tests bool) bool {
	base := path.Base(name)
	switch base {
	case "data.json", "data.yaml", "data.yml", ".manifest", ".signatures.json":
		return true
	}
	if strings.HasPrefix(base, ".") || path.Ext(base) != ".rego" {
		return false
	}
	return tests || !strings.HasSuffix(base, "_test.rego")
}

// digest returns the SHA-256 of files: of their names and contents.
func digest(files []file) string {
	h := sha256.New()
	var n [8]byte
	for _, f := range files {
		for _, part := range [][]byte{[]byte(f.name), f.data} {
			binary.LittleEndian.PutUint64(n[:], uint64(len(part)))
			h.Write(n[:])
			h.Write(part)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// fileLoader gives files to OPA's reader of bundles.
type fileLoader struct{ files []file }

func (l *fileLoader) NextFile() (*bundle.Descriptor, error) {
	if len(l.files) == 0 {
		return nil, io.EOF
	}
	f := l.files[0]
	l.files = l.files[1:]
	return bundle.NewDescriptor(f.name, f.name, bytes.NewBuffer(bytes.Clone(f.data))), nil
}

func (l *fileLoader) WithFilter(filter.LoaderFilter) bundle.DirectoryLoader   { return l }
func (l *fileLoader) WithPathFormat(bundle.PathFormat) bundle.DirectoryLoader { return l }
func (l *fileLoader) WithSizeLimitBytes(int64) bundle.DirectoryLoader         { return l }
func (l *fileLoader) WithFollowSymlinks(bool) bundle.DirectoryLoader          { return l }
