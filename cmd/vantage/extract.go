package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/node"
)

// extractFlags are the flags of `vantage extract`.
type extractFlags struct {
	pid, fd                  int
	exe, force               bool
	area, core, file, output string
}

func (a *app) extractCommand() *cobra.Command {
	var f extractFlags
	cmd := &cobra.Command{
		Use:   "extract VM",
		Short: "Take a file, a program or a process's memory out of a guest's RAM",
		Long: `Take something out of a Linux guest's RAM and write it to a file:

  --file PATH            a file out of the page cache; with --pid: as that
                         process sees PATH (in its container)
  --pid N --exe          the program of a process, deleted or not
  --pid N --fd M         an open file: also a deleted one, or a memfd
  --pid N --map START    the memory area that START lies in, as the process
                         sees it
  --pid N --core FILE    the whole process as an ELF core, which gdb opens:
                         memory, threads with their registers, mapped files

-o names the file ('-' is stdout); without it, it is made in the working
directory and its name is told. A file that exists is replaced only with --force,
and what is not complete never has the name.

What is not in RAM (a page that was never read from disk, or is on a swap device)
is zero in the file; how many pages, and which, is told, and the status is 3.
Pages in compressed swap (zram) are read back. A core's registers are those with
which a thread entered the kernel; those of a thread that is running are known
under --pause.

JSON, one line on stdout (on stderr with -o -): output path bytes sha256
pages_total pages_read pages_missing pages_from_swap missing; path is the guest's
name for it, missing has the offset and size of each part that is zero.`,
		Example: `  vantage extract web-1 --pid 812 --exe -o suspect.elf
  vantage extract web-1 --pid 812 --core core.812 --pause
  vantage extract web-1 --pid 812 --map 0x7f12c0000000 -o area.bin
  vantage extract web-1.lime --file /etc/passwd -o -`,
		Args:              oneVM,
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			set := func(name string) bool { return cmd.Flags().Changed(name) }
			if err := f.check(a, set); err != nil {
				return err
			}
			return a.extract(cmd.Context(), args[0], &f, set)
		},
	}
	fl := cmd.Flags()
	fl.IntVarP(&f.pid, "pid", "p", 0, "of this process")
	fl.BoolVar(&f.exe, "exe", false, "its program")
	fl.IntVar(&f.fd, "fd", 0, "its open file of this number")
	fl.StringVar(&f.area, "map", "", "its memory area at this address")
	fl.StringVar(&f.core, "core", "", "an ELF core of it, to this file")
	fl.StringVar(&f.file, "file", "", "the file of this path in the guest")
	fl.StringVarP(&f.output, "output", "o", "", "the file to write; - for stdout")
	fl.BoolVar(&f.force, "force", false, "replace a file that exists")
	completeFlag(cmd, "pid")
	completeFlag(cmd, "fd")
	completeFlag(cmd, "map")
	completeFlag(cmd, "file")
	return cmd
}

// check returns why the flags contradict each other.
func (f *extractFlags) check(a *app, set func(string) bool) error {
	var what []string
	for _, name := range []string{"exe", "fd", "map", "core", "file"} {
		if set(name) && (name != "exe" || f.exe) {
			what = append(what, "--"+name)
		}
	}
	switch {
	case len(what) == 0:
		return errors.New("nothing to extract: want --file, or --pid with --exe, --fd, --map or --core")
	case len(what) > 1:
		return fmt.Errorf("%s: one at a time", strings.Join(what, " "))
	case what[0] != "--file" && !set("pid"):
		return fmt.Errorf("%s: of which process? --pid says it", what[0])
	case set("core") && set("output"):
		return errors.New("--core names the file: no -o")
	case set("core") && f.core == "", set("file") && f.file == "", set("output") && f.output == "":
		return errors.New("an empty name")
	}
	if set("core") {
		f.output = f.core
	}
	if f.output == "-" && a.pause {
		return errors.New("-o - with --pause would keep all of it in memory: write it to a file")
	}
	return nil
}

// extracted is what `vantage extract` prints.
type extracted struct {
	Output string `json:"output"`
	Path   string `json:"path"`
	Bytes  uint64 `json:"bytes"`
	SHA256 string `json:"sha256"`
	linux.ContentCoverage

	jsonPath string
}

func (a *app) extract(ctx context.Context, name string, f *extractFlags, set func(string) bool) error {
	return a.withVM(ctx, name, func(n *node.Node, vm hypervisor.VM) error {
		g, err := n.Linux(ctx, vm)
		if err != nil {
			return fmt.Errorf("look into %s: %w", name, err)
		}
		return a.still(ctx, name, vm, func() error {
			g.Flush() // what was translated before the pause
			c, err := a.extractWhat(ctx, vm, g, f, set)
			if err != nil {
				return fmt.Errorf("extract from %s: %w", name, err)
			}
			if err := a.extractTo(ctx, c, f); err != nil {
				var status *exitError
				if errors.As(err, &status) {
					return err
				}
				return fmt.Errorf("extract from %s: %w", name, err)
			}
			return nil
		})
	})
}

