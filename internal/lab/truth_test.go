package lab_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vantage-vmi/vantage/internal/lab"
	"github.com/vantage-vmi/vantage/internal/lab/labtest"
)

func TestTruth(t *testing.T) {
	for _, suite := range lab.Suites() {
		t.Run(string(suite), func(t *testing.T) {
			g := labtest.Boot(t, lab.Config{
				Name:    "truth",
				Kernel:  labtest.Kernel(t, suite),
				Shared:  true,
				KASLR:   true,
				Program: true,
			})
			truth, err := g.Truth()
			if err != nil {
				t.Fatal(err)
			}
			checkTruth(t, g, truth)
			checkCommands(t, g)
		})
	}
}

func checkTruth(t *testing.T, g *lab.Guest, truth *lab.Truth) {
	if got := string(truth.System.Release); got != g.Config().Kernel.Release {
		t.Errorf("release %q, want %q", got, g.Config().Kernel.Release)
	}
	if len(truth.Modules) < 3 || truth.SymbolCount < 50000 || len(truth.Symbols) < 100 || len(truth.IOMem) < 4 {
		t.Errorf("%d modules, %d symbols, %d chosen, %d iomem", len(truth.Modules), truth.SymbolCount, len(truth.Symbols), len(truth.IOMem))
	}
	for _, name := range []string{"linux_banner", "init_task", "_text"} {
		if s, ok := truth.Symbol(name); !ok || s.Addr < 0xffffffff80000000 {
			t.Errorf("symbol %s: %+v", name, s)
		}
	}
	if len(truth.Made) < 35 {
		t.Errorf("only %d processes were made", len(truth.Made))
	}
	for _, m := range truth.Made {
		if p, ok := truth.Process(m.PID); !ok || p.Label != m.Label {
			t.Errorf("made %s: no process with its PID %d and label", m.Label, m.PID)
		}
	}
	get := func(label string) lab.Process {
		p, ok := truth.ByLabel(label)
		if !ok {
			t.Errorf("no process %s", label)
		}
		return p
	}
	init, _ := truth.Process(1)
	if p := get("oddargs"); !slices.Equal(p.Args(), []string{"\x1b[31mred\x1b[0m", "", "caf\xc3\xa9 \xff\xfe", "line\nbreak\ttab\"quote\\"}) {
		t.Errorf("oddargs: %q", p.Args())
	}
	if p := get("longargs"); len(p.Args()) != 202 || len(p.Cmdline) < 10000 {
		t.Errorf("longargs: %d arguments, %d bytes", len(p.Args()), len(p.Cmdline))
	}
	if p := get("oddcomm"); p.Comm != "\x1b[2J\xc3\xa9\xff\n\"<b>" {
		t.Errorf("oddcomm: %q", p.Comm)
	}
	if p := get("setuid"); p.UIDs != [4]uint32{1000, 1001, 1001, 1001} {
		t.Errorf("setuid: %v", p.UIDs)
	}
	if p := get("deleted"); p.Exe != "/tmp/deleted-exe (deleted)" {
		t.Errorf("deleted: %q", p.Exe)
	}
	if p := get("chroot"); p.Exe != "/jail/bin/inchroot" || p.Root != "/jail" {
		t.Errorf("chroot: %q %q", p.Exe, p.Root)
	}
	if p := get("zombie"); p.State != "Z" {
		t.Errorf("zombie: state %s", p.State)
	}
	if p := get("deadleader"); p.State != "Z" || len(p.Threads) != 3 {
		t.Errorf("deadleader: %+v", p)
	}
	if p := get("threads"); len(p.Threads) != 3 || p.Threads[2].Comm != "\x1b]0;evil\a" {
		t.Errorf("threads: %+v", p.Threads)
	}
	if p := get("title"); !strings.HasPrefix(string(p.Cmdline), "postgres: writer process\x00") {
		t.Errorf("title: %q", p.Cmdline)
	}
	for _, ns := range []string{"uts", "mnt", "ipc", "net", "pid", "user", "time", "cgroup"} {
		p := get("ns-" + ns)
		for k, v := range p.Namespaces {
			if (v != init.Namespaces[k]) != (k == ns) {
				t.Errorf("ns-%s: namespace %s is %d, that of PID 1 is %d", ns, k, v, init.Namespaces[k])
			}
		}
	}
	if p := get("ns-pid"); p.NSPID != 1 || p.PID == 1 {
		t.Errorf("ns-pid: %+v", p)
	}
	if p := get("docker"); !strings.HasPrefix(p.CgroupPath(), "/system.slice/docker-4f1d0c7a") || p.NSPID != 1 {
		t.Errorf("docker: %+v", p)
	}
	checkPages(t, g, truth)
}

