package linux

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

// hooksTruth is what testdata/hooks prints.
type hooksTruth struct {
	PID      int `json:"pid"`
	Programs []struct {
		ID       uint32         `json:"id"`
		Type     uint32         `json:"type"`
		Name     string         `json:"name"`
		Tag      string         `json:"tag"`
		LoadTime int64          `json:"load_time"`
		UID      int            `json:"uid"`
		Address  uint64         `json:"address"`
		Size     uint64         `json:"size"`
		Count    uint32         `json:"instructions"`
		Maps     []uint32       `json:"maps"`
		Place    *BPFAttachment `json:"place"`
	} `json:"programs"`
	Maps []struct {
		ID     uint32 `json:"id"`
		Type   uint32 `json:"type"`
		Name   string `json:"name"`
		Key    uint32 `json:"key"`
		Value  uint32 `json:"value"`
		Max    uint32 `json:"max"`
		Flags  uint32 `json:"flags"`
		Frozen bool   `json:"frozen"`
	} `json:"maps"`
	Links []struct {
		ID      uint32 `json:"id"`
		Type    uint32 `json:"type"`
		Program uint32 `json:"program"`
	} `json:"links"`
	Timers  map[string]int64  `json:"timers"`
	Skipped map[string]string `json:"skipped"`
}

// hooksDir is where hooksProgram put its program; TestMain removes it.
var hooksDir string

// hooksProgram compiles testdata/hooks, once for the test binary.
var hooksProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hooks-")
	if err != nil {
		return "", err
	}
	hooksDir = dir
	out := filepath.Join(dir, "hooks")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/hooks")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return string(b), err
	}
	return out, nil
})

// hooksInit sets up what of the guest needs no program.
const hooksInit = `
mkdir -p /sys/kernel/debug /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
ip link set dummy0 up
cp /bin/busybox /tmp/probed
cd /sys/kernel/tracing
echo 'p:vt/enter ksys_sync' >> kprobe_events
echo 'p:vt/inside vfs_statfs' >> kprobe_events
echo 'r:vt/leave vfs_statfs' >> kprobe_events
echo 'p:vt/off vfs_fsync' >> kprobe_events
echo 'p:vt/file /tmp/probed:0x1234' >> uprobe_events
echo 'r:vt/fileret /tmp/probed:0x2345' >> uprobe_events
for e in enter leave inside file fileret; do echo 1 > events/vt/$e/enable || echo "event $e failed"; done
echo do_exit > set_ftrace_filter
echo vfs_truncate >> set_ftrace_filter
echo function > current_tracer
cd /
`

// bootHooks returns the shared guest of a kind in which testdata/hooks runs,
// and what that printed.
func bootHooks(t testing.TB, kind guestKind) (*lab.Guest, hooksTruth) {
	t.Helper()
	kernel := kind.kernel(t)
	program, err := hooksProgram()
	if err != nil {
		t.Fatalf("build testdata/hooks: %v: %s", err, program)
	}
	g := labtest.Shared(t, lab.Config{
		Name: "hooks-" + kind.String(), Kernel: kernel, LA57: kind.la57, Shared: true, KASLR: true,
		Modules: kind.modules(t, []string{"dummy", "nf_tables"}, "crc32c_generic"), Init: hooksInit, Files: []lab.File{{Path: "hooks", Mode: 0o755, Host: program}},
	})
	hooksMu.Lock()
	defer hooksMu.Unlock()
	if text, ok := hooksOutput[kind]; ok {
		return g, text
	}
	out, err := g.Run(t.Context(), `/hooks > /tmp/hooks.out 2>&1 &
for i in $(seq 600); do grep -q '^{.*}$\|HOOKS-FAILED' /tmp/hooks.out && break; sleep 0.1; done
cat /tmp/hooks.out`)
	if err != nil {
		t.Fatal(err)
	}
	var truth hooksTruth
	if err := json.Unmarshal([]byte(strings.TrimSpace(out)), &truth); err != nil {
		t.Fatalf("%v: %.1000s", err, out)
	}
	for what, why := range truth.Skipped {
		t.Logf("%s: the kernel has no %s: %s", kind, what, why)
	}
	hooksOutput[kind] = truth
	return g, truth
}

var (
	hooksMu     sync.Mutex
	hooksOutput = map[guestKind]hooksTruth{}
)

// pausedHooks opens the memory of guest, which stands still until the end of
// the test.
func pausedHooks(t testing.TB, guest *lab.Guest) *Guest {
	t.Helper()
	if err := guest.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := guest.Resume(context.Background()); err != nil {
			t.Error(err)
		}
	})
	g, err := Open(t.Context(), openRAM(t, guest), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return g
}