// extractWhat finds what the flags mean, and gives it a name if it has none.
func (a *app) extractWhat(ctx context.Context, vm hypervisor.VM, g *linux.Guest, f *extractFlags, set func(string) bool) (*linux.Content, error) {
	name := func(format string, args ...any) {
		if f.output == "" {
			f.output = fmt.Sprintf(format, args...)
		}
	}
	if !set("pid") {
		name("%s", fileName(f.file))
		return g.CachedFile(ctx, f.file)
	}
	p, err := processOf(ctx, g, f.pid)
	if err != nil {
		return nil, err
	}
	switch {
	case set("file"):
		name("%s", fileName(f.file))
		return g.CachedFileOf(ctx, p, f.file)
	case set("fd"):
		name("pid-%d-fd-%d", f.pid, f.fd)
		return g.OpenFile(ctx, p, f.fd)
	case set("map"):
		at, err := strconv.ParseUint(f.area, 0, 64)
		if err != nil {
			// As /proc/PID/maps writes it.
			if at, err = strconv.ParseUint(f.area, 16, 64); err != nil {
				return nil, fmt.Errorf("--map %q: want an address", f.area)
			}
		}
		c, v, err := g.Area(ctx, p, hypervisor.VirtAddr(at))
		name("pid-%d-%x", f.pid, uint64(v.Start))
		return c, err
	case set("core"):
		opt := linux.CoreOptions{}
		if r, err := hypervisor.As[hypervisor.RegisterReader](vm); err == nil && a.pause {
			if opt.Registers, err = r.Registers(ctx); err != nil {
				return nil, fmt.Errorf("read registers: %w", err)
			}
		}
		return g.Core(ctx, p, opt)
	}
	name("pid-%d.exe", f.pid)
	return g.Exe(ctx, p)
}

// processOf returns the process pid.
func processOf(ctx context.Context, g *linux.Guest, pid int) (linux.Process, error) {
	list, err := g.Processes(ctx, linux.ProcessOptions{})
	if err != nil {
		return linux.Process{}, err
	}
	for _, p := range list.Processes {
		if p.PID == pid {
			return p, nil
		}
	}
	return linux.Process{}, fmt.Errorf("there is no process %d", pid)
}

// fileName makes the last part of a guest's path the name of a file here.
func fileName(p string) string {
	const most = 100
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= '0' && r <= '9', r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r == '.', r == '-', r == '_':
			return r
		}
		return '_'
	}, path.Base(p))
	name = name[:min(len(name), most)]
	if name = strings.TrimLeft(name, ".-"); name == "" {
		return "extracted"
	}
	return name
}

// extractTo writes c where the flags say and tells what was written.
func (a *app) extractTo(ctx context.Context, c *linux.Content, f *extractFlags) (err error) {
	hash := sha256.New()
	var file *outFile
	w := a.stdout
	if f.output != "-" {
		if file, err = createOut(f.output, f.force); err != nil {
			return err
		}
		w = file
		defer func() {
			if file != nil {
				err = errors.Join(err, file.abandon())
			}
		}()
	}
	progress, clearBar := a.extractBar(c)
	cov, err := c.WriteTo(ctx, io.MultiWriter(w, hash), progress)
	clearBar()
	if err != nil {
		return err
	}
	if file != nil {
		err = file.commit()
		if file = nil; err != nil {
			return err
		}
	}
	e := extracted{Output: f.output, Path: c.Path, jsonPath: c.JSONPath(), Bytes: c.Size, SHA256: hex.EncodeToString(hash.Sum(nil)), ContentCoverage: *cov}
	if err := a.printExtracted(&e); err != nil {
		return err
	}
	if err := a.incomplete(cov.Problems); err != nil {
		return err
	}
	if !cov.Complete() {
		return &exitError{code: exitIncomplete}
	}
	return nil
}

// extractBar returns what tells how far the work is, where someone watches, and
// what takes it away.
func (a *app) extractBar(c *linux.Content) (progress func(uint64), done func()) {
	if a.quiet || term.Width(a.stderr) == 0 {
		return nil, func() {}
	}
	bar := progressbar.NewOptions64(int64(c.Size),
		progressbar.OptionSetWriter(a.stderr),
		progressbar.OptionSetDescription("extract"),
		progressbar.OptionShowBytes(true),
		progressbar.OptionSetWidth(20),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionClearOnFinish(),
	)
	// A bar that cannot be drawn is no error.
	return func(n uint64) { _ = bar.Set64(int64(n)) }, func() { _ = bar.Clear() }
}

func (a *app) printExtracted(e *extracted) error {
	if a.json {
		e.Path = e.jsonPath
		if e.Output == "-" {
			return a.printJSONErr(e)
		}
		return a.printJSON(e)
	}
	w := a.stdout
	if e.Output == "-" {
		w = a.stderr
	}
	_, err := fmt.Fprintf(w, "%s  %s  %d bytes  sha256 %s\n", term.Escape(e.Output), term.Escape(e.Path), e.Bytes, e.SHA256)
	if err == nil && e.PagesMissing > 0 {
		_, err = fmt.Fprintf(a.stderr, "vantage: incomplete: %d of %d pages are not in RAM (--json lists them)\n", e.PagesMissing, e.PagesTotal)
	}
	return err
}
