package node

import (
	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/scanner"
)

// vmEvent returns info as events name a VM.
func vmEvent(i hypervisor.Info) *event.VM {
	return &event.VM{
		Name: i.Name, URI: i.URI, Driver: i.Driver, State: string(i.State),
		MemoryBytes: i.MemoryBytes, VCPUs: i.VCPUs, PID: i.PID,
	}
}

func processEvent(p *linux.Process) *event.Process {
	e := &event.Process{
		PID: p.PID, PPID: p.PPID, Comm: p.Comm, Exe: p.Exe, Args: p.Args,
		Cgroup: p.Cgroup, Container: p.Container,
		KernelAddress: event.VirtAddr(p.KernelAddress), Hidden: p.Hidden,
	}
	if p.UID >= 0 {
		uid := uint32(p.UID)
		e.UID = &uid
	}
	if p.GID >= 0 {
		gid := uint32(p.GID)
		e.GID = &gid
	}
	if !p.StartTime.IsZero() {
		t := event.At(p.StartTime)
		e.StartTime = &t
	}
	return e
}

// FindingEvent returns the event that a scan of vm found f.
func FindingEvent(src *event.Source, vm hypervisor.Info, f Finding) event.Event {
	e := src.New(event.FindingScan, ruleSeverity(f.Meta))
	e.VM = vmEvent(vm)
	if f.Process != nil {
		e.Process = processEvent(f.Process)
		if f.Subject != nil {
			e.Process.ExeSHA256 = f.Subject.ExeSHA256
			for _, a := range f.Subject.Parents {
				e.Process.Parents = append(e.Process.Parents, event.Ancestor{PID: a.PID, Comm: a.Comm, Exe: a.Exe})
			}
		}
	} else if f.PID != 0 {
		e.Process = &event.Process{PID: f.PID, Comm: f.Comm}
	}
	ef := &event.Finding{
		Rule: f.Rule, Namespace: f.Namespace, Tags: f.Tags, Meta: f.Meta,
		Where: f.Where, Offset: f.Offset, VirtAddr: virtEvent(f.VirtAddr), PhysAddr: physEvent(f.PhysAddr),
	}
	for _, s := range f.Strings {
		ef.Strings = append(ef.Strings, event.Match{
			Name: s.Name, Offset: s.Offset, Length: uint64(s.Length), Data: s.Data,
			VirtAddr: virtEvent(s.VirtAddr), PhysAddr: physEvent(s.PhysAddr),
		})
	}
	e.Finding = ef
	return e
}

// HiddenEvent returns the event that p of vm hides.
func HiddenEvent(src *event.Source, vm hypervisor.Info, p linux.Process) event.Event {
	e := src.New(event.ProcessHidden, event.High)
	e.VM = vmEvent(vm)
	e.Process = processEvent(&p)
	return e
}

// SummaryEvent returns the event that a scan of vm is over.
func SummaryEvent(src *event.Source, vm hypervisor.Info, s scanner.Summary) event.Event {
	e := src.New(event.ScanSummary, event.Info)
	e.VM = vmEvent(vm)
	e.Summary = &event.Summary{
		PagesTotal: s.PagesTotal, PagesRead: s.PagesRead, PagesSkipped: s.PagesSkipped,
		BytesScanned: s.BytesScanned, BytesFromCache: s.BytesFromCache,
		Findings: s.Findings, DurationSeconds: s.DurationSeconds,
	}
	e.Coverage = &event.Coverage{Complete: s.Complete, TotalProblems: s.ProblemsTotal}
	for _, p := range s.Problems {
		e.Coverage.Problems = append(e.Coverage.Problems, event.Problem{What: p.What, Addr: event.VirtAddr(p.Addr), Error: p.Err})
	}
	return e
}

// ruleSeverity is what a rule's author says of it in its meta; medium when the
// author says nothing that we know.
func ruleSeverity(meta map[string]any) event.Severity {
	if s, ok := meta["severity"].(string); ok && event.Severity(s).Rank() >= 0 {
		return event.Severity(s)
	}
	return event.Medium
}

func virtEvent(a *hypervisor.VirtAddr) *event.VirtAddr {
	if a == nil {
		return nil
	}
	v := event.VirtAddr(*a)
	return &v
}

func physEvent(a hypervisor.PhysAddr) *event.PhysAddr {
	p := event.PhysAddr(a)
	return &p
}
