package node_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"

	"github.com/vantage-vmi/vantage/event"
	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/hypervisortest"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/linux"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
	"github.com/vantage-vmi/vantage/node"
	"github.com/vantage-vmi/vantage/scanner"
)

// fakeDriver has the VMs that a test gives it, by target.
type fakeDriver struct {
	name    string
	vms     map[string]*hypervisortest.Fake
	can     hypervisortest.Capability
	listErr error
	opened  []string
}

func (d *fakeDriver) Name() string { return d.name }

func (d *fakeDriver) List(context.Context) ([]hypervisor.Info, error) {
	var out []hypervisor.Info
	for _, f := range d.vms {
		out = append(out, f.Info())
	}
	return out, d.listErr
}

func (d *fakeDriver) Open(_ context.Context, target string) (hypervisor.VM, error) {
	d.opened = append(d.opened, target)
	f := d.vms[target]
	if f == nil {
		return nil, hypervisor.ErrNotFound
	}
	return f.VM(d.can), nil
}

// add gives the driver a VM.
func (d *fakeDriver) add(target, name string, pid int) *hypervisortest.Fake {
	f := hypervisortest.NewFake(hypervisor.Range{Start: 0, Size: 1 << 20})
	f.SetInfo(func(i *hypervisor.Info) {
		*i = hypervisor.Info{Name: name, URI: d.name + ":" + target, Driver: d.name, PID: pid, State: hypervisor.StateRunning}
	})
	if d.vms == nil {
		d.vms = map[string]*hypervisortest.Fake{}
	}
	d.vms[target] = f
	return f
}

func TestOpenFindsWhatANameMeans(t *testing.T) {
	dir := t.TempDir()
	file, sock := filepath.Join(dir, "mem:1.raw"), filepath.Join(dir, "qmp.sock")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	qemu, image := &fakeDriver{name: "qemu"}, &fakeDriver{name: "image"}
	qemu.add("1", "web", 1)
	qemu.add("2", "twice", 2)
	qemu.add("3", "twice", 3)
	qemu.add(sock, "by socket", 4)
	image.add(file, "mem:1.raw", 0)
	n := node.New(node.Options{Drivers: []node.Driver{qemu, image}})
	for name, want := range map[string]string{
		"web": "qemu:1", "qemu:1": "qemu:1", "qemu:2": "qemu:2",
		sock: "qemu:" + sock, "qemu:" + sock: "qemu:" + sock,
		file: "image:" + file, "image:" + file: "image:" + file,
	} {
		vm, err := n.Open(t.Context(), name)
		if err != nil {
			t.Errorf("Open(%q): %v", name, err)
			continue
		}
		if got := vm.Info().URI; got != want {
			t.Errorf("Open(%q) opens %s, want %s", name, got, want)
		}
	}
	t.Chdir(dir) // a bare name of a file means the file
	if vm, err := n.Open(t.Context(), "mem:1.raw"); err != nil || vm.Info().URI != "image:"+file {
		t.Errorf("a relative path: %v, %v", vm, err)
	}
	for name, want := range map[string]string{
		"": "no VM named", dir: "is a folder", "nobody": "no such VM", "qemu:9": "no such VM",
		filepath.Join(dir, "nowhere"): "file does not exist",
	} {
		if vm, err := n.Open(t.Context(), name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q) = %v, %v; want %q", name, vm, err, want)
		}
	}
	var several *node.AmbiguousError
	if _, err := n.Open(t.Context(), "twice"); !errors.As(err, &several) || len(several.URIs) != 2 {
		t.Errorf("a name that two VMs have: %v", err)
	}
}

// What cannot be listed is told, next to what can; and no name is said not to
// exist without saying that not all were looked at.
func TestListTellsWhatItCouldNot(t *testing.T) {
	qemu, xen := &fakeDriver{name: "qemu", listErr: os.ErrPermission}, &fakeDriver{name: "aaa"}
	qemu.add("2", "b", 2)
	qemu.add("7", "a", 7)
	qemu.add("3", "a", 3)
	xen.add("1", "z", 0)
	n := node.New(node.Options{Drivers: []node.Driver{qemu, xen}})
	vms, err := n.List(t.Context())
	var order []string
	for _, v := range vms {
		order = append(order, v.URI)
	}
	if want := []string{"aaa:1", "qemu:3", "qemu:7", "qemu:2"}; !slices.Equal(order, want) || !errors.Is(err, os.ErrPermission) {
		t.Errorf("List = %v, %v; want %v", order, err, want)
	}
	if _, err := n.Open(t.Context(), "nobody"); !errors.Is(err, os.ErrPermission) || !errors.Is(err, hypervisor.ErrNotFound) {
		t.Errorf("Open = %v", err)
	}
}

