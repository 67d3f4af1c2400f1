package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// FetchDebugKernel returns the path of the vmlinux with debug information of a
// suite's kernel of this release, as debuggers need it: from the cache or else
// out of Debian's package for it (some 280 MB), as FetchKernel returns its
// kernel. Errors as those of FetchKernel.
func FetchDebugKernel(ctx context.Context, suite Suite, release string) (path string, err error) {
	// It becomes part of a path and of a command.
	if err := checkRelease(release); err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	base := filepath.Join(cache, "debug")
	path = filepath.Join(base, "vmlinux-"+release)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := lockFile(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil { // another process was quicker
		return path, nil
	}
	src, err := debianSource("/")
	if err != nil {
		return "", err
	}
	work := filepath.Join(base, release+".partial")
	unpacked, err := downloadDebugKernel(ctx, work, suite, src, release)
	if err != nil {
		if errors.Is(err, ErrMissing) || ctx.Err() != nil {
			return "", err
		}
		return "", &SuiteError{Suite: suite, Err: err}
	}
	if err := os.Rename(unpacked, path); err != nil {
		return "", fmt.Errorf("debug kernel cache: %w", err)
	}
	os.RemoveAll(work)
	return path, nil
}

// checkRelease reports a release that holds more than releases do.
func checkRelease(release string) error {
	other := func(r rune) bool {
		return r != '.' && r != '-' && r != '+' && r != '~' && (r < '0' || r > '9') && (r < 'a' || r > 'z')
	}
	if release == "" || strings.HasPrefix(release, "-") || strings.ContainsFunc(release, other) {
		return fmt.Errorf("kernel release %q", release)
	}
	return nil
}

// downloadDebugKernel unpacks the debug package below work and returns the path
// of its vmlinux.
func downloadDebugKernel(ctx context.Context, work string, suite Suite, src source, release string) (string, error) {
	a, err := newApt(work, suite, src)
	if err != nil {
		return "", fmt.Errorf("debug kernel cache: %w", err)
	}
	if _, err := a.run(ctx, "apt-get", "update"); err != nil {
		return "", err
	}
	pkg := "linux-image-" + release + "-dbg"
	if _, err := a.run(ctx, "apt-get", "download", pkg); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(work, "deb", pkg+"_*.deb"))
	if len(debs) == 0 {
		return "", fmt.Errorf("package %s: apt-get download left no file", pkg)
	}
	tree := filepath.Join(work, "tree")
	if err := os.RemoveAll(tree); err != nil {
		return "", fmt.Errorf("debug kernel cache: %w", err)
	}
	if err := unpackDeb(ctx, debs[len(debs)-1], tree); err != nil {
		return "", err
	}
	path := filepath.Join(tree, "usr/lib/debug/boot/vmlinux-"+release)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("package %s: %w", pkg, err)
	}
	return path, nil
}
