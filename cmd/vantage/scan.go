package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/node"
	rulesyara "github.com/vantage-vmi/vantage/rules/yara"
	"github.com/vantage-vmi/vantage/scanner"
)

// scanFlags are the flags of `vantage scan`.
type scanFlags struct {
	rules    []string
	pids     []int
	kernel   bool
	physical bool
	respond  respondFlags
}

func (a *app) scanCommand() *cobra.Command {
	var f scanFlags
	cmd := &cobra.Command{
		Use:   "scan VM…",
		Short: "Scan the memory of VMs with YARA",
		Long: `Scan the memory of VMs with YARA rules: by default what each process has in
RAM, as the process sees it, and the kernel's memory.

  --pid N      only this process (can be given several times)
  --kernel     only the kernel's memory; with --pid: it too
  --physical   every page of RAM; needs no understanding of the guest
The three can be combined.

--rules takes a file, a folder of *.yar and *.yara files, or a file made by
yarac; without it the rules that ship with Vantage are used. A rule that does
not compile is named with file and line, and nothing is scanned.

--respond lets policy answer each finding: it raises alerts and pauses VMs as
the policy says (the one that ships, or --policy). --dry-run only says what
would be done.

What could not be read is counted; a scan that missed something ends with
status 3 when it found nothing. Ctrl-C ends a scan with what it has (status 3).

JSON fields of a finding: vm rule tags meta pid comm where offset virt_addr
phys_addr strings, and of its process ppid uid exe exe_sha256 container parents
(exe_sha256 is empty, and exe_problem says why, when not all of the program's
file is in the guest's page cache); of the last line, "summary":true with pages_total pages_read
pages_skipped bytes_scanned bytes_from_cache findings duration_seconds (for
several VMs the totals, and each VM's own in "vms").`,
		Example: `  vantage scan web-1
  vantage scan web-1 db-1 --rules /etc/vantage/rules --respond
  vantage scan web-1 --pid 812 --pid 813 --json
  vantage scan /evidence/web-1.lime --physical --rules case-17.yar
  vantage scan web-1 --respond --policy my-policy/ --dry-run`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("no VM named: 'vantage vms' lists them")
			}
			return nil
		},
		ValidArgsFunction: a.completeVMs,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.scan(cmd.Context(), args, &f)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVarP(&f.rules, "rules", "r", nil, "YARA rules: a file, a folder or a compiled file")
	fl.IntSliceVarP(&f.pids, "pid", "p", nil, "scan only this process")
	fl.BoolVar(&f.kernel, "kernel", false, "scan kernel memory")
	fl.BoolVar(&f.physical, "physical", false, "scan all physical pages")
	f.respond.register(cmd)
	return cmd
}

// scan scans VMs one after the other (each on all cores) and prints.
func (a *app) scan(ctx context.Context, names []string, f *scanFlags) (err error) {
	rules, err := loadRules(f.rules)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := rules.Close(); cerr != nil && err == nil {
			err = cerr
		}
	}()
	n, err := a.node()
	if err != nil {
		return err
	}
	resp, err := a.newResponder(ctx, n, &f.respond)
	if err != nil {
		return err
	}
	defer func() {
		var status *exitError
		if cerr := resp.close(ctx); cerr != nil && (err == nil || errors.As(err, &status) && status.err == nil) {
			err = cerr // more than a status that says what was found
		}
	}()
	out := newScanOutput(a)
	var failed []error
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		if err := a.scanOne(ctx, n, name, f, rules, resp, out); err != nil {
			if len(names) == 1 {
				return err
			}
			a.printError(fmt.Errorf("scan %s: %w", name, err), exitFailed)
			failed = append(failed, err)
		}
	}
	return out.finish(ctx, len(names), failed)
}

func (a *app) scanOne(ctx context.Context, n *node.Node, name string, f *scanFlags, rules *scanner.Rules, resp *responder, out *scanOutput) (err error) {
	vm, err := n.Open(ctx, name)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := vm.Close(); cerr != nil && err == nil {
			err = cerr
		}
	}()
	defer resp.reach(vm)()
	info := vm.Info()
	out.begin(info)
	req := node.ScanRequest{
		Rules:     rules,
		Processes: len(f.pids) > 0 || !f.kernel && !f.physical,
		PIDs:      f.pids,
		Kernel:    f.kernel || len(f.pids) == 0 && !f.physical,
		Physical:  f.physical,
		OnFinding: func(fi node.Finding) error {
			err := out.finding(&fi)
			return resp.later(cmp.Or(err, resp.finding(ctx, out, info, fi)))
		},
		OnHidden:   resp.hidden(ctx, out, info),
		OnProgress: out.progress(),
	}
	sum, err := n.Scan(ctx, vm, req)
	if err != nil && !errors.Is(err, hypervisor.ErrGone) {
		out.abandon()
		return err
	}
	if err != nil {
		sum.VM, sum.Complete, sum.IncompleteReason = info.Name, false, err.Error()
	}
	if err := out.summary(sum); err != nil {
		return err
	}
	return resp.summary(ctx, out, info, sum)
}

// loadRules loads the rules that are named, or those that ship.
func loadRules(paths []string) (*scanner.Rules, error) {
	sources := make([]scanner.RuleSource, 0, len(paths))
	for _, p := range paths {
		sources = append(sources, scanner.FromPath(p))
	}
	if len(sources) == 0 {
		sources = append(sources, scanner.FromFS(rulesyara.Files(), rulesyara.Name))
	}
	rules, err := scanner.LoadRules(scanner.RuleOptions{}, sources...)
	if err != nil {
		return nil, fmt.Errorf("load rules: %w", err)
	}
	return rules, nil
}