func TestResponsesReachVMs(t *testing.T) {
	d := &fakeDriver{name: "qemu", can: hypervisortest.CanPause}
	f := d.add("1", "web", 1)
	n := node.New(node.Options{Drivers: []node.Driver{d}})
	vms := n.NewOpenVMs()
	remove := vms.Add(f.VM(hypervisortest.CanPause))
	if err := vms.Pause(t.Context(), "qemu:1"); err != nil {
		t.Fatal(err)
	}
	if paused, err := vms.Paused(t.Context(), "qemu:1"); !paused || err != nil {
		t.Errorf("Paused = %v, %v", paused, err)
	}
	if len(d.opened) != 0 || f.Count(hypervisortest.MethodClose) != 0 {
		t.Errorf("a VM that is open was opened (%v) or closed", d.opened)
	}
	remove()
	f.Fail(hypervisortest.Failure{Method: hypervisortest.MethodResume, Err: hypervisor.ErrBusy})
	if err := vms.Resume(t.Context(), "qemu:1"); !errors.Is(err, hypervisor.ErrBusy) {
		t.Errorf("Resume = %v", err)
	}
	if len(d.opened) != 1 || f.Count(hypervisortest.MethodClose) != 1 {
		t.Errorf("opened %v, closed %d times", d.opened, f.Count(hypervisortest.MethodClose))
	}
	if err := vms.Pause(t.Context(), "qemu:9"); !errors.Is(err, hypervisor.ErrNotFound) {
		t.Errorf("Pause of a VM that is not there: %v", err)
	}
	d.can = hypervisortest.CanNothing
	d.add("2", "file", 0)
	if err := vms.Pause(t.Context(), "qemu:2"); !errors.Is(err, hypervisor.ErrNotSupported) {
		t.Errorf("Pause of a VM that cannot: %v", err)
	}
}

// Registers that cannot be read are no reason to give up; a VM that is gone is.
func TestLinuxWithoutRegisters(t *testing.T) {
	n := node.New(node.Options{})
	for err, want := range map[error]error{
		hypervisor.ErrBusy: profile.ErrNoKernel, hypervisor.ErrGone: hypervisor.ErrGone, context.Canceled: context.Canceled,
	} {
		f := hypervisortest.NewFake(hypervisor.Range{Start: 0, Size: 1 << 20})
		f.Fail(hypervisortest.Failure{Method: hypervisortest.MethodRegisters, Err: err})
		if _, got := n.Linux(t.Context(), f.VM(hypervisortest.CanRegisters)); !errors.Is(got, want) {
			t.Errorf("registers: %v; Linux = %v, want %v", err, got, want)
		}
	}
}

func TestScanOfWhatIsNotUnderstood(t *testing.T) {
	n := node.New(node.Options{})
	f := hypervisortest.NewFake(hypervisor.Range{Start: 0, Size: 1 << 20})
	f.Store(0x5000, []byte("NEEDLE"))
	rules, err := scanner.LoadRules(scanner.RuleOptions{}, scanner.FromFS(fstest.MapFS{"r.yar": {Data: []byte(`rule r { strings: $a = "NEEDLE" condition: $a }`)}}, "t"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rules.Close() }()
	vm := f.VM(hypervisortest.CanNothing)
	if _, err := n.Scan(t.Context(), vm, node.ScanRequest{Rules: rules, Processes: true}); !errors.Is(err, profile.ErrNoKernel) || !strings.Contains(err.Error(), "--physical") {
		t.Errorf("scan of processes: %v", err)
	}
	found := 0
	sum, err := n.Scan(t.Context(), vm, node.ScanRequest{Rules: rules, Physical: true, OnFinding: func(f node.Finding) error {
		found++
		if f.PhysAddr != 0x5000 || f.Process != nil {
			t.Errorf("%+v", f)
		}
		return nil
	}})
	if err != nil || found != 1 || !sum.Complete {
		t.Errorf("%d found, %+v, %v", found, sum, err)
	}
}

// Whatever a guest calls its things, events of them are valid.
func TestEventsOfAHostileGuest(t *testing.T) {
	const bad = "\x1b[2J\xff\u202e"
	src, vm := event.NewSource(nil), hypervisor.Info{Name: bad, URI: "qemu:1", Driver: "qemu"}
	va := hypervisor.VirtAddr(0xffff888000000000)
	p := &linux.Process{PID: 7, UID: linux.NoID, GID: linux.NoID, Comm: bad, Exe: bad, Args: []string{bad}, Cgroup: bad, Container: bad, Hidden: true}
	finding := node.Finding{
		Finding: scanner.Finding{VM: bad, Rule: "r", PID: 7, Comm: bad, Where: bad, VirtAddr: &va, Strings: []scanner.String{{Name: "$a", Data: "x", VirtAddr: &va}}},
		Process: p,
		Subject: &node.Subject{Parents: []node.Ancestor{{PID: 1, Comm: bad, Exe: bad}, {}}, ExeSHA256: strings.Repeat("0f", 32), ExeProblem: bad},
	}
	sum := scanner.Summary{PagesTotal: 3, ProblemsTotal: 9, Problems: []introspect.Problem{{What: bad, Addr: va, Err: bad}}}
	for _, e := range []event.Event{
		node.FindingEvent(src, vm, finding),
		node.FindingEvent(src, vm, node.Finding{Finding: finding.Finding}),
		node.HiddenEvent(src, vm, *p),
		node.SummaryEvent(src, vm, sum),
	} {
		b, err := event.Marshal(&e)
		if err != nil {
			t.Errorf("%s: %v", e.Kind, err)
			continue
		}
		if s := string(b); strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%s: %q", e.Kind, s)
		}
		if _, err := event.Unmarshal(b); err != nil {
			t.Errorf("%s: %v", e.Kind, err)
		}
	}
	for meta, want := range map[any]event.Severity{"critical": event.Critical, "low": event.Low, "dreadful": event.Medium, nil: event.Medium, 3: event.Medium} {
		finding.Meta = map[string]any{"severity": meta}
		if e := node.FindingEvent(src, vm, finding); e.Severity != want {
			t.Errorf("severity %v becomes %s, want %s", meta, e.Severity, want)
		}
	}
}
