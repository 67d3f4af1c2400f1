package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// infected is a guest as the demo's infected one, shared by tests that leave it
// as it was.
func infected(t *testing.T, machine lab.Machine, shared, qmp bool) *lab.Guest {
	t.Helper()
	return labtest.Shared(t, lab.Config{
		// The tests name the guest, so another run of them on this host must not
		// have one of the same name.
		Name: fmt.Sprintf("cmdtest-%d-%s-%t-%t", os.Getpid(), machine, shared, qmp), Kernel: labtest.Kernel(t, lab.Bookworm),
		Memory: 256 * lab.MiB, Machine: machine, Shared: shared, QMP: qmp, KASLR: true,
		Init: lab.DemoInit(true, "cmdtest"),
	})
}

// result is what a run of the command printed, and its exit status.
type result struct {
	stdout, stderr string
	status         int
}

// vantage runs the command in this process, as main does.
func vantage(t *testing.T, args ...string) result {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, version: "test"}
	status := a.run(t.Context(), append(args, "--cache-dir", filepath.Join(t.TempDir(), "cache")))
	return result{out.String(), errs.String(), status}
}

// objects decodes JSON lines.
func objects(t *testing.T, text string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range strings.Lines(text) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("output line is no JSON object: %v: %s", err, line)
		}
		out = append(out, o)
	}
	return out
}

func TestGuestIsUnderstoodFromOutside(t *testing.T) {
	for _, c := range []struct {
		machine     lab.Machine
		shared, qmp bool
	}{{lab.PC, true, true}, {lab.Q35, false, false}} {
		t.Run(fmt.Sprintf("%s shared=%t qmp=%t", c.machine, c.shared, c.qmp), func(t *testing.T) {
			g := infected(t, c.machine, c.shared, c.qmp)
			names := []string{g.Name(), "qemu:" + strconv.Itoa(g.PID())}
			if c.qmp {
				names = append(names, "qemu:"+g.QMPSocket(), g.QMPSocket())
			}
			want := guestPS(t, g)
			for _, name := range names {
				r := vantage(t, "ps", name, "--json")
				if r.status != exitOK {
					t.Fatalf("ps %s: status %d: %s", name, r.status, r.stderr)
				}
				comparePS(t, want, objects(t, r.stdout))
			}
			checkVMs(t, g, c.qmp)
			checkInfo(t, g)
			checkFacts(t, g)
			if r := vantage(t, "modules", g.Name(), "--json"); r.status != exitOK {
				t.Errorf("modules: status %d: %s", r.status, r.stderr)
			}
			checkSockets(t, g)
			checkScan(t, g)
		})
	}
}

// psLine is what the guest's own ps says of a process.
type psLine struct {
	pid, ppid int
	comm      string
}

func guestPS(t *testing.T, g *lab.Guest) []psLine {
	t.Helper()
	out, err := g.Run(t.Context(), "ps -o pid,ppid,comm")
	if err != nil {
		t.Fatal(err)
	}
	var ls []psLine
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] == "PID" || f[2] == "ps" {
			continue
		}
		var l psLine
		l.pid, _ = strconv.Atoi(f[0])
		l.ppid, _ = strconv.Atoi(f[1])
		l.comm = f[2]
		ls = append(ls, l)
	}
	if len(ls) < 20 {
		t.Fatalf("the guest's ps lists %d processes only:\n%s", len(ls), out)
	}
	return ls
}

