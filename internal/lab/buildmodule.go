package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// compilerScript runs gcc without the options that only a newer one knows:
// suites build their kernels with their own.
//
//go:embed guest/kernelcc.sh
var compilerScript []byte

// BuildModule builds the module NAME.ko for the kernel of a suite and flavour out
// of all C files at the top of sources, and returns its path. It comes from the
// cache when the same sources were built before, and then needs neither network
// nor compiler. Its debug information is left out.
//
// What it is built with comes from the machine's own Debian mirror, and is kept
// in the cache; nothing is installed. Errors are those of FetchKernel, one that
// wraps ErrMissing when this machine has no gcc or make, and what they said.
func BuildModule(ctx context.Context, suite Suite, flavour Flavour, name string, sources fs.FS) (path string, err error) {
	k, err := FetchKernel(ctx, suite, flavour)
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	hash, objects, err := hashSources(k, name, sources)
	if err != nil {
		return "", fmt.Errorf("module %s: %w", name, err)
	}
	dir := filepath.Join(cache, "built")
	out := filepath.Join(dir, fmt.Sprintf("%s-%s-%s.ko", name, k.Release, hash))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	tree, err := fetchBuildTree(ctx, k)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("module %s: %w", name, err)
	}
	work, err := os.MkdirTemp(dir, ".build-*")
	if err != nil {
		return "", fmt.Errorf("module %s: %w", name, err)
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(filepath.Join(work, "src"), sources); err != nil {
		return "", fmt.Errorf("module %s: %w", name, err)
	}
	kbuild := fmt.Sprintf("obj-m := %[1]s.o\n%[1]s-y := %[2]s\n", name, strings.Join(objects, " "))
	if err := os.WriteFile(filepath.Join(work, "src", "Kbuild"), []byte(kbuild), 0o644); err != nil {
		return "", fmt.Errorf("module %s: %w", name, err)
	}
	if err := tree.make(ctx, work, filepath.Join(work, "src")); err != nil {
		return "", fmt.Errorf("build module %s for %s: %w", name, k.Release, err)
	}
	// Another process may do the same: the last rename wins, all are equal.
	if err := os.Rename(filepath.Join(work, "src", name+".ko"), out); err != nil {
		return "", fmt.Errorf("module %s: %w", name, err)
	}
	return out, nil
}

// hashSources returns a name for what is built of sources, and their objects.
func hashSources(k *Kernel, name string, sources fs.FS) (hash string, objects []string, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s %q %d\n", name, k.Release, k.Packages, len(compilerScript))
	h.Write(compilerScript)
	err = fs.WalkDir(sources, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(sources, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%s %d\n", p, len(text))
		h.Write(text)
		if base, ok := strings.CutSuffix(p, ".c"); ok && !strings.Contains(p, "/") {
			if base == name {
				return fmt.Errorf("%s: a source file may not have the module's own name", p)
			}
			objects = append(objects, base+".o")
		}
		return nil
	})
	if err == nil && len(objects) == 0 {
		err = errors.New("no C files in its sources")
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:12]), objects, err
}

// make builds the modules of the folder src. Its own files go to work.
func (t *buildTree) make(ctx context.Context, work, src string) error {
	common, err := t.common()
	if err != nil {
		return err
	}
	cc := filepath.Join(work, "cc")
	if err := os.WriteFile(cc, compilerScript, 0o755); err != nil { //nolint:gosec // it is run
		return err
	}
	// The packages' own Makefile names /usr/src, where nothing is installed; from
	// 6.13 on it says where the kernel's output lies, too.
	makefile := filepath.Join(work, "Makefile")
	text := fmt.Sprintf("KBUILD_OUTPUT=%s\ninclude %s/Makefile\n", t.headers, common)
	if err := os.WriteFile(makefile, []byte(text), 0o644); err != nil {
		return err
	}
	for _, tool := range []string{"make", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			return &MissingError{What: tool, Package: tool}
		}
	}
	cmd := exec.CommandContext(ctx, "make", "-f", makefile, "-C", t.headers, "M="+src,
		"CC="+cc, "HOSTCC=gcc", "CONFIG_DEBUG_INFO_BTF_MODULES=", "CONFIG_DEBUG_INFO=", "modules")
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MAKEFLAGS=", envTree+"="+t.root)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("make: %w: %s", err, lastLines(said.String(), 12))
	}
	return nil
}
