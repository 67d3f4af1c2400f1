package event

import (
	"strings"
	"testing"
	"time"
)

func ptr[T any](v T) *T { return &v }

var testTime = time.Date(2026, 2, 3, 4, 5, 6, 7008009, time.UTC)

func testSource() *Source { return NewSource(func() time.Time { return testTime }) }

// samples returns an event of every kind, all their fields set.
func samples(t testing.TB) []Event {
	t.Helper()
	src := testSource()
	vm := &VM{Name: "web-1", URI: "qemu:4242", Driver: "qemu", State: "running", MemoryBytes: 1 << 30, VCPUs: 2, PID: 4242}
	proc := &Process{
		PID: 321, PPID: 1, UID: ptr(uint32(0)), GID: ptr(uint32(1000)), Comm: "sleep", Exe: "/bin/sleep", Args: []string{"sleep", "60"},
		StartTime: ptr(At(testTime.Add(-time.Hour))), Cgroup: "/system.slice", Container: "0123abcd", KernelAddress: 0xffff888012345678, Hidden: true,
		ExeSHA256: strings.Repeat("0a", 32), Parents: []Ancestor{{PID: 1, Comm: "init", Exe: "/sbin/init"}, {PID: 0, Comm: "?"}},
	}
	cov := &Coverage{TotalProblems: 1, Problems: []Problem{{What: "mm of pid 12", Addr: 0xffff888000001000, Error: "cycle"}}}
	fill := map[Kind]func(*Event){
		FindingScan: func(e *Event) {
			e.VM, e.Process = vm, proc
			e.Finding = &Finding{
				Rule: "Test_Payload", Namespace: "default", Tags: []string{"test"}, Meta: map[string]any{"severity": "high", "score": 80, "live": true, "description": "harmless"},
				Where: "[heap]", Offset: 4000, VirtAddr: ptr(VirtAddr(0x7f0000000fa0)), PhysAddr: ptr(PhysAddr(0x12345fa0)),
				Strings: []Match{{Name: "$a", Offset: 4000, Length: 4, VirtAddr: ptr(VirtAddr(0x7f0000000fa0)), PhysAddr: ptr(PhysAddr(0x12345fa0)), Data: Escape([]byte("a\\b\x00"))}},
			}
		},
		ProcessHidden: func(e *Event) { e.VM, e.Process = vm, proc },
		ModuleHidden: func(e *Event) {
			e.VM, e.Module = vm, &Module{Name: "rk", Base: 0xffffffffc0000000, Size: 16384, KernelAddress: 0xffffffffc0002000, Hidden: true}
		},
		VMSeen: func(e *Event) { e.VM = vm },
		VMGone: func(e *Event) { e.VM = vm },
		ScanSummary: func(e *Event) {
			e.VM, e.Coverage = vm, cov
			e.Summary = &Summary{PagesTotal: 10, PagesRead: 8, PagesSkipped: 2, BytesScanned: 32768, BytesFromCache: 4096, Findings: 1, DurationSeconds: 1.25, Interrupted: true}
		},
		ResponseDone: func(e *Event) {
			e.VM, e.Cause, e.CauseKind = vm, "01890000-0000-7000-8000-000000000000", FindingScan
			e.Response = &Response{Name: "pause", Reason: "rule Test_Payload", Params: map[string]any{"a": "b"}, Outcome: Done, DecisionID: "d-1", DurationSeconds: 0.01}
		},
		ResponseFailed: func(e *Event) {
			e.VM, e.Cause, e.CauseKind = vm, "c-1", FindingScan
			e.Response = &Response{Name: "pause", Outcome: Failed, Error: "held by another client"}
		},
		ResponseSkipped: func(e *Event) {
			e.VM, e.Cause, e.CauseKind = vm, "c-1", FindingScan
			e.Response = &Response{Name: "resume", Outcome: DryRun}
		},
		PolicyError: func(e *Event) {
			e.Policy = &Policy{Stage: StageLoad, Path: "policies", Revision: "r1", Digest: "d", FailMode: "alert", Error: "rego_parse_error", Repeats: 3}
		},
	}
	var out []Event
	for i, k := range Kinds() {
		e := src.New(k, Severities()[i%len(Severities())])
		f, ok := fill[k]
		if !ok {
			t.Fatalf("no sample of kind %s", k)
		}
		f(&e)
		out = append(out, e)
	}
	// A finding without what is optional, and an alert.
	bare := src.New(FindingScan, High)
	bare.VM, bare.Finding = vm, &Finding{Rule: "r", Where: "physical"}
	alert := src.New(ResponseDone, High)
	alert.VM, alert.Cause, alert.CauseKind = vm, bare.ID, FindingScan
	alert.Response = &Response{Name: "alert", Outcome: Done, Reason: "found"}
	lone := src.New(ResponseDone, Low)
	lone.VM, lone.Cause, lone.CauseKind = vm, "x", ScanSummary
	lone.Response = &Response{Name: "alert", Outcome: Done}
	return append(out, bare, alert, lone)
}

// withHostile returns a copy of e in which the guest's strings are hostile.
func withHostile(e Event, s string) Event {
	if e.Process != nil {
		p := *e.Process
		p.Comm, p.Exe, p.Args, p.Cgroup, p.Container = s, s, []string{s, ""}, s, s
		e.Process = &p
	}
	if e.Module != nil {
		m := *e.Module
		m.Name = s
		e.Module = &m
	}
	if e.Finding != nil {
		f := *e.Finding
		f.Where, f.Tags, f.Meta = s, []string{s}, map[string]any{"m": s, "l": []any{s}, s: "k"}
		e.Finding = &f
	}
	if e.VM != nil {
		v := *e.VM
		v.Name = s
		e.VM = &v
	}
	return e
}