func comparePS(t *testing.T, want []psLine, got []map[string]any) {
	t.Helper()
	for _, w := range want {
		i := slices.IndexFunc(got, func(o map[string]any) bool { return o["pid"] == float64(w.pid) })
		if i < 0 {
			if strings.HasPrefix(w.comm, "kworker") {
				continue // these come and go
			}
			t.Errorf("process %d (%s) of the guest is missing", w.pid, w.comm)
			continue
		}
		o := got[i]
		if o["ppid"] != float64(w.ppid) {
			t.Errorf("pid %d: ppid %v, want %d", w.pid, o["ppid"], w.ppid)
		}
		// Workers' names change with what they do, and the guest's ps cuts at 15.
		if comm := o["comm"].(string); comm != w.comm && !strings.HasPrefix(w.comm, "kworker") {
			t.Errorf("pid %d: comm %q, want %q", w.pid, comm, w.comm)
		}
		if o["hidden"] != false {
			t.Errorf("pid %d is said to hide: %v", w.pid, o)
		}
		for _, f := range []string{"tgid", "uid", "gid", "exe", "args", "start_time", "cgroup", "container", "namespaces", "kernel_address"} {
			if _, ok := o[f]; !ok {
				t.Errorf("pid %d: field %s is missing", w.pid, f)
			}
		}
	}
}

func checkVMs(t *testing.T, g *lab.Guest, qmp bool) {
	t.Helper()
	r := vantage(t, "vms", "--json")
	for _, o := range objects(t, r.stdout) {
		if o["name"] != g.Name() {
			continue
		}
		state := "unknown"
		if qmp {
			state = "running"
		}
		if o["pid"] != float64(g.PID()) || o["driver"] != "qemu" || o["memory_bytes"] != float64(256<<20) ||
			o["vcpus"] != float64(1) || o["state"] != state || o["uri"] != "qemu:"+strconv.Itoa(g.PID()) {
			t.Errorf("vms says of the guest: %v", o)
		}
		return
	}
	t.Errorf("vms does not list %s: %s%s", g.Name(), r.stdout, r.stderr)
}

