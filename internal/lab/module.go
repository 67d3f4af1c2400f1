package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Module is one module of a Kernel.
type Module struct {
	Name string // as /proc/modules prints it: with '_', not '-'
	Path string // of the .ko file, not compressed
}

// Modules returns the named modules and all that they depend on, in the order
// in which they can be loaded. Debian's packages carry no modules.dep (depmod
// makes it at installation), so dependencies are read from the modules.
// Compressed modules are unpacked into the cache. What this kernel has built in is
// left out.
func (k *Kernel) Modules(ctx context.Context, names ...string) ([]Module, error) {
	paths := map[string]string{}
	err := filepath.WalkDir(k.ModulesDir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base, _, ok := strings.Cut(d.Name(), ".ko")
		if ok && d.Type().IsRegular() {
			paths[moduleName(base)] = p
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("modules of %s: %w", k.Release, err)
	}
	builtin, err := k.builtin()
	if err != nil {
		return nil, err
	}
	var out []Module
	state := map[string]int{} // 1: being visited, 2: done
	var visit func(name string) error
	visit = func(name string) error {
		switch state[name] {
		case 1:
			return fmt.Errorf("module %s of %s depends on itself", name, k.Release)
		case 2:
			return nil
		}
		state[name] = 1
		path, ok := paths[name]
		if !ok && builtin[name] {
			state[name] = 2
			return nil
		}
		if !ok {
			return fmt.Errorf("module %s of %s: %w", name, k.Release, fs.ErrNotExist)
		}
		path, err := k.plainModule(ctx, path)
		if err != nil {
			return err
		}
		deps, err := moduleDepends(path)
		if err != nil {
			return err
		}
		for _, d := range deps {
			if err := visit(d); err != nil {
				return err
			}
		}
		state[name] = 2
		out = append(out, Module{Name: name, Path: path})
		return nil
	}
	for _, n := range names {
		if err := visit(moduleName(n)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// builtinList is the file of what would be modules and is built in, by path.
const builtinList = "modules.builtin"

// builtin returns the names of what the kernel has built in.
func (k *Kernel) builtin() (map[string]bool, error) {
	text, err := os.ReadFile(filepath.Join(k.ModulesDir, builtinList))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("modules of %s: %w", k.Release, err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		names[moduleName(strings.TrimSuffix(filepath.Base(strings.TrimSpace(line)), ".ko"))] = true
	}
	return names, nil
}

func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// plainModule returns the path of a module that is not compressed.
func (k *Kernel) plainModule(ctx context.Context, path string) (string, error) {
	var tool, pkg string
	switch filepath.Ext(path) {
	case ".ko":
		return path, nil
	case ".xz":
		tool, pkg = "xz", "xz-utils"
	case ".zst":
		tool, pkg = "zstd", "zstd"
	case ".gz":
		tool, pkg = "gzip", "gzip"
	default:
		return "", fmt.Errorf("module %s: unknown compression", path)
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "modules", string(k.Suite)+"-"+k.Release)
	out := filepath.Join(dir, strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("module cache: %w", err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, tool, "-dc", "--", path)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", &MissingError{What: tool, Package: pkg}
		}
		return "", fmt.Errorf("unpack module %s: %w: %s", path, err, lastLines(stderr.String(), 2))
	}
	if err := writeFileAtomic(out, stdout.Bytes(), 0o644); err != nil {
		return "", fmt.Errorf("module cache: %w", err)
	}
	return out, nil
}

// moduleDepends reads what a module says it depends on (its .modinfo section,
// include/linux/module.h).
func moduleDepends(path string) ([]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("module: %w", err)
	}
	defer file.Close()
	f, err := elf.NewFile(file)
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("module %s: no .modinfo section", path)
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("module %s: %w", path, err)
	}
	var out []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if v, ok := strings.CutPrefix(string(field), "depends="); ok {
			for d := range strings.SplitSeq(v, ",") {
				if d != "" {
					out = append(out, moduleName(d))
				}
			}
		}
	}
	return out, nil
}
