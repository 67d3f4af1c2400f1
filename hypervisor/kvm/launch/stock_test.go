package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/hypervisor/kvm"
	"github.com/vantage-vmi/vantage/internal/lab"
)

// hooked are functions of the stock kernel that a guest's loop runs through.
var hooked = []string{"__x64_sys_openat", "vfs_read", "ksys_read", "filp_close", "schedule"}

// stockScript says where the kernel is, by its own word, and then works for ever.
func stockScript() string {
	return "grep 'Kernel code' /proc/iomem\n" +
		"grep -E ' (_text|" + strings.Join(hooked, "|") + ")$' /proc/kallsyms\n" +
		"echo UP\ni=0; while :; do read x < /proc/loadavg; i=$((i+1)); echo $x > /tmp/$((i%4)); [ $((i%20)) = 0 ] && echo tick; done\n"
}

// addresses reads where functions are in guest-physical memory out of what the
// guest has said, and what its text is.
func addresses(t *testing.T, said string) (map[string]hypervisor.PhysAddr, hypervisor.Range) {
	t.Helper()
	number := func(s string) uint64 {
		v, err := strconv.ParseUint(s, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	code := regexp.MustCompile(`([0-9a-f]+)-([0-9a-f]+) : Kernel code`).FindStringSubmatch(said)
	if code == nil {
		t.Fatalf("the guest does not say where its code is:\n%s", said)
	}
	text := hypervisor.Range{Start: hypervisor.PhysAddr(number(code[1])), Size: number(code[2]) + 1 - number(code[1])}
	virt := map[string]uint64{}
	for _, m := range regexp.MustCompile(`([0-9a-f]{16}) [Tt] (\w+)`).FindAllStringSubmatch(said, -1) {
		virt[m[2]] = number(m[1])
	}
	at := map[string]hypervisor.PhysAddr{}
	for _, name := range hooked {
		if virt[name] == 0 || virt["_text"] == 0 {
			t.Fatalf("the guest does not say where %s is:\n%s", name, said)
		}
		at[name] = text.Start + hypervisor.PhysAddr(virt[name]-virt["_text"])
	}
	return at, text
}

// A stock kernel boots, gets breakpoints on functions that it is in all the time,
// and its clients die: it is told of each function, runs on, and its text is byte
// for byte what it was.
func testStockKernel(t *testing.T, k *lab.Kernel) {
	console := filepath.Join(t.TempDir(), "console")
	detached(t, "stock", "--kernel", k.Image, "--initrd", initrd(t, k, stockScript()),
		"--append", "console=ttyS0 quiet panic=-1 no_timer_check", "--memory", "192M", "--console", "file:"+console)
	said := func() string {
		b, err := os.ReadFile(console)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), "\r", "")
	}
	until(t, "the guest is up", 5*time.Minute, func() bool { return strings.Contains(said(), "tick") })
	at, text := addresses(t, said())
	vm, err := kvm.New(kvm.Options{Timeout: time.Minute}).Open(t.Context(), "stock")
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	tr, err := hypervisor.As[hypervisor.Trapper](vm)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	hits := map[hypervisor.PhysAddr]int{}
	var ids []hypervisor.TrapID
	var traps []hypervisor.Trap
	for _, gpa := range at {
		trap := hypervisor.Trap{Kind: hypervisor.TrapBreakpoint, Addr: gpa}
		id, err := tr.SetTrap(t.Context(), trap, func(ev *hypervisor.TrapEvent) hypervisor.TrapAnswer {
			mu.Lock()
			defer mu.Unlock()
			if ev.Addr == gpa && ev.Registers.RIP == ev.Virt && ev.Registers.CR3 != 0 {
				hits[gpa]++
			}
			return hypervisor.TrapAnswer{}
		})
		if err != nil {
			t.Fatal(err)
		}
		ids, traps = append(ids, id), append(traps, trap)
	}
	until(t, "each function is hit ten times", 3*time.Minute, func() bool {
		mu.Lock()
		defer mu.Unlock()
		for _, gpa := range at {
			if hits[gpa] < 10 {
				return false
			}
		}
		return true
	})
	for _, id := range ids {
		if err := tr.RemoveTrap(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("hits: %v", fmt.Sprint(hits))
	killClients(t, watched{
		name: "stock", vm: vm.(*kvm.VM), traps: traps, text: text,
		alive: func(t *testing.T) {
			n := strings.Count(said(), "tick")
			until(t, "the guest runs on", time.Minute, func() bool { return strings.Count(said(), "tick") > n })
		},
	}, 30)
}
