package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Kernel is a Debian kernel on this machine's disk.
type Kernel struct {
	Suite      Suite
	Flavour    Flavour
	Release    string   // as uname -r prints it: "6.1.0-50-cloud-amd64"
	Packages   []string // the packages that it came in, with their version
	Image      string   // path of vmlinuz
	SystemMap  string   // path of System.map; Debian's own may be a stub
	Config     string   // path of the build's configuration
	ModulesDir string   // path of …/lib/modules/RELEASE
}

// kernelMeta is the file that marks a complete kernel in the cache; paths in it
// are relative to its folder, so that the cache can be moved.
const kernelMeta = "kernel.json"

// FetchKernel returns the kernel of a suite and flavour, from the cache or else
// from the machine's own Debian mirror. Nothing is installed and no root is
// needed. Several processes may ask for the same kernel at once: one downloads,
// the others wait. A download that was broken off is taken up again.
//
// A kernel once fetched is kept as it is, whatever the suite has by now; remove
// it from CacheDir to have a newer one.
//
// The error wraps ErrUnreachable when the suite cannot be downloaded from, and
// ErrMissing when this machine has no apt.
func FetchKernel(ctx context.Context, suite Suite, flavour Flavour) (*Kernel, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	base := filepath.Join(cache, "kernels")
	name := string(suite) + "-" + string(flavour)
	dir := filepath.Join(base, name)
	if k, err := loadKernel(dir); err == nil {
		return k, nil
	}
	release, err := lockFile(ctx, filepath.Join(base, name+".lock"))
	if err != nil {
		return nil, err
	}
	defer release()
	if k, err := loadKernel(dir); err == nil { // another process was quicker
		return k, nil
	}
	src, err := debianSource("/")
	if err != nil {
		return nil, err
	}
	work := filepath.Join(base, name+".partial")
	if err := downloadKernel(ctx, work, suite, flavour, src); err != nil {
		if errors.Is(err, ErrMissing) || ctx.Err() != nil {
			return nil, err
		}
		return nil, &SuiteError{Suite: suite, Err: err}
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	if err := os.Rename(filepath.Join(work, "tree"), dir); err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	os.RemoveAll(work)
	return loadKernel(dir)
}

// downloadKernel leaves a complete kernel in work/tree.
func downloadKernel(ctx context.Context, work string, suite Suite, flavour Flavour, src source) error {
	a, err := newApt(work, suite, src)
	if err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	if _, err := a.run(ctx, "apt-get", "update"); err != nil {
		return err
	}
	pkgs, err := a.kernelPackages(ctx, flavour)
	if err != nil {
		return err
	}
	if _, err := a.run(ctx, "apt-get", append([]string{"download"}, pkgs...)...); err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	if err := os.RemoveAll(tree); err != nil {
		return fmt.Errorf("kernel cache: %w", err)
	}
	var files []string
	for _, p := range pkgs {
		debs, _ := filepath.Glob(filepath.Join(work, "deb", p+"_*.deb"))
		if len(debs) == 0 {
			return fmt.Errorf("package %s: apt-get download left no file", p)
		}
		slices.Sort(debs)
		deb := debs[len(debs)-1]
		if err := unpackDeb(ctx, deb, tree); err != nil {
			return err
		}
		files = append(files, strings.TrimSuffix(filepath.Base(deb), ".deb"))
	}
	k, err := findKernel(tree, flavour)
	if err != nil {
		return err
	}
	k.Suite, k.Flavour, k.Packages = suite, flavour, files
	for _, p := range k.paths() {
		if *p, err = filepath.Rel(tree, *p); err != nil {
			return err
		}
	}
	meta, err := k.meta()
	if err != nil {
		return err
	}
	return writeFileAtomic(filepath.Join(tree, kernelMeta), meta, 0o644)
}

// meta returns what kernelMeta holds.
func (k *Kernel) meta() ([]byte, error) {
	b, err := json.MarshalIndent(k, "", "\t")
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	return append(b, '\n'), nil
}

func unpackDeb(ctx context.Context, deb, dir string) error {
	out, err := exec.CommandContext(ctx, "dpkg-deb", "-x", deb, dir).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return &MissingError{What: "dpkg-deb", Package: "dpkg"}
	}
	if err != nil {
		// A package that was torn must not stop the next try too.
		os.Remove(deb)
		return fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, lastLines(string(out), 3))
	}
	return nil
}

