package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// FetchProgram returns what a guest needs to run /usr/bin/NAME out of Debian's
// packages of a suite: the program and all shared libraries that the packages
// hold, each at its own path. The packages must be all that it needs; they come
// from the cache or else from the machine's own Debian mirror, with nothing
// installed. Errors as those of FetchKernel.
func FetchProgram(ctx context.Context, suite Suite, name string, packages ...string) ([]File, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	base := filepath.Join(cache, "packages")
	tree := filepath.Join(base, string(suite)+"-"+name)
	if files, err := programTree(tree, name); err == nil {
		return files, nil
	}
	release, err := lockFile(ctx, tree+".lock")
	if err != nil {
		return nil, err
	}
	defer release()
	if files, err := programTree(tree, name); err == nil { // another process was quicker
		return files, nil
	}
	src, err := debianSource("/")
	if err != nil {
		return nil, err
	}
	work := tree + ".partial"
	if err := downloadPackages(ctx, work, suite, src, packages); err != nil {
		if errors.Is(err, ErrMissing) || ctx.Err() != nil {
			return nil, err
		}
		return nil, &SuiteError{Suite: suite, Err: err}
	}
	if err := os.RemoveAll(tree); err != nil {
		return nil, fmt.Errorf("package cache: %w", err)
	}
	if err := os.Rename(filepath.Join(work, "tree"), tree); err != nil {
		return nil, fmt.Errorf("package cache: %w", err)
	}
	os.RemoveAll(work)
	return programTree(tree, name)
}

// downloadPackages leaves the packages' files in work/tree.
func downloadPackages(ctx context.Context, work string, suite Suite, src source, packages []string) error {
	a, err := newApt(work, suite, src)
	if err != nil {
		return fmt.Errorf("package cache: %w", err)
	}
	if _, err := a.run(ctx, "apt-get", "update"); err != nil {
		return err
	}
	if _, err := a.run(ctx, "apt-get", append([]string{"download"}, packages...)...); err != nil {
		return err
	}
	tree := filepath.Join(work, "tree")
	if err := os.RemoveAll(tree); err != nil {
		return fmt.Errorf("package cache: %w", err)
	}
	for _, p := range packages {
		debs, _ := filepath.Glob(filepath.Join(work, "deb", p+"_*.deb"))
		if len(debs) == 0 {
			return fmt.Errorf("package %s: apt-get download left no file", p)
		}
		if err := unpackDeb(ctx, debs[len(debs)-1], tree); err != nil {
			return err
		}
	}
	return nil
}

// programTree returns the program and the libraries in tree.
func programTree(tree, name string) ([]File, error) {
	program := filepath.Join(tree, "usr/bin", name)
	if _, err := os.Stat(program); err != nil {
		return nil, fmt.Errorf("program %s: %w", name, err)
	}
	files := []File{{Path: "usr/bin/" + name, Mode: 0o755, Host: program}}
	for _, dir := range []string{"lib64", "lib/x86_64-linux-gnu", "usr/lib64", "usr/lib/x86_64-linux-gnu"} {
		entries, err := os.ReadDir(filepath.Join(tree, dir))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", name, err)
		}
		for _, e := range entries {
			f := File{Path: dir + "/" + e.Name(), Mode: 0o755, Host: filepath.Join(tree, dir, e.Name())}
			switch {
			case !strings.Contains(e.Name(), ".so"):
				continue
			case e.Type() == fs.ModeSymlink:
				if f.Link, err = os.Readlink(f.Host); err != nil {
					return nil, fmt.Errorf("libraries of %s: %w", name, err)
				}
				f.Host = ""
			case !e.Type().IsRegular():
				continue
			}
			files = append(files, f)
		}
	}
	return files, nil
}
