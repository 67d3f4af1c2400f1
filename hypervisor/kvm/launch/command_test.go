package launch

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// guestModules are what the guests of initrd load.
var guestModules = []string{"virtio_pci", "virtio_blk", "virtio_rng"}

// The program itself, as its users have it, on a machine of its own that runs a
// stock kernel under nested paging.
func TestProgram(t *testing.T) {
	k := labtest.Kernel(t, lab.Bookworm)
	cfg := lab.NestedConfig{Timeout: 8 * time.Minute, Tries: 2, InnerKernel: k, GuestModules: guestModules}
	withProgram(t, &cfg)
	labtest.NestedGroup(t, cfg, func(t *testing.T) {
		t.Run("Detached", func(t *testing.T) { testDetached(t, k) })
		t.Run("Foreground", func(t *testing.T) { testForeground(t, k) })
		t.Run("Conformance", testConformance)
		t.Run("KilledClients", func(t *testing.T) { testKilledTiny(t, 200) })
	})
}

// The same program where INT3 leaves the guest: every instruction of a tiny guest
// and functions of a stock kernel have breakpoints.
func TestProgramUnderEPT(t *testing.T) {
	k := labtest.Kernel(t, lab.Bookworm)
	cfg := lab.NestedConfig{Bed: lab.EPT, Memory: lab.GiB, Timeout: 15 * time.Minute, InnerKernel: k, GuestModules: guestModules}
	withProgram(t, &cfg)
	labtest.NestedGroup(t, cfg, func(t *testing.T) {
		t.Run("KilledClients", func(t *testing.T) { testKilledTiny(t, 200) })
		t.Run("StockKernel", func(t *testing.T) { testStockKernel(t, k) })
	})
}

// withProgram puts the program into a bed.
func withProgram(t *testing.T, cfg *lab.NestedConfig) {
	t.Helper()
	if labtest.InsideNested() {
		return
	}
	binary := filepath.Join(t.TempDir(), "vantage")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "../../../cmd/vantage").CombinedOutput(); err != nil {
		t.Fatalf("build vantage: %v\n%s", err, out)
	}
	cfg.Programs = map[string]string{"vantage": binary}
}