// paths returns k's fields that hold a path.
func (k *Kernel) paths() []*string {
	return []*string{&k.Image, &k.SystemMap, &k.Config, &k.ModulesDir}
}

// loadKernel reads a complete kernel from the cache.
func loadKernel(dir string) (*Kernel, error) {
	text, err := os.ReadFile(filepath.Join(dir, kernelMeta))
	if err != nil {
		return nil, fmt.Errorf("kernel cache: %w", err)
	}
	k := &Kernel{}
	if err := json.Unmarshal(text, k); err != nil {
		return nil, fmt.Errorf("kernel cache: %s: %w", kernelMeta, err)
	}
	for _, p := range k.paths() {
		*p = filepath.Join(dir, *p)
		if _, err := os.Stat(*p); err != nil {
			return nil, fmt.Errorf("kernel cache: %w", err)
		}
	}
	return k, nil
}

// InstalledKernel returns the newest kernel of a flavour that is installed
// below root ("/" for this machine). The error wraps ErrMissing when there is
// none.
func InstalledKernel(root string, flavour Flavour) (*Kernel, error) {
	k, err := findKernel(root, flavour)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrMissing)
	}
	return k, nil
}

// findKernel finds the newest kernel of a flavour below root, where Debian's
// packages put it: boot/ up to Linux 6.12, usr/lib/modules/RELEASE/ after that.
func findKernel(root string, flavour Flavour) (*Kernel, error) {
	var images []string
	for _, pattern := range []string{"boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz"} {
		m, _ := filepath.Glob(filepath.Join(root, pattern))
		images = append(images, m...)
	}
	var best *Kernel
	for _, img := range images {
		k := &Kernel{Flavour: flavour, Image: img}
		if release, ok := strings.CutPrefix(filepath.Base(img), "vmlinuz-"); ok {
			k.Release = release
			k.SystemMap = filepath.Join(root, "boot/System.map-"+release)
			k.Config = filepath.Join(root, "boot/config-"+release)
		} else {
			d := filepath.Dir(img)
			k.Release = filepath.Base(d)
			k.SystemMap = filepath.Join(d, "System.map")
			k.Config = filepath.Join(d, "config")
		}
		if !hasFlavour(k.Release, flavour) {
			continue
		}
		for _, d := range []string{"usr/lib/modules", "lib/modules"} {
			d = filepath.Join(root, d, k.Release)
			if _, err := os.Stat(d); err == nil {
				k.ModulesDir = d
				break
			}
		}
		if k.ModulesDir == "" {
			continue
		}
		if best == nil || versionLess(best.Release, k.Release) {
			best = k
		}
	}
	if best == nil {
		return nil, fmt.Errorf("no kernel of flavour %s below %s", flavour, root)
	}
	return best, nil
}

// hasFlavour reports whether a release ("6.1.0-50-cloud-amd64") is of a
// flavour; "amd64" is a suffix of other flavours too.
func hasFlavour(release string, f Flavour) bool {
	base, ok := strings.CutSuffix(release, "-"+string(f))
	return ok && strings.Trim(base[strings.LastIndexByte(base, '-')+1:], "0123456789.+~debu") == ""
}

// versionLess compares releases, runs of digits as numbers.
func versionLess(a, b string) bool {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da != "" && db != "" {
			x, y := strings.TrimLeft(da, "0"), strings.TrimLeft(db, "0")
			if len(x) != len(y) {
				return len(x) < len(y)
			}
			if x != y {
				return x < y
			}
			a, b = a[len(da):], b[len(db):]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

// digits returns the run of digits that s begins with.
func digits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}
