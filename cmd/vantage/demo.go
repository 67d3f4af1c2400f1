package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/term"
)

// demoMemory is the RAM of each demo guest in bytes.
const demoMemory = 256 * lab.MiB

func (a *app) demoCommand() *cobra.Command {
	var keep bool
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Boot three guests, find the infected one, watch policy answer",
		Long: `Boot three stock Debian-kernel guests under QEMU, with no agent in them; find
them, list their processes from outside, scan their memory, find the one that
is infected, and let policy answer: an alert, and the infected VM paused.

The infection is harmless: a text that lives only in one process's anonymous
memory, never on a disk. Everything is removed at the end, after Ctrl-C too.

Needs qemu-system-x86_64, busybox (static) and a Debian kernel, which is
downloaded once with apt-get and unpacked, not installed ('make demo' sees to
all of it).`,
		Example: `  vantage demo
  vantage demo --keep      # leave the guests running, to try commands on`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.json {
				return errors.New("demo is for people: it has no --json (its commands have)")
			}
			return (&demo{app: a, keep: keep, style: term.NewStyle(a.stdout)}).run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&keep, "keep", false, "leave the guests running and say what to try")
	return cmd
}

// demo is one run of `vantage demo`.
type demo struct {
	app    *app
	keep   bool
	style  term.Style
	guests []*lab.Guest
	bad    *lab.Guest // the infected one
}

func (d *demo) run(ctx context.Context) (err error) {
	start := time.Now()
	defer func() {
		if d.keep && err == nil {
			return
		}
		for _, g := range d.guests {
			if cerr := g.Close(); cerr != nil && err == nil {
				err = cerr
			}
		}
	}()
	if err := d.boot(ctx); err != nil {
		return err
	}
	names := make([]string, len(d.guests))
	for i, g := range d.guests {
		names[i] = g.Name()
	}
	d.step("Find them. Nothing in the guests or on QEMU's command line was set up for it.")
	if err := d.vantage(ctx, exitOK, "vms"); err != nil {
		return err
	}
	d.step("Look inside one, from outside: no agent, no symbol file.")
	if err := d.vantage(ctx, exitOK, "ps", d.bad.Name(), "--user"); err != nil {
		return err
	}
	d.step("Scan the memory of all three with YARA, and let policy answer.")
	if err := d.vantage(ctx, exitFound, append(append([]string{"scan"}, names...), "--respond")...); err != nil {
		return err
	}
	d.step("The infected VM stands still; the others run on.")
	if err := d.vantage(ctx, exitOK, "vms"); err != nil {
		return err
	}
	if err := d.check(ctx); err != nil {
		return err
	}
	d.summary(time.Since(start))
	return nil
}

// boot starts the guests, all at once.
func (d *demo) boot(ctx context.Context) error {
	d.step("Boot three stock Debian guests; one of them carries a harmless test payload.")
	fetched := time.Now()
	kernel, err := lab.FetchKernel(ctx, lab.Bookworm, lab.Cloud)
	if err != nil {
		return fmt.Errorf("get a kernel for the guests: %w", err)
	}
	fmt.Fprintf(d.app.stdout, "kernel: Debian's linux %s (%.1fs)\n", kernel.Release, time.Since(fetched).Seconds())
	names, err := d.freeNames(ctx, "demo-web", "demo-db", "demo-mail")
	if err != nil {
		return err
	}
	const infected = 2
	guests := make([]*lab.Guest, len(names))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			guests[i], errs[i] = lab.Boot(ctx, lab.Config{
				Name: name, Kernel: kernel, Memory: demoMemory,
				// One of each way that QEMU may hold a guest's memory.
				Shared: i == 0, KASLR: true, QMP: true, Detach: d.keep,
				Machine: []lab.Machine{lab.PC, lab.Q35, lab.PC}[i],
				Init:    lab.DemoInit(i == infected, strings.TrimPrefix(name, "demo-")),
			})
		})
	}
	wg.Wait()
	for _, g := range guests {
		if g != nil {
			d.guests = append(d.guests, g)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("boot the demo's guests: %w", err)
	}
	d.bad = guests[infected]
	for _, g := range guests {
		fmt.Fprintf(d.app.stdout, "booted: %-10s %s, QEMU's PID %d\n", g.Name(), g.Config().Machine, g.PID())
	}
	return nil
}

// freeNames returns names that no VM of this host has yet, so that the commands
// that are shown mean the demo's own guests.
func (d *demo) freeNames(ctx context.Context, want ...string) ([]string, error) {
	n, err := d.app.node()
	if err != nil {
		return nil, err
	}
	vms, _ := n.List(ctx) // what cannot be looked at has no name to clash with
	taken := func(name string) bool {
		return slices.ContainsFunc(vms, func(v hypervisor.Info) bool { return v.Name == name })
	}
	out := slices.Clone(want)
	for i := range out {
		for k := 2; taken(out[i]); k++ {
			out[i] = fmt.Sprintf("%s-%d", want[i], k)
		}
	}
	return out, nil
}

func (d *demo) step(text string) {
	fmt.Fprintf(d.app.stdout, "\n%s\n", d.style.Bold("== "+text))
}

// vantage runs one of our own commands as a user would, and shows it.
func (d *demo) vantage(ctx context.Context, want int, args ...string) error {
	fmt.Fprintf(d.app.stdout, "%s\n", d.style.Dim("$ vantage "+strings.Join(args, " ")))
	sub := *d.app
	code := sub.run(ctx, append(args, "--cache-dir", d.app.cacheDir, "--log-level", d.app.logLevel))
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if code != want {
		return fmt.Errorf("'vantage %s' ended with status %d, want %d", strings.Join(args, " "), code, want)
	}
	return nil
}

// check asks QEMU itself, through the lab's own monitor, whether the answer was
// carried out.
func (d *demo) check(ctx context.Context) error {
	for _, g := range d.guests {
		got, err := g.Status(ctx)
		if err != nil {
			return fmt.Errorf("ask QEMU for the status of %s: %w", g.Name(), err)
		}
		want := "running"
		if g == d.bad {
			want = "paused"
		}
		if got != want {
			return fmt.Errorf("%s is %s, want %s", g.Name(), got, want)
		}
	}
	return nil
}

func (d *demo) summary(took time.Duration) {
	w := d.app.stdout
	fmt.Fprintf(w, "\n%s %d guests found and looked into from outside, 1 infected, alerted and paused, in %s.\n",
		d.style.Green("Done:"), len(d.guests), took.Round(100*time.Millisecond))
	if !d.keep {
		fmt.Fprintln(w, "The guests are gone. KEEP=1 leaves them running, to try commands on.")
		return
	}
	self := "vantage"
	if _, err := os.Stat("./vantage"); err == nil {
		self = "./vantage"
	}
	fmt.Fprintf(w, "\nThe guests run on. Try:\n")
	fmt.Fprintf(w, "  %s info %s\n  %s ps %s --json\n  %s modules %s\n  %s scan %s --physical\n", self, d.bad.Name(),
		self, d.guests[0].Name(), self, d.guests[1].Name(), self, d.bad.Name())
	pids := make([]string, len(d.guests))
	for i, g := range d.guests {
		pids[i] = fmt.Sprint(g.PID())
	}
	fmt.Fprintf(w, "End them with:\n  kill %s\n", strings.Join(pids, " "))
}