// vantage runs the program and returns what it printed and its exit status.
func vantage(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("vantage", args...) // at a test's end too, when its context has
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		t.Fatalf("vantage %v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// lines are the JSON objects that a command printed.
func lines(t *testing.T, out string) (objects []map[string]any) {
	t.Helper()
	for line := range strings.Lines(out) {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		objects = append(objects, o)
	}
	return objects
}

// initrd is a guest with a program that holds the rules' test payload.
func initrd(t *testing.T, k *lab.Kernel, script string) string {
	t.Helper()
	var fs lab.Initramfs
	if err := fs.Busybox(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"dev", "proc", "sys", "tmp"} {
		fs.Mkdir(d)
	}
	fs.Device("dev/console", 5, 1)
	mods, err := k.Modules(t.Context(), guestModules...)
	if err != nil {
		t.Fatal(err)
	}
	load := ""
	for _, m := range mods {
		fs.HostFile("lib/modules/"+m.Name+".ko", 0o644, m.Path)
		load += "insmod /lib/modules/" + m.Name + ".ko\n"
	}
	fs.File("init", 0o755, []byte("#!/bin/sh\nmount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n"+load+script))
	path := filepath.Join(t.TempDir(), "initrd")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fs.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	return path
}

// until waits for a condition that another process brings about.
func until(t *testing.T, what string, most time.Duration, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for late := time.After(most); !ok(); {
		select {
		case <-late:
			t.Fatalf("%s: not in %v", what, most)
		case <-tick.C:
		}
	}
}

func testDetached(t *testing.T, k *lab.Kernel) {
	console := filepath.Join(t.TempDir(), "console")
	image := initrd(t, k, "sleep 4000 &\necho UP $(cut -d' ' -f1 /proc/modules | sort | head -n 1)\nwhile :; do sleep 1000; done\n")
	out, errs, status := vantage(t, "run", "--name", "web", "--kernel", k.Image, "--initrd", image,
		"--append", "console=ttyS0 quiet panic=-1", "--memory", "256M", "--cpus", "2", "--console", "file:"+console, "--detach", "--json")
	if status != 0 {
		t.Fatalf("run: status %d: %s", status, errs)
	}
	pid := int(lines(t, out)[0]["pid"].(float64))
	t.Cleanup(func() { _ = exec.Command("kill", "-9", strconv.Itoa(pid)).Run() })
	until(t, "the guest is up", 2*time.Minute, func() bool {
		b, _ := os.ReadFile(console)
		return strings.Contains(string(b), "UP ")
	})
	out, errs, status = vantage(t, "vms", "--json")
	vm := lines(t, out)
	if status != 0 || len(vm) != 1 || vm[0]["name"] != "web" || vm[0]["driver"] != "kvm" || vm[0]["uri"] != "kvm:web" || vm[0]["vcpus"] != 2.0 || int(vm[0]["pid"].(float64)) != pid {
		t.Fatalf("vms: status %d: %s%s", status, out, errs)
	}
	out, errs, status = vantage(t, "ps", "web", "--json")
	var comms []string
	for _, p := range lines(t, out) {
		comms = append(comms, p["comm"].(string))
	}
	if status != 0 || !slices.Contains(comms, "init") || !slices.Contains(comms, "sleep") || !slices.Contains(comms, "kthreadd") {
		t.Errorf("ps: status %d: %v %s", status, comms, errs)
	}
	if out, errs, status = vantage(t, "ps", "web", "--pause", "--json"); status != 0 || !strings.Contains(out, `"comm":"sleep"`) || !strings.Contains(errs, "paused_seconds") {
		t.Errorf("ps --pause: status %d: %s%s", status, out, errs)
	}
	if out, errs, status = vantage(t, "info", "web", "--json"); status != 0 || !strings.Contains(out, `"running"`) {
		t.Errorf("info: it does not run on: status %d: %s%s", status, out, errs)
	}
	b, err := os.ReadFile(console)
	if err != nil {
		t.Fatal(err)
	}
	_, first, _ := strings.Cut(strings.TrimSpace(string(b)), "UP ")
	if out, errs, status = vantage(t, "modules", "web", "--json"); status != 0 || !strings.Contains(out, `"name":"`+strings.TrimSpace(first)+`"`) {
		t.Errorf("modules: status %d, no %q: %s%s", status, first, out, errs)
	}
	if out, errs, status = vantage(t, "scan", "web", "--json"); status != 0 || !strings.Contains(out, `"summary":true`) {
		t.Errorf("scan: status %d: %s%s", status, out, errs)
	}
	if used := beyondGuest(t, pid, 256<<20); used > 40<<20 {
		t.Errorf("the machine's process uses %d bytes beyond the guest's memory", used)
	} else {
		fmt.Printf("BENCH vmm-memory %.1f resident, program and libraries included\n", float64(used)/(1<<20))
	}
	if _, errs, status = vantage(t, "run", "--name", "web", "--kernel", k.Image); status != 2 || !strings.Contains(errs, "running") {
		t.Errorf("a second one of its name: status %d: %s", status, errs)
	}
	if _, errs, status = vantage(t, "stop", "web", "--force"); status != 0 {
		t.Fatalf("stop: status %d: %s", status, errs)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe"); err == nil {
		t.Error("it is stopped, and its process is there")
	}
	if out, _, _ = vantage(t, "vms", "--json"); strings.Contains(out, `"web"`) {
		t.Errorf("a machine that has ended is listed: %s", out)
	}
}

// beyondGuest returns the bytes that a process has resident in mappings that are
// not its guest's RAM (proc_pid_smaps(5)).
func beyondGuest(t *testing.T, pid int, guest uint64) (used uint64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mappings, ram := 0, false
	for line := range strings.Lines(string(b)) {
		var from, to, kib uint64
		if n, _ := fmt.Sscanf(line, "%x-%x ", &from, &to); n == 2 {
			ram = to-from == guest
			mappings++
		}
		if n, _ := fmt.Sscanf(line, "Rss: %d kB", &kib); n == 1 && !ram {
			used += kib << 10
		}
	}
	if mappings < 10 || used == 0 {
		t.Fatalf("no mappings in\n%s", b)
	}
	return used
}

func testForeground(t *testing.T, k *lab.Kernel) {
	image := initrd(t, k, "echo READY; read line; echo \"got $line\"; poweroff -f\n")
	cmd := exec.CommandContext(t.Context(), "vantage", "run", "--name", "front", "--kernel", k.Image, "--initrd", image,
		"--append", "console=ttyS0 quiet panic=-1", "--memory", "256M")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		out.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "READY") { // what is typed before, the guest's driver drops
			if _, err := in.Write([]byte("hello\n")); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("run: %v", err)
	}
	if s := out.String(); !strings.Contains(s, "got hello") {
		t.Errorf("console:\n%s", s)
	}
	left, err := filepath.Glob("/run/vantage/vms/front.sock")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
