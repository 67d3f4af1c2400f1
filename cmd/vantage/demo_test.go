package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// demo starts `vantage demo` as a process of its own.
func startDemo(t *testing.T, args ...string) (cmd *exec.Cmd, out io.Reader, errs *bytes.Buffer) {
	t.Helper()
	labtest.Kernel(t, lab.Bookworm) // skips here, by name, where there is none
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, "vantage", append([]string{"demo", "--cache-dir", ""}, args...)...)
	errs = &bytes.Buffer{}
	cmd.Stderr = errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, out, errs
}

var demoPID = regexp.MustCompile(`QEMU's PID (\d+)`)

// gone fails the test when a process with this PID is there and is a QEMU.
func gone(t *testing.T, pid string) {
	t.Helper()
	b, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err == nil && bytes.Contains(b, []byte("qemu")) {
		t.Errorf("QEMU %s is left behind", pid)
	}
}

// leftovers lists what a demo could leave in shared memory.
func leftovers(t *testing.T) []string {
	t.Helper()
	es, err := os.ReadDir("/dev/shm")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func TestDemo(t *testing.T) {
	before := fmt.Sprint(leftovers(t))
	cmd, out, errs := startDemo(t)
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("demo: %v: %s%s", err, text, errs)
	}
	for _, want := range []string{"$ vantage vms", "$ vantage ps demo-mail", "Vantage_Test_Payload", "-> pause: done", "-> alert: done", "paused", "Done: 3 guests"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the demo does not show %q:\n%s", want, text)
		}
	}
	pids := demoPID.FindAllStringSubmatch(string(text), -1)
	if len(pids) != 3 {
		t.Fatalf("%d guests, want 3:\n%s", len(pids), text)
	}
	for _, m := range pids {
		gone(t, m[1])
	}
	if after := fmt.Sprint(leftovers(t)); after != before {
		t.Errorf("/dev/shm had %s, and has %s", before, after)
	}
}

func TestInterruptedDemoLeavesNothing(t *testing.T) {
	cmd, out, errs := startDemo(t)
	r := bufio.NewReader(out)
	var pids []string
	for len(pids) < 3 {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("the demo ended early: %v: %s", err, errs)
		}
		if m := demoPID.FindStringSubmatch(line); m != nil {
			pids = append(pids, m[1])
		}
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("an interrupted demo ended with status 0")
	}
	for _, pid := range pids {
		gone(t, pid)
	}
}

func TestKeptDemoRunsOn(t *testing.T) {
	cmd, out, errs := startDemo(t, "--keep")
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("demo: %v: %s%s", err, text, errs)
	}
	var pids []string
	for _, m := range demoPID.FindAllStringSubmatch(string(text), -1) {
		pids = append(pids, m[1])
	}
	t.Cleanup(func() {
		// As the demo says; the shell's own, for not every machine has kill(1).
		if out, err := exec.Command("sh", "-c", "kill "+strings.Join(pids, " ")).CombinedOutput(); err != nil {
			t.Errorf("kill %v: %v: %s", pids, err, out)
		}
	})
	if !strings.Contains(string(text), "kill "+strings.Join(pids, " ")) {
		t.Errorf("the demo does not say how to end its guests %v:\n%s", pids, text)
	}
	if r := vantage(t, "ps", "qemu:"+pids[2]); r.status != exitOK || !strings.Contains(r.stdout, lab.DemoInfectedComm) {
		t.Errorf("ps of a kept guest: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
}
