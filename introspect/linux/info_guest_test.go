package linux

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/internal/lab"
)

// infoTruth prints what the guest says of itself as a whole.
const infoTruth = `
	[ -e /sys/kernel/security/lsm ] || mount -t securityfs securityfs /sys/kernel/security
	cat /etc/os-release >/dev/null
	sed 's/^/mem /; s/:/ /' /proc/meminfo
	echo taint $(cat /proc/sys/kernel/tainted)
	echo lsm $(cat /sys/kernel/security/lsm)
	echo lockdown $(cat /sys/kernel/security/lockdown)
	echo cgroups $(cut -d: -f1 /proc/self/cgroup)
	echo cpu $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo)
	echo load $(cat /proc/loadavg)
	echo uptime $(cat /proc/uptime)
	echo date $(date +%s)`

// What is told of the guest as a whole is what it says itself.
func TestInfoOfGuests(t *testing.T) {
	for _, kind := range guestKinds() {
		t.Run(kind.String(), func(t *testing.T) {
			g := bootFacts(t, kind)
			compareInfo(t, g)
			busy := "true"
			if kind.suite == lab.Sid { // the load is counted every 5 s
				busy = "timeout 6 sh -c 'while :; do :; done'"
			}
			// Busy, swapping, distrusted and locked down.
			if _, err := g.Run(t.Context(), busy+` >/dev/null 2>&1
				[ -e /dev/zram0 ] && echo 64M > /sys/block/zram0/disksize && mkswap /dev/zram0 && swapon /dev/zram0
				dd if=/dev/zero of=/tmp/shared bs=1M count=10
				echo 12352 > /proc/sys/kernel/tainted
				echo integrity > /sys/kernel/security/lockdown
				mkdir -p /tmp/cg && mount -t cgroup -o pids pids /tmp/cg
				true`); err != nil {
				t.Fatal(err)
			}
			i := compareInfo(t, g)
			if i.Taint.Mask&12352 != 12352 || !strings.Contains(i.Taint.Letters, "UOE") || len(i.Taint.Reasons) < 3 {
				t.Errorf("taint %+v", i.Taint)
			}
			if i.CgroupVersion != "hybrid" {
				t.Errorf("control groups %q with both versions mounted", i.CgroupVersion)
			}
			if i.Memory.SwapTotal == 0 || kind.suite == lab.Sid && i.LoadAverages[0] == 0 {
				t.Errorf("no swap or load: %+v, %v", i.Memory, i.LoadAverages)
			}
			if _, err := g.Run(t.Context(), "swapoff /dev/zram0; echo 1 > /sys/block/zram0/reset; rm /tmp/shared; umount /tmp/cg"); err != nil {
				t.Error(err)
			}
		})
	}
}

func compareInfo(t *testing.T, g *lab.Guest) Info {
	t.Helper()
	said := map[string][]string{}
	var i Info
	for range 3 { // until the load was not counted anew between the two looks
		for line := range strings.Lines(string(factsSays(t, g, infoTruth))) {
			if f := strings.Fields(line); f[0] == "mem" {
				said["mem "+f[1]] = f[2:]
			} else {
				said[f[0]] = f[1:]
			}
		}
		factsLook(t, g, func(guest *Guest) {
			var err error
			if i, err = guest.Info(t.Context()); err != nil || !i.Coverage.Complete() {
				t.Fatal(err, i.Coverage.Problems())
			}
		})
		if fmt.Sprintf("%.2f %.2f %.2f", i.LoadAverages[0], i.LoadAverages[1], i.LoadAverages[2]) == strings.Join(said["load"][:3], " ") {
			break
		}
	}
	if got, want := fmt.Sprintf("%.2f %.2f %.2f", i.LoadAverages[0], i.LoadAverages[1], i.LoadAverages[2]), strings.Join(said["load"][:3], " "); got != want {
		t.Errorf("load %s, the guest says %s", got, want)
	}
	number := func(s string) float64 {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	kib := func(name string) float64 { return number(said["mem "+name][0]) }
	for _, m := range []struct {
		name      string
		got       uint64
		want, off float64 // KiB
	}{
		{"total", i.Memory.Total, kib("MemTotal"), 0},
		{"free", i.Memory.Free, kib("MemFree"), 4096},
		{"available", i.Memory.Available, kib("MemAvailable"), 4096},
		{"cached", i.Memory.Cached, kib("Cached") + kib("Buffers"), 512},
		{"shared", i.Memory.Shared, kib("Shmem"), 512},
		{"anonymous", i.Memory.Anonymous, kib("AnonPages"), 2048},
		{"slab", i.Memory.Slab, kib("Slab"), 512},
		{"swap", i.Memory.SwapTotal, kib("SwapTotal"), 0},
		{"free swap", i.Memory.SwapFree, kib("SwapFree"), 0},
	} {
		got := float64(m.got) / 1024
		if math.Abs(got-m.want) > m.off {
			t.Errorf("memory: %s %.0f KiB, the guest says %.0f", m.name, got, m.want)
		}
	}
	if got := fmt.Sprint(i.Taint.Mask); got != said["taint"][0] {
		t.Errorf("taint %s, the guest says %s", got, said["taint"])
	}
	if got := strings.Join(i.LSMs, ","); got != strings.Join(said["lsm"], "") || got == "" {
		t.Errorf("LSMs %s, the guest says %s", got, said["lsm"])
	}
	if !slices.Contains(said["lockdown"], "["+i.Lockdown+"]") {
		t.Errorf("lockdown %q, the guest says %s", i.Lockdown, said["lockdown"])
	}
	if got := strings.Join(strings.Fields(i.CPUModel), " "); got != strings.Join(said["cpu"], " ") || got == "" {
		t.Errorf("CPU %q, the guest says %q", got, said["cpu"])
	}
	cgroups := "v1"
	if slices.Contains(said["cgroups"], "0") {
		if cgroups = "hybrid"; len(said["cgroups"]) == 1 {
			cgroups = "v2"
		}
	}
	if i.CgroupVersion != cgroups {
		t.Errorf("control groups %q, the guest says %s", i.CgroupVersion, said["cgroups"])
	}
	if i.OSName != `Facts "GNU" 12 ($x)` || i.OSVersion != "12.5" {
		t.Errorf("OS %q, %q", i.OSName, i.OSVersion)
	}
	// The guest was asked a moment before it was stopped, and in an idle one the
	// timekeeper may be some seconds behind.
	const most = 15
	if d := i.Uptime.Seconds() - number(said["uptime"][0]); math.Abs(d) > most {
		t.Errorf("uptime %v, the guest says %s", i.Uptime, said["uptime"])
	}
	if d := i.Clock.Sub(time.Unix(int64(number(said["date"][0])), 0)).Seconds(); math.Abs(d) > most {
		t.Errorf("clock %v, the guest says %s", i.Clock, said["date"])
	}
	if d := i.Clock.Sub(i.BootTime) - i.Uptime; d.Abs() > time.Millisecond {
		t.Errorf("clock %v, boot %v, uptime %v", i.Clock, i.BootTime, i.Uptime)
	}
	t.Logf("uptime %v (%s), memory %+v, taint %+v, lockdown %s, %s, %s, cgroups %s, LSMs %v", i.Uptime, said["uptime"], i.Memory, i.Taint, i.Lockdown, i.CPUModel, i.OSName, i.CgroupVersion, i.LSMs)
	return i
}
