package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// truthSource is the source of the program that runs in guests with
// Config.Program.
//
//go:embed guest/*.c guest/*.h
var truthSource embed.FS

// TruthModules are the modules that a guest with Config.Program loads unless
// Config.Modules names others: one that stands alone, and one with others
// beneath it.
func TruthModules() []string { return []string{"dummy", "nf_conntrack"} }

// compileFlags make a program that needs nothing in the guest but the kernel.
func compileFlags() []string {
	return []string{"-static", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"}
}

// buildTruth compiles the truth program, or finds it in the cache, and returns
// its path.
func buildTruth(ctx context.Context) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	files, err := fs.Glob(truthSource, "guest/*")
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	fmt.Fprintf(hash, "%q\n", compileFlags())
	for _, f := range files {
		text, err := truthSource.ReadFile(f)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(hash, "%s %d\n", f, len(text))
		hash.Write(text)
	}
	dir := filepath.Join(cache, "programs")
	out := filepath.Join(dir, fmt.Sprintf("truth-%x", hash.Sum(nil)[:16]))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("truth program: %w", err)
	}
	src, err := os.MkdirTemp(dir, ".build-*")
	if err != nil {
		return "", fmt.Errorf("truth program: %w", err)
	}
	defer os.RemoveAll(src)
	if err := os.CopyFS(src, truthSource); err != nil {
		return "", fmt.Errorf("truth program: %w", err)
	}
	args := append(compileFlags(), "-o", "truth")
	for _, f := range files {
		if strings.HasSuffix(f, ".c") {
			args = append(args, f)
		}
	}
	cmd := exec.CommandContext(ctx, "gcc", args...)
	cmd.Dir = src
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", &MissingError{What: "gcc", Package: "gcc libc6-dev"}
		}
		return "", fmt.Errorf("truth program: gcc: %w: %s", err, stderr.String())
	}
	// Another process may do the same: the last rename wins, all are equal.
	if err := os.Rename(filepath.Join(src, "truth"), out); err != nil {
		return "", fmt.Errorf("truth program: %w", err)
	}
	return out, nil
}

func addTruthProgram(ctx context.Context, fs *Initramfs) error {
	p, err := buildTruth(ctx)
	if err != nil {
		return err
	}
	fs.HostFile("lab/truth", 0o755, p)
	return nil
}
