package main

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vantage-vmi/vantage/internal/lab"
)

//go:embed guest/fill.c
var fillSource []byte

// fill gives the guest some 580 processes with 2,080 open files and 520 sockets
// of their own, 200 MiB of random bytes in files and 256 MiB in one process's
// anonymous memory, and text, so that a look and a scan meet what a used machine
// holds and not only zeros.
const fill = `
ip link set lo up
for i in $(seq 1 60); do sleep 10000$i & done
mkdir -p /fill && mount -t tmpfs -o size=700m fill /fill
dd if=/dev/urandom of=/fill/random bs=1M count=200 2>/dev/null
i=0; while [ $i -lt 12 ]; do cp /bin/busybox /fill/bin$i; i=$((i+1)); done
seq 1 4000000 > /fill/numbers
mkfifo /fill/pipe
dd if=/dev/urandom of=/fill/pipe bs=256M count=1 iflag=fullblock 2>/dev/null &
exec 9<>/fill/pipe
head -c 4096 <&9 >/dev/null
/bin/fill > /fill/made &
until [ -s /fill/made ]; do usleep 50000; done
`

// compileFill compiles the program that fills the guest.
func compileFill(ctx context.Context, dir string) (string, error) {
	src, out := filepath.Join(dir, "fill.c"), filepath.Join(dir, "fill")
	if err := os.WriteFile(src, fillSource, 0o644); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "gcc", "-static", "-O2", "-o", out, src)
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile fill.c: %w: %s", err, text)
	}
	return out, nil
}

// makeImage boots a guest of 1 GiB, fills it and writes its RAM to path; a
// byte's offset in the file is its guest-physical address (at this size all of
// RAM lies below the hole).
func makeImage(ctx context.Context, path string) (err error) {
	k, err := lab.FetchKernel(ctx, lab.Bookworm, lab.Cloud)
	if err != nil {
		return err
	}
	program, err := compileFill(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	g, err := lab.Boot(ctx, lab.Config{
		Name: "bench", Kernel: k, Memory: 1 * lab.GiB, Shared: true, KASLR: true, Init: fill,
		Modules: lab.TruthModules(),
		Files:   []lab.File{{Path: "/bin/fill", Mode: 0o755, Host: program}},
	})
	if err != nil {
		return err
	}
	defer func() {
		if cerr := g.Close(); err == nil {
			err = cerr
		}
	}()
	tmp := path + ".part"
	if err := g.Pause(ctx); err != nil {
		return err
	}
	ram, err := g.RAMFile()
	if err != nil {
		return err
	}
	if err := copyFile(tmp, ram); err != nil {
		return err
	}
	// The same memory in the form that the crash utility needs.
	if err := g.DumpELF(ctx, coreOf(path)); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// coreOf returns the path of the ELF core that goes with the RAM file at path.
func coreOf(path string) string { return strings.TrimSuffix(path, ".raw") + ".elf" }

func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	_, err = io.Copy(out, in)
	return err
}
