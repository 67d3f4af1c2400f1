package lab

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// buildPackage is what a module is built with: the headers of one kernel and of
// all flavours of it, and the programs that build it.
var buildPackage = regexp.MustCompile(`^linux-(headers|kbuild)-[0-9]`)

// buildLibrary is what those programs run with.
var buildLibrary = regexp.MustCompile(`^(lib|zlib)[a-z0-9.+-]*$`)

// buildTree is where a kernel's modules are built: the unpacked packages.
type buildTree struct {
	root    string // holds usr/src, usr/lib
	headers string // …/usr/src/linux-headers-RELEASE
}

// fetchBuildTree returns what k's modules are built with, from the cache or else
// from the machine's own Debian mirror, as FetchKernel returns its kernel. It is
// of exactly k's version: a mirror that has only a newer one is an error that
// wraps ErrUnreachable.
func fetchBuildTree(ctx context.Context, k *Kernel) (*buildTree, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	base := filepath.Join(cache, "build")
	t := newBuildTree(filepath.Join(base, string(k.Suite)+"-"+k.Release), k)
	if t.complete() {
		return t, nil
	}
	release, err := lockFile(ctx, t.root+".lock")
	if err != nil {
		return nil, err
	}
	defer release()
	if t.complete() { // another process was quicker
		return t, nil
	}
	src, err := debianSource("/")
	if err != nil {
		return nil, err
	}
	work := t.root + ".partial"
	if err := downloadBuildTree(ctx, work, k, src); err != nil {
		if errors.Is(err, ErrMissing) || ctx.Err() != nil {
			return nil, err
		}
		return nil, &SuiteError{Suite: k.Suite, Err: err}
	}
	if err := os.RemoveAll(t.root); err != nil {
		return nil, fmt.Errorf("module build cache: %w", err)
	}
	if err := os.Rename(filepath.Join(work, "tree"), t.root); err != nil {
		return nil, fmt.Errorf("module build cache: %w", err)
	}
	os.RemoveAll(work)
	return t, nil
}

func newBuildTree(root string, k *Kernel) *buildTree {
	return &buildTree{root: root, headers: filepath.Join(root, "usr/src/linux-headers-"+k.Release)}
}

func (t *buildTree) complete() bool {
	_, err := os.Stat(filepath.Join(t.headers, "Makefile"))
	return err == nil
}

// common returns the folder that all flavours share: the kernel's source tree,
// as its Makefile has it.
func (t *buildTree) common() (string, error) {
	dirs, _ := filepath.Glob(filepath.Join(t.root, "usr/src/linux-headers-*-common"))
	if len(dirs) != 1 {
		return "", fmt.Errorf("%d folders of common headers below %s", len(dirs), t.root)
	}
	return dirs[0], nil
}

// downloadBuildTree leaves a complete buildTree in work/tree.
func downloadBuildTree(ctx context.Context, work string, k *Kernel, src source) error {
	a, err := newApt(work, k.Suite, src)
	if err != nil {
		return fmt.Errorf("module build cache: %w", err)
	}
	if _, err := a.run(ctx, "apt-get", "update"); err != nil {
		return err
	}
	pkgs, err := a.buildPackages(ctx, "linux-headers-"+k.Release)
	if err != nil {
		return err
	}
	if _, err := a.run(ctx, "apt-get", append([]string{"download"}, pkgs...)...); err != nil {
		return err
	}
	t := newBuildTree(filepath.Join(work, "tree"), k)
	if err := os.RemoveAll(t.root); err != nil {
		return fmt.Errorf("module build cache: %w", err)
	}
	debs, err := filepath.Glob(filepath.Join(work, "deb", "*.deb"))
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := unpackDeb(ctx, deb, t.root); err != nil {
			return err
		}
	}
	if !t.complete() {
		return fmt.Errorf("no headers of %s in %q", k.Release, pkgs)
	}
	if _, err := t.common(); err != nil {
		return err
	}
	return t.wrapPrograms()
}

// buildPackages returns the package, and what of those that it depends on is
// needed to build a module, sorted.
func (a *apt) buildPackages(ctx context.Context, pkg string) ([]string, error) {
	queue := []string{pkg}
	seen := map[string]bool{}
	for len(queue) > 0 && len(seen) < 64 {
		p := queue[0]
		queue = queue[1:]
		if seen[p] {
			continue
		}
		seen[p] = true
		text, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", p)
		if err != nil {
			return nil, err
		}
		queue = append(queue, depends(text, buildPackage)...)
		if !strings.HasPrefix(p, "linux-headers") {
			queue = append(queue, depends(text, buildLibrary)...)
		}
	}
	out := make([]string, 0, len(seen))
	for p := range seen {
		out = append(out, p)
	}
	slices.Sort(out)
	return out, nil
}

// envTree names the environment variable that tells wrapped programs where the
// tree lies: a cache may be moved.
const envTree = "VANTAGE_LAB_TREE"

// wrapPrograms lets the tree's programs run with the suite's own libraries: this
// machine's may be older.
func (t *buildTree) wrapPrograms() error {
	loader := ""
	for _, p := range []string{"lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"} {
		if _, err := os.Stat(filepath.Join(t.root, p)); err == nil {
			loader = p
		}
	}
	if loader == "" {
		return errors.New("no loader of programs among the libraries")
	}
	const script = "#!/bin/sh\ntree=$%s\nexec \"$tree/%s\" --library-path \"$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu\" \"${0%%/*}/%s.program\" \"$@\"\n"
	return filepath.WalkDir(filepath.Join(t.root, "usr/lib"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(p, "/linux-kbuild-") || !isProgram(p) {
			return err
		}
		if err := os.Rename(p, p+".program"); err != nil {
			return err
		}
		text := fmt.Sprintf(script, envTree, loader, d.Name())
		if err := os.WriteFile(p, []byte(text), 0o755); err != nil { //nolint:gosec // it is run
			return err
		}
		// Some choose another by what they work on: they append to their own name.
		if base, kind, ok := strings.Cut(d.Name(), ".real-"); ok {
			return os.Symlink(d.Name(), filepath.Join(filepath.Dir(p), base+".program.real-"+kind))
		}
		return nil
	})
}

// isProgram reports whether the file is one that needs a loader.
func isProgram(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	f, err := elf.NewFile(file)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}