func checkInfo(t *testing.T, g *lab.Guest) {
	t.Helper()
	want, err := g.Run(t.Context(), "uname -r; hostname; cat /proc/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(want), "\n")
	r := vantage(t, "info", g.Name(), "--json")
	if r.status != exitOK {
		t.Fatalf("info: status %d: %s", r.status, r.stderr)
	}
	got := objects(t, r.stdout)[0]["guest"].(map[string]any)
	for i, f := range []string{"release", "hostname", "command_line"} {
		if s, _ := got[f].(string); strings.TrimSpace(s) != strings.TrimSpace(lines[i]) {
			t.Errorf("info: %s %q, the guest says %q", f, s, lines[i])
		}
	}
}

// checkFacts looks at what of a guest is told as tables: interfaces, mounts and
// the kernel's log. That it is right is tested in package linux.
func checkFacts(t *testing.T, g *lab.Guest) {
	t.Helper()
	r := vantage(t, "info", g.Name(), "--all")
	for _, want := range []string{"127.0.0.1/8", "MOUNTED ON", "cgroup2", "Load:", "Taint:"} {
		if r.status != exitOK || !strings.Contains(r.stdout, want) {
			t.Errorf("info --all: status %d: no %q in %s%s", r.status, want, r.stdout, r.stderr)
		}
	}
	if r := vantage(t, "info", g.Name()); strings.Contains(r.stdout, "MOUNTED ON") {
		t.Errorf("info: %s", r.stdout)
	}
	info := objects(t, vantage(t, "info", g.Name(), "--json").stdout)[0]
	if interfaces, _ := info["interfaces"].([]any); len(interfaces) == 0 {
		t.Errorf("info --json: interfaces %v", info["interfaces"])
	}
	if r := vantage(t, "dmesg", g.Name(), "-T"); r.status != exitOK || !strings.Contains(r.stdout, "] Linux version ") {
		t.Errorf("dmesg: status %d: %.300s%s", r.status, r.stdout, r.stderr)
	}
	for _, o := range objects(t, vantage(t, "dmesg", g.Name(), "--json", "--level", "warn+").stdout) {
		if l, _ := o["level"].(string); l == "info" || l == "debug" || l == "notice" {
			t.Errorf("dmesg --level warn+: %v", o)
		}
	}
}

func checkScan(t *testing.T, g *lab.Guest) {
	t.Helper()
	r := vantage(t, "scan", g.Name(), "--json")
	if r.status != exitFound {
		t.Fatalf("scan: status %d, want %d: %s%s", r.status, exitFound, r.stdout, r.stderr)
	}
	os := objects(t, r.stdout)
	sum := os[len(os)-1]
	if sum["summary"] != true || sum["findings"] != float64(len(os)-1) {
		t.Errorf("the last line is no summary of the others: %v", sum)
	}
	for _, f := range []string{"pages_total", "pages_read", "pages_skipped", "bytes_scanned", "bytes_from_cache", "findings", "duration_seconds"} {
		if _, ok := sum[f]; !ok {
			t.Errorf("summary: field %s is missing", f)
		}
	}
	for _, o := range os[:len(os)-1] {
		if o["comm"] != lab.DemoInfectedComm {
			t.Errorf("found in %v, want only in %s: %v", o["comm"], lab.DemoInfectedComm, o)
		}
		checkSubject(t, g, o)
		for _, f := range []string{"vm", "rule", "tags", "meta", "pid", "comm", "where", "offset", "virt_addr", "phys_addr", "strings"} {
			if _, ok := o[f]; !ok {
				t.Errorf("finding: field %s is missing", f)
			}
		}
	}
	if len(os) < 2 {
		t.Error("the payload was not found")
	}
}

// checkSubject compares what a finding says of its process with the guest's word.
func checkSubject(t *testing.T, g *lab.Guest, o map[string]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(script string) string {
		t.Helper()
		out, err := g.Run(ctx, script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(strings.ReplaceAll(out, "\r", ""))
	}
	pid := int(o["pid"].(float64))
	word := run(fmt.Sprintf("readlink /proc/%[1]d/exe; sha256sum /proc/%[1]d/exe; grep ^Uid: /proc/%[1]d/status", pid))
	f := strings.Fields(word)
	if len(f) < 5 {
		t.Fatalf("the guest says %q", word)
	}
	if o["exe"] != f[0] || o["exe_sha256"] != f[1] || fmt.Sprint(o["uid"]) != f[4] || o["container"] != "" {
		t.Errorf("exe %v, exe_sha256 %v, uid %v, container %v; the guest says %s", o["exe"], o["exe_sha256"], o["uid"], o["container"], word)
	}
	var want []string
	for next := pid; len(want) < 10; {
		next, _ = strconv.Atoi(run(fmt.Sprintf("grep ^PPid: /proc/%d/status | cut -f2", next)))
		if next == 0 {
			break
		}
		want = append(want, fmt.Sprint(next, " ", run(fmt.Sprintf("cat /proc/%d/comm", next))))
	}
	var got []string
	parents, _ := o["parents"].([]any)
	for _, p := range parents {
		p := p.(map[string]any)
		got = append(got, fmt.Sprint(p["pid"], " ", p["comm"]))
	}
	if !slices.Equal(got, want) || len(want) == 0 || !strings.HasPrefix(want[0], fmt.Sprint(o["ppid"], " ")) {
		t.Errorf("parents %q, ppid %v; the guest says %q", got, o["ppid"], want)
	}
}

func TestPolicyPausesTheInfectedVM(t *testing.T) {
	g := infected(t, lab.PC, true, true)
	events := filepath.Join(t.TempDir(), "events.ndjson")
	t.Cleanup(func() {
		if err := g.Resume(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	r := vantage(t, "scan", g.Name(), "--respond", "--dry-run")
	if s, err := g.Status(t.Context()); err != nil || s != "running" || r.status != exitFound {
		t.Fatalf("after a dry run the VM is %s (%v), status %d: %s", s, err, r.status, r.stderr)
	}
	r = vantage(t, "scan", g.Name(), "--respond", "--events", events)
	if r.status != exitFound {
		t.Fatalf("status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	if s, err := g.Status(t.Context()); err != nil || s != "paused" {
		t.Errorf("QEMU says that the VM is %s (%v), want paused", s, err)
	}
	b, err := os.ReadFile(events)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, o := range objects(t, string(b)) {
		kinds = append(kinds, o["kind"].(string))
	}
	if !slices.Contains(kinds, "finding.scan") || !slices.Contains(kinds, "response.done") || !slices.Contains(kinds, "scan.summary") {
		t.Errorf("events: %v", kinds)
	}
	// A paused VM can be looked into as any other.
	if r := vantage(t, "ps", g.Name()); r.status != exitOK {
		t.Errorf("ps of the paused VM: status %d: %s", r.status, r.stderr)
	}
}

func TestHeldMonitorIsSaid(t *testing.T) {
	g := infected(t, lab.PC, true, true)
	c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", g.QMPSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil { // the greeting: the monitor is ours
		t.Fatal(err)
	}
	if r := vantage(t, "ps", g.Name()); r.status != exitOK {
		t.Errorf("ps with a held monitor: status %d: %s", r.status, r.stderr)
	}
	r := vantage(t, "info", g.Name())
	if r.status != exitOK || !strings.Contains(r.stdout, "held by another client") {
		t.Errorf("info with a held monitor: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	r = vantage(t, "scan", g.Name(), "--respond")
	if r.status != exitFound || !strings.Contains(r.stdout, "pause: failed") || !strings.Contains(r.stdout, "held by another client") {
		t.Errorf("scan --respond with a held monitor: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
}

func TestVMThatDiesIsSaid(t *testing.T) {
	g := labtest.Boot(t, lab.Config{
		Name: fmt.Sprintf("cmdtest-%d-dies", os.Getpid()), Kernel: labtest.Kernel(t, lab.Bookworm), Memory: 256 * lab.MiB, Init: lab.DemoInit(true, "dies"),
	})
	rules := filepath.Join(t.TempDir(), "early.yar")
	early := "rule early { strings: $a = \"Linux version\" condition: $a }\n"
	if err := os.WriteFile(rules, []byte(early), 0o600); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	var errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: pw, stderr: &errs, version: "test", quiet: true}
	status := make(chan int, 1)
	go func() {
		status <- a.run(t.Context(), []string{"scan", g.Name(), "--json", "--physical", "--kernel", "--rules", rules, "--cache-dir", ""})
		pw.Close()
	}()
	// The pipe holds the scan back at its first line until it is read.
	r := bufio.NewReader(pr)
	if _, err := r.Peek(1); err != nil {
		t.Fatalf("no output: %v: %s", err, errs.String())
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if got := <-status; got == exitOK {
		t.Errorf("status %d after the VM died: %s%s", got, rest, errs.String())
	}
	if r := vantage(t, "ps", "qemu:"+strconv.Itoa(g.PID())); r.status != exitFailed || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("ps of a dead VM: status %d, want one line of error: %s", r.status, r.stderr)
	}
}

func TestInterruptedScanSaysSo(t *testing.T) {
	g := infected(t, lab.PC, true, true)
	rules := filepath.Join(t.TempDir(), "slow.yar")
	// The first rule's finding is the sign that the scan is under way; the second
	// keeps libyara busy.
	text := "rule early { strings: $a = \"ELF\" condition: $a }\n" +
		"rule slow { strings: $a = /[^x]{1,200}[^y]{1,200}[^z]{1,200}zzz/ condition: $a }\n"
	if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "vantage", "scan", g.Name(), "--json", "--rules", rules, "--cache-dir", "")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(out)
	if _, err := r.Peek(1); err != nil {
		t.Fatalf("no output: %v", err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // the status is looked at
	if got := cmd.ProcessState.ExitCode(); got != exitIncomplete {
		t.Errorf("status %d, want %d: %s%s", got, exitIncomplete, rest, errs.String())
	}
	os := objects(t, string(rest))
	if sum := os[len(os)-1]; sum["summary"] != true || sum["complete"] != false {
		t.Errorf("the last line is no incomplete summary: %v", sum)
	}
}

func TestWithoutRoot(t *testing.T) {
	labtest.NeedRoot(t)
	g := infected(t, lab.PC, true, true)
	bin, err := exec.LookPath("vantage")
	if err != nil {
		t.Fatal(err)
	}
	// The test binary's folder is closed to others.
	dir, err := os.MkdirTemp("/tmp", "vantage-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	b, err := os.ReadFile(bin)
	if err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(dir, "vantage")
	if err := os.WriteFile(open, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"ps", "qemu:" + strconv.Itoa(g.PID())}, {"ps", g.Name()}} {
		cmd := exec.CommandContext(t.Context(), open, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME=/nonexistent")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, _ := cmd.CombinedOutput()
		if got := cmd.ProcessState.ExitCode(); got != exitFailed {
			t.Errorf("%v as nobody: status %d: %s", args, got, out)
		}
		if args[1] != g.Name() && !strings.Contains(string(out), "root") {
			t.Errorf("%v as nobody: the error does not name the remedy: %s", args, out)
		}
	}
}

func TestFullDiskIsSaid(t *testing.T) {
	hit := filepath.Join(t.TempDir(), "hit.raw")
	if err := os.WriteFile(hit, []byte("VANTAGE-TEST-PAYLOAD-x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := vantage(t, "scan", hit, "--physical", "--events", "/dev/full")
	if r.status != exitFailed || !strings.Contains(r.stderr, "no space left") {
		t.Errorf("events on a full disk: status %d: %s", r.status, r.stderr)
	}
	// Nothing that is lost on the way keeps a response back.
	two := filepath.Join(t.TempDir(), "two.yar")
	text := "rule one { strings: $a = \"VANTAGE\" condition: $a } rule two { strings: $a = \"PAYLOAD\" condition: $a }"
	if err := os.WriteFile(two, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r = vantage(t, "scan", hit, "--physical", "--rules", two, "--events", "/dev/full", "--respond", "--dry-run")
	if n := strings.Count(r.stdout, "-> alert: dry_run"); r.status != exitFailed || !strings.Contains(r.stderr, "no space left") || n != 2 {
		t.Errorf("events on a full disk: %d of 2 findings answered, status %d: %s%s", n, r.status, r.stdout, r.stderr)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range [][]string{
		{"scan", hit, "--physical", "--json"}, {"scan", hit, "--physical"}, {"version"}, {"vms", "--json"}, {"policy", "test", "default"},
	} {
		var errs bytes.Buffer
		a := &app{stdin: strings.NewReader(""), stdout: full, stderr: &errs, version: "test"}
		if args[0] == "vms" {
			infected(t, lab.PC, true, true) // there must be a line to write
		}
		if got := a.run(t.Context(), args); got != exitFailed || !strings.Contains(errs.String(), "no space left") {
			t.Errorf("%v to a full disk: status %d: %s", args, got, errs.String())
		}
	}
}

// checkSockets compares what listens in a guest, and who it is, with the guest's
// own word.
func checkSockets(t *testing.T, g *lab.Guest) {
	t.Helper()
	pid, err := g.Run(t.Context(), `nc -l -p 4242 >/dev/null 2>&1 </dev/null &
		for i in $(seq 300); do grep -q :1092 /proc/net/tcp6 && break; usleep 10000; done
		echo $!
		grep -q :1092 /proc/net/tcp6`)
	if err != nil {
		t.Fatal(err)
	}
	pid = strings.TrimSpace(pid)
	r := vantage(t, "sockets", g.Name(), "--json", "--listening", "--pid", pid)
	if r.status != exitOK {
		t.Fatalf("sockets: status %d: %s", r.status, r.stderr)
	}
	got := objects(t, r.stdout)
	if len(got) != 1 {
		t.Fatalf("sockets: %s", r.stdout)
	}
	for k, want := range map[string]string{
		"family": "inet6", "type": "stream", "proto": "tcp", "state": "LISTEN", "local_addr": "::", "local_port": "4242",
		"remote_addr": "::", "remote_port": "0", "pid": pid, "comm": "nc", "uid": "0", "hidden": "false",
	} {
		if have := fmt.Sprint(got[0][k]); have != want {
			t.Errorf("sockets: %s %s, want %s", k, have, want)
		}
	}
	if r := vantage(t, "sockets", g.Name()); r.status != exitOK || !strings.Contains(r.stdout, "[::]:4242") {
		t.Errorf("sockets: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	if _, err := g.Run(t.Context(), "kill "+pid); err != nil {
		t.Error(err)
	}
}
