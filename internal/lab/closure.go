package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// qemuFiles returns this machine's QEMU, its libraries, and what firmware a PC
// without a display needs, for a guest.
func qemuFiles(ctx context.Context) ([]File, error) {
	q, err := findQEMU()
	if err != nil {
		return nil, err
	}
	files, err := programFiles(ctx, q, "/usr/bin/qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	for _, pattern := range []string{
		"/usr/share/qemu/kvmvapic.bin", "/usr/share/qemu/linuxboot*.bin", "/usr/share/qemu/multiboot*.bin",
		"/usr/share/qemu/pvh.bin", "/usr/share/seabios/bios*.bin",
		"/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			files = append(files, File{Path: p, Host: p})
		}
	}
	return files, nil
}

// programFiles returns a program and all libraries that it is linked with
// (ldd(1)), each at its own path.
func programFiles(ctx context.Context, host, guest string) ([]File, error) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "ldd", host)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: ldd: %w: %s", host, err, lastLines(stderr.String(), 2))
	}
	files := []File{{Path: guest, Mode: 0o755, Host: host}}
	for _, p := range parseLdd(string(out)) {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("libraries of %s: %w", host, err)
		}
		files = append(files, File{Path: p, Mode: 0o755, Host: p})
	}
	return files, nil
}

// parseLdd returns the paths in what ldd prints:
//
//	libz.so.1 => /lib/x86_64-linux-gnu/libz.so.1 (0x00007f…)
//	/lib64/ld-linux-x86-64.so.2 (0x00007f…)
func parseLdd(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		for _, w := range strings.Fields(line) {
			if strings.HasPrefix(w, "/") {
				out = append(out, w)
				break
			}
		}
	}
	return out
}
