package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// headerPackage is what a kernel's own headers are split into: a package per
// flavour, and one of what all have in common.
var headerPackage = regexp.MustCompile(`^linux-headers-[0-9]`)

// FetchHeaders returns the folder of a suite's kernel headers, those that modules
// are built with (include, arch/x86/include), as FetchKernel returns its kernel:
// from the cache or else from the machine's own Debian mirror, with nothing
// installed. Errors as those of FetchKernel.
func FetchHeaders(ctx context.Context, suite Suite) (dir string, err error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	base := filepath.Join(cache, "headers")
	tree := filepath.Join(base, string(suite))
	if d, err := findHeaders(tree); err == nil {
		return d, nil
	}
	release, err := lockFile(ctx, filepath.Join(base, string(suite)+".lock"))
	if err != nil {
		return "", err
	}
	defer release()
	if d, err := findHeaders(tree); err == nil { // another process was quicker
		return d, nil
	}
	src, err := debianSource("/")
	if err != nil {
		return "", err
	}
	work := filepath.Join(base, string(suite)+".partial")
	if err := downloadHeaders(ctx, work, suite, src); err != nil {
		if errors.Is(err, ErrMissing) || ctx.Err() != nil {
			return "", err
		}
		return "", &SuiteError{Suite: suite, Err: err}
	}
	if err := os.RemoveAll(tree); err != nil {
		return "", fmt.Errorf("header cache: %w", err)
	}
	if err := os.Rename(filepath.Join(work, "tree"), tree); err != nil {
		return "", fmt.Errorf("header cache: %w", err)
	}
	os.RemoveAll(work)
	return findHeaders(tree)
}

func findHeaders(tree string) (string, error) {
	dirs, _ := filepath.Glob(filepath.Join(tree, "usr/src/linux-headers-*-common"))
	if len(dirs) != 1 {
		return "", fmt.Errorf("%d folders of headers below %s", len(dirs), tree)
	}
	return dirs[0], nil
}

// downloadHeaders leaves the common headers in work/tree.
func downloadHeaders(ctx context.Context, work string, suite Suite, src source) error {
	a, err := newApt(work, suite, src)
	if err != nil {
		return fmt.Errorf("header cache: %w", err)
	}
	if _, err := a.run(ctx, "apt-get", "update"); err != nil {
		return err
	}
	pkg := "linux-headers-" + string(Generic)
	for range 3 { // of the flavour, of its newest version, of what all have in common
		text, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", pkg)
		if err != nil {
			return err
		}
		deps := depends(text, headerPackage)
		if len(deps) == 0 {
			break
		}
		pkg = deps[0]
		for _, d := range deps {
			if strings.HasSuffix(d, "-common") {
				pkg = d
			}
		}
	}
	if _, err := a.run(ctx, "apt-get", "download", pkg); err != nil {
		return err
	}
	debs, _ := filepath.Glob(filepath.Join(work, "deb", pkg+"_*.deb"))
	if len(debs) == 0 {
		return fmt.Errorf("package %s: apt-get download left no file", pkg)
	}
	tree := filepath.Join(work, "tree")
	if err := os.RemoveAll(tree); err != nil {
		return fmt.Errorf("header cache: %w", err)
	}
	if err := unpackDeb(ctx, debs[len(debs)-1], tree); err != nil {
		return err
	}
	_, err = findHeaders(tree)
	return err
}
