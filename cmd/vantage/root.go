package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor/image"
	"github.com/vantage-vmi/vantage/hypervisor/kvm"
	"github.com/vantage-vmi/vantage/hypervisor/qemu"
	"github.com/vantage-vmi/vantage/internal/term"
	"github.com/vantage-vmi/vantage/node"
)

// Exit statuses: a contract that every command's help states.
const (
	exitOK         = 0 // done, nothing found
	exitFound      = 1 // a scan or check found something
	exitFailed     = 2 // failed or misused
	exitIncomplete = 3 // done, but some of it could not be read
)

const exitHelp = `Exit status:
  0  done, nothing found
  1  something was found
  2  failed or misused
  3  done but incomplete: some of it could not be read`

// exitError ends the program with a status; err, when there is one, is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// app is one run of the program: its streams and the flags that all commands
// share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	version        string

	json     bool
	logLevel string
	cacheDir string
	quiet    bool
	pause    bool // of commands that look

	drivers []node.Driver // of tests; nil: those of this host
}

func (a *app) run(ctx context.Context, args []string) int {
	out := &checkedWriter{w: a.stdout}
	a.stdout = out
	code := a.execute(ctx, args)
	a.stdout = out.w
	if out.err != nil && code != exitFailed {
		// Half an answer must not look like a whole one.
		code = exitFailed
		a.printError(fmt.Errorf("write output: %w", out.err), code)
	}
	return code
}

func (a *app) execute(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitFailed
	var ee *exitError
	if errors.As(err, &ee) {
		code = ee.code
		if ee.err == nil {
			return code
		}
	}
	// A command line that is wrong may be so in front of the flag.
	a.json = a.json || asksForJSON(args)
	a.printError(err, code)
	return code
}

// asksForJSON reports whether --json is among args that were not all parsed.
func asksForJSON(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json") || slices.Contains(args, "--json=true")
}

func (a *app) printError(err error, code int) {
	if a.json {
		// Nothing is left to tell of an error of telling.
		_ = a.printJSONErr(struct {
			Error  string `json:"error"`
			Status int    `json:"status"`
		}{err.Error(), code})
		return
	}
	fmt.Fprintf(a.stderr, "vantage: %s\n", escapeLines(err.Error()))
}

// escapeLines escapes a message but keeps its line breaks: some errors (a rule
// set with several faults) are lists.
func escapeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = term.Escape(lines[i])
	}
	return strings.Join(lines, "\n")
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "vantage",
		Short: "Secure virtual machines from outside them",
		Long: `Vantage looks into running virtual machines and memory files from the host:
processes, modules and memory of Linux guests, with no agent in the guest, no
patch to the host and no symbol file per kernel. It scans them with YARA, lets
an OPA policy decide, and answers.

A VM is named by what 'vantage vms' prints, or by URI: qemu:PID,
qemu:/path/qmp.sock, qemu:NAME, kvm:NAME, image:/path/mem.lime. A bare path to
an existing file means image:.`,
		Example: `  vantage vms
  vantage ps web-1
  vantage scan web-1 db-1 --rules rules/ --respond
  vantage ps /evidence/web-1.lime --json | jq .comm`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       a.version,
	}
	root.SetVersionTemplate("vantage {{.Version}}\n")
	f := root.PersistentFlags()
	f.BoolVar(&a.json, "json", false, "print one JSON object a line, errors too")
	f.StringVar(&a.logLevel, "log-level", "warn", "what to log to stderr: debug, info, warn, error")
	f.StringVar(&a.cacheDir, "cache-dir", defaultCacheDir(), "where kernel profiles are kept; empty: nowhere")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress bar")
	completeFlag(root, "log-level", "debug", "info", "warn", "error")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w (see '%s --help')", err, c.CommandPath())
	})
	root.AddCommand(a.looking(
		a.infoCommand(),
		a.psCommand(),
		a.modulesCommand(),
		a.socketsCommand(),
		a.dmesgCommand(),
		a.filesCommand(),
		a.extractCommand(),
		a.mapsCommand(),
		a.bpfCommand(),
		a.hooksCommand(),
		a.timersCommand(),
		a.keysCommand(),
	)...)
	root.AddCommand(
		a.vmsCommand(), a.scanCommand(), a.policyCommand(), a.demoCommand(), a.versionCommand(), a.pauseGuardCommand(),
		a.runCommand(), a.machineProcessCommand(), a.stopCommand(), a.resetCommand(),
		a.pauseCommand(), a.resumeCommand(), a.saveCommand(), a.watchCommand(),
	)
	root.SetUsageTemplate(root.UsageTemplate() + "\n" + exitHelp + "\n")
	return root
}

// completeFlag offers a flag's values to the shell.
func completeFlag(cmd *cobra.Command, flag string, values ...string) {
	err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	if err != nil {
		panic("complete --" + flag + ": " + err.Error()) // the flag is not there, or was completed before
	}
}

// defaultCacheDir is root's system cache, or the user's own.
func defaultCacheDir() string {
	if os.Geteuid() == 0 && os.Getenv("XDG_CACHE_HOME") == "" {
		return "/var/cache/vantage"
	}
	d, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(d, "vantage")
}

// node opens this host's engine as the flags say.
func (a *app) node() (*node.Node, error) {
	log, err := a.logger()
	if err != nil {
		return nil, err
	}
	drivers := a.drivers
	if drivers == nil {
		drivers = []node.Driver{qemu.New(qemu.Options{Logger: log}), kvm.New(kvm.Options{Logger: log}), image.New(image.Options{})}
	}
	return node.New(node.Options{Drivers: drivers, CacheDir: a.cacheDir, Logger: log}), nil
}

func (a *app) logger() (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(a.logLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", a.logLevel)
	}
	opts := &slog.HandlerOptions{Level: level}
	if a.json {
		return slog.New(slog.NewJSONHandler(a.stderr, opts)), nil
	}
	return slog.New(slog.NewTextHandler(a.stderr, opts)), nil
}