// checkPages reads secrets at the physical addresses that the guest says.
func checkPages(t *testing.T, g *lab.Guest, truth *lab.Truth) {
	ram := openRAM(t, g)
	phys := map[string]uint64{}
	for _, p := range truth.Pages {
		phys[fmt.Sprintf("%d:%x", p.PID, uint64(p.Virt))] = uint64(p.Phys)
	}
	checked := 0
	for _, m := range truth.Made {
		for name, s := range m.Secrets() {
			page := s.Addr &^ 4095
			pa, ok := phys[fmt.Sprintf("%d:%x", m.PID, page)]
			if !ok {
				continue // a mapping's first pages only are told
			}
			n := min(uint64(len(s.Text)), page+4096-s.Addr)
			got := ram[pa+s.Addr-page:][:n]
			if string(got) != s.Text[:n] {
				t.Errorf("%s: secret %s at %#x (gpa %#x): %q, want %q", m.Label, name, s.Addr, pa, got, s.Text[:n])
			}
			checked++
		}
	}
	if checked < 9 {
		t.Errorf("only %d secrets were found by their physical address", checked)
	}
	m, _ := truth.MadeByLabel("crossing")
	s := m.Secrets()["crossing"]
	first, second := phys[fmt.Sprintf("%d:%x", m.PID, s.Addr&^4095)], phys[fmt.Sprintf("%d:%x", m.PID, s.Addr&^4095+4096)]
	if first == 0 || second == 0 || first+4096 == second {
		t.Errorf("crossing: pages at %#x and %#x", first, second)
	}
	// The secret that is in two pieces is in memory as a whole nowhere.
	if n := strings.Count(string(ram), s.Text); n != 0 {
		t.Errorf("the secret across two pages is %d times in physical memory as a whole", n)
	}
}

func checkCommands(t *testing.T, g *lab.Guest) {
	ctx := t.Context()
	out, err := g.Command(ctx, "fork 5")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, f := range strings.Fields(out) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, n)
	}
	if len(pids) != 5 {
		t.Fatalf("fork 5: %q", out)
	}
	for _, c := range []string{
		fmt.Sprintf("exec %d /usr/bin/turncoat", pids[0]),
		fmt.Sprintf("comm %d renamed", pids[1]),
		fmt.Sprintf("secret %d fresh", pids[2]),
		fmt.Sprintf("exit %d", pids[3]),
		fmt.Sprintf("zombie %d", pids[4]),
		"churn on",
		"churn off",
	} {
		if _, err := g.Command(ctx, c); err != nil {
			t.Error(err)
		}
	}
	if _, err := g.Command(ctx, "nonsense"); err == nil {
		t.Error("nonsense: no error")
	}
	ps, err := g.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	by := map[int]lab.Process{}
	for _, p := range ps {
		by[p.PID] = p
	}
	if p := by[pids[0]]; p.Exe != "/usr/bin/turncoat" || p.Comm != "turncoat" {
		t.Errorf("exec: %+v", p)
	}
	if p := by[pids[1]]; p.Comm != "renamed" {
		t.Errorf("comm: %+v", p)
	}
	if _, ok := by[pids[3]]; ok {
		t.Error("exit: the process is still there")
	}
	if p := by[pids[4]]; p.State != "Z" {
		t.Errorf("zombie: %+v", p)
	}
	for _, p := range ps {
		if strings.HasPrefix(string(p.Comm), "churn") {
			t.Errorf("churn off left %+v", p)
		}
	}
	if n := strings.Count(string(openRAM(t, g)), lab.SecretPrefix+"fresh-0"); n != 1 {
		t.Errorf("the fresh secret is %d times in memory, want 1", n)
	}
}
