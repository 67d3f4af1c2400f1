package node

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/scanner"
)

// ScanRequest says what of a VM is scanned, and with what.
type ScanRequest struct {
	Rules *scanner.Rules
	// Processes and Kernel scan what the guest's kernel says is there; PIDs, when
	// not empty, limits Processes to these.
	Processes bool
	PIDs      []int
	Kernel    bool
	// Physical scans every page of RAM. It needs no understanding of the guest.
	Physical bool

	OnFinding  func(Finding) error
	OnProgress func(scanner.Progress)
	// OnHidden is told of each process that hides from one of the guest's own
	// lists; the scan meets them on its way.
	OnHidden func(linux.Process) error
}

// Finding is what the scanner found, and the process that it was found in.
type Finding struct {
	scanner.Finding
	Process *linux.Process // nil: not in a process
	Subject *Subject       // what else is told of Process; nil without one
}

// NoProcessError is returned when a process that was asked for does not exist.
type NoProcessError struct{ PID int }

func (e *NoProcessError) Error() string {
	return fmt.Sprintf("no process %d in the guest: 'vantage ps' lists them", e.PID)
}

// Scan scans vm. What the guest's kernel could not tell is in the summary's
// coverage, as what could not be read is.
func (n *Node) Scan(ctx context.Context, vm hypervisor.VM, req ScanRequest) (scanner.Summary, error) {
	info := vm.Info()
	cov := &introspect.Coverage{}
	var targets []scanner.Target
	subs := newSubjects()
	if req.Processes || req.Kernel {
		g, err := n.Linux(ctx, vm)
		if err != nil {
			if errors.Is(err, hypervisor.ErrGone) || ctx.Err() != nil {
				return scanner.Summary{}, err
			}
			return scanner.Summary{}, fmt.Errorf("%w (--physical scans memory without understanding the guest)", err)
		}
		if req.Processes {
			subs.g = g
			ts, err := n.processTargets(ctx, g, req, cov, subs.procs)
			if err != nil {
				return scanner.Summary{}, err
			}
			targets = append(targets, ts...)
		}
		if req.Kernel {
			targets = append(targets, kernelTarget(ctx, vm, g))
		}
	}
	if req.Physical {
		targets = append(targets, scanner.PhysicalTarget{})
	}
	opts := scanner.Options{VM: info.Name, OnProgress: req.OnProgress, Logger: n.log}
	if req.OnFinding != nil {
		opts.OnFinding = func(f scanner.Finding) error {
			p, sub := subs.of(ctx, f.PID)
			return req.OnFinding(Finding{Finding: f, Process: p, Subject: sub})
		}
	}
	sum, err := scanner.Scan(ctx, vm, req.Rules, targets, opts)
	addCoverage(&sum, cov)
	return sum, err
}

// processTargets returns the processes to scan with their mappings, and sets
// procs to all that there are.
func (n *Node) processTargets(ctx context.Context, g *linux.Guest, req ScanRequest, cov *introspect.Coverage, procs map[int]*linux.Process) ([]scanner.Target, error) {
	list, err := g.Processes(ctx, linux.ProcessOptions{})
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, pid := range req.PIDs {
		if !slices.ContainsFunc(list.Processes, func(p linux.Process) bool { return p.PID == pid }) {
			return nil, &NoProcessError{PID: pid}
		}
	}
	cov.Merge(list.Coverage)
	var targets []scanner.Target
	var gone []*linux.Process
	keeper := newAreaKeeper()
	// As many as the scanner believes of one target.
	maxPages := 4*hypervisor.TotalSize(g.KernelSpace().Memory().Ranges())/hypervisor.PageSize + 1<<16
	for i := range list.Processes {
		procs[list.Processes[i].PID] = &list.Processes[i]
	}
	for i := range list.Processes {
		p := &list.Processes[i]
		if p.Hidden && req.OnHidden != nil {
			if err := req.OnHidden(*p); err != nil {
				return nil, err
			}
		}
		if !p.HasMemory() || len(req.PIDs) > 0 && !slices.Contains(req.PIDs, p.PID) {
			continue
		}
		space, err := g.ProcessSpace(*p)
		if errors.Is(err, linux.ErrGone) {
			gone = append(gone, p)
			continue
		}
		if err != nil {
			cov.Add(fmt.Sprintf("page tables of pid %d", p.PID), p.KernelAddress, err)
			continue
		}
		vmas, vcov, err := g.VMAs(ctx, *p)
		if errors.Is(err, linux.ErrGone) {
			gone = append(gone, p)
			continue
		}
		if err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			cov.Add(fmt.Sprintf("mappings of pid %d", p.PID), p.KernelAddress, err)
		}
		cov.Merge(vcov)
		as, err := keeper.areas(vmas)
		if err != nil {
			cov.Add(fmt.Sprintf("mappings of pid %d", p.PID), p.KernelAddress, err)
		}
		if as, err = withUnmapped(ctx, space, userEnd(space.Root().Mode), as, maxPages); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			cov.Add(fmt.Sprintf("page tables of pid %d", p.PID), p.KernelAddress, err)
		}
		procs[p.PID] = p
		targets = append(targets, scanner.ProcessTarget{PID: p.PID, Comm: p.Comm, Space: space, Areas: as})
	}
	return targets, stillThere(ctx, g, gone, cov)
}

// stillThere adds to cov those of gone that a second look finds again. Processes
// end while a guest runs, and then nothing of them was missed; but one that only
// was not what it was when it was looked at must not slip through.
func stillThere(ctx context.Context, g *linux.Guest, gone []*linux.Process, cov *introspect.Coverage) error {
	if len(gone) == 0 {
		return nil
	}
	again, err := g.Processes(ctx, linux.ProcessOptions{})
	if err != nil {
		return fmt.Errorf("list processes again: %w", err)
	}
	for _, p := range gone {
		if slices.ContainsFunc(again.Processes, func(q linux.Process) bool {
			return q.PID == p.PID || q.KernelAddress == p.KernelAddress && q.StartTime.Equal(p.StartTime)
		}) {
			cov.Add(fmt.Sprintf("memory of pid %d", p.PID), p.KernelAddress, linux.ErrGone)
		}
	}
	return nil
}

func kernelTarget(ctx context.Context, vm hypervisor.VM, g *linux.Guest) scanner.Target {
	k := g.Kernel()
	var end hypervisor.PhysAddr
	if rs := vm.Ranges(); len(rs) > 0 {
		end = rs[len(rs)-1].End()
	}
	return scanner.KernelTarget{
		Space: g.KernelSpace(),
		Areas: withoutFreed(ctx, k, scanner.KernelAreas(k.PageOffset, end)),
		Symbol: func(va hypervisor.VirtAddr) string {
			name, off, ok := k.SymbolAt(va)
			if !ok {
				return ""
			}
			return fmt.Sprintf("%s+%#x", name, off)
		},
	}
}

// addCoverage puts what was missed before the scan proper into its summary.
func addCoverage(sum *scanner.Summary, cov *introspect.Coverage) {
	if cov.Complete() {
		return
	}
	room := max(0, introspect.MaxProblems-len(sum.Problems))
	problems := cov.Problems()
	sum.Problems = append(sum.Problems, problems[:min(room, len(problems))]...)
	sum.ProblemsTotal += cov.Total()
	sum.Complete = false
	if sum.IncompleteReason == "" {
		sum.IncompleteReason = "the guest's processes could not all be read"
	}
}
