package linux

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// MemoryUse is how a guest uses its memory, in bytes, as /proc/meminfo has it.
// The kernel adds up what its CPUs counted only now and then: the numbers may be
// off by some hundred KiB for each CPU.
type MemoryUse struct {
	Total     uint64 `json:"total_bytes"` // what the kernel manages
	Free      uint64 `json:"free_bytes"`
	Available uint64 `json:"available_bytes"` // an estimate: for programs, without swapping
	Cached    uint64 `json:"cached_bytes"`    // page cache, block devices' buffers among it
	Shared    uint64 `json:"shared_bytes"`    // tmpfs and shared memory: part of Cached
	Anonymous uint64 `json:"anonymous_bytes"`
	Slab      uint64 `json:"slab_bytes"`
	SwapTotal uint64 `json:"swap_total_bytes"`
	SwapFree  uint64 `json:"swap_free_bytes"`
}

// Taint is what has happened to the kernel that makes its developers distrust
// it.
type Taint struct {
	Mask    uint64   `json:"mask"`    // as /proc/sys/kernel/tainted
	Letters string   `json:"letters"` // as an oops prints them
	Reasons []string `json:"reasons"`
}

// taints are the bits of tainted_mask (include/linux/panic.h: TAINT_…) and what
// they mean (Documentation/admin-guide/tainted-kernels.rst).
var taints = [...]struct {
	letter byte
	reason string
}{
	{'P', "a proprietary module was loaded"},
	{'F', "a module was loaded by force"},
	{'S', "the CPU is out of its specification"},
	{'R', "a module was unloaded by force"},
	{'M', "a machine check happened"},
	{'B', "a page was bad"},
	{'U', "a program asked for it"},
	{'D', "the kernel died: an oops or BUG"},
	{'A', "an ACPI table was overridden"},
	{'W', "the kernel warned"},
	{'C', "a staging driver was loaded"},
	{'I', "a firmware bug was worked around"},
	{'O', "a module from outside the kernel's tree was loaded"},
	{'E', "an unsigned module was loaded"},
	{'L', "a CPU was locked up"},
	{'K', "the kernel was patched live"},
	{'X', "the distribution's own reason"},
	{'T', "built with randomised structures"},
	{'N', "a test was run in the kernel"},
	{'J', "a firmware was changed through fwctl"},
}

func taintOf(mask uint64) Taint {
	t := Taint{Mask: mask, Reasons: []string{}}
	for bit := range 64 {
		switch {
		case mask>>bit&1 == 0:
		case bit < len(taints):
			t.Letters += string(taints[bit].letter)
			t.Reasons = append(t.Reasons, taints[bit].reason)
		default:
			t.Letters += "?"
			t.Reasons = append(t.Reasons, fmt.Sprintf("bit %d, which is not known", bit))
		}
	}
	return t
}

// state fills in what of i changes while the guest runs.
func (g *Guest) state(ctx context.Context, i *Info) {
	cov := i.Coverage
	t, err := tableOf[infoTable](g, cov)
	if err != nil {
		cov.Add("state", 0, err)
		return
	}
	if i.Clock, i.Uptime, err = g.clockNow(t); err != nil {
		cov.Add("clock", g.sym.timekeeper, err)
	}
	if i.LoadAverages, err = g.loadAverages(t); err != nil {
		cov.Add("load", t.avenrun, err)
	}
	if i.Memory, err = g.memoryUse(t); err != nil {
		cov.Add("use of memory", t.nodeStat, err)
	}
	if t.taint != 0 {
		mask, err := g.r.u64(t.taint)
		if err != nil {
			cov.Add("taint", t.taint, err)
		}
		i.Taint = taintOf(mask)
	}
	if i.LSMs, err = g.lsms(t); err != nil {
		cov.Add("security modules", 0, err)
	}
	if i.Lockdown, err = g.lockdown(t); err != nil {
		cov.Add("lockdown", t.lockedDown, err)
	}
	if i.CgroupVersion, err = g.cgroupVersion(t); err != nil {
		cov.Add("control groups", t.cgroupRoots, err)
	}
	if t.cpu != 0 && t.cpuModel.ok {
		b := make([]byte, t.cpuModel.size)
		if err := g.r.full(b, t.cpu+hypervisor.VirtAddr(t.cpuModel.off)); err != nil {
			cov.Add("CPU model", t.cpu, err)
		}
		i.CPUModel = strings.TrimSpace(cString(b))
	}
	i.OSName, i.OSVersion = g.osRelease(ctx)
}

// clockNow returns the guest's time of day and how long it is up, suspended time
// included, as of its timekeeper's last update: that is the last tick of a busy
// guest, and up to some seconds ago in an idle one.
func (g *Guest) clockNow(t *infoTable) (now time.Time, uptime time.Duration, err error) {
	f := &g.lay.clock
	if g.sym.timekeeper == 0 || !t.base.ok || !t.nsec.ok || !t.shift.ok || !f.offsReal.ok || !f.offsBoot.ok {
		return now, 0, errNoClock
	}
	at := hypervisor.VirtAddr(0)
	err = errNoClock
	for _, off := range f.offsets {
		at = g.sym.timekeeper + hypervisor.VirtAddr(off)
		if _, err = g.bootTimeAt(at); err == nil {
			break
		}
	}
	if err != nil {
		return now, 0, err
	}
	sp := spanOf(t.base, t.nsec, t.shift, f.offsReal, f.offsBoot)
	var last, buf []byte
	for range liveRounds {
		var o object
		if o, buf, err = g.r.object(buf, at, sp); err != nil {
			return now, 0, err
		}
		shift := o.uint(t.shift)
		if shift >= 64 {
			return now, 0, fmt.Errorf("%w: a shift of %d", ErrTorn, shift)
		}
		mono := o.uint(t.base) + o.uint(t.nsec)>>shift
		uptime = time.Duration(mono + o.uint(f.offsBoot))
		now = time.Unix(0, int64(mono+o.uint(f.offsReal))).UTC()
		if bytes.Equal(o.data, last) || !hypervisor.IsLive(g.mem) { // else it may be half updated
			break
		}
		last = slices.Clone(o.data)
	}
	if uptime < 0 || uptime > maxUptime {
		return time.Time{}, 0, fmt.Errorf("%w: up for %v", ErrTorn, uptime)
	}
	return now, uptime, nil
}

// Load averages are fixed-point numbers (include/linux/sched/loadavg.h).
const (
	fShift = 11 // FSHIFT
	fixed1 = 1 << fShift
)

// loadAverages returns the averages over 1, 5 and 15 minutes, rounded to 1/100
// as /proc/loadavg prints them.
func (g *Guest) loadAverages(t *infoTable) (load [3]float64, err error) {
	if t.avenrun == 0 {
		return load, nil // told as a missing symbol
	}
	for i := range load {
		n, err := g.r.u64(t.avenrun + hypervisor.VirtAddr(8*i))
		if err != nil {
			return load, err
		}
		n += fixed1 / 200
		load[i] = float64(n>>fShift) + float64(n&(fixed1-1)*100>>fShift)/100
	}
	return load, nil
}

// lsms returns the names of the security modules that are on, as
// /sys/kernel/security/lsm has them.
func (g *Guest) lsms(t *infoTable) ([]string, error) {
	out := []string{}
	if t.lsmNames != 0 {
		at, err := g.r.ptr(t.lsmNames)
		if err != nil || at == 0 {
			return out, err
		}
		s, err := g.r.cstring(at, maxMountText)
		if s != "" {
			out = strings.Split(s, ",")
		}
		return out, err
	}
	if t.lsmIDs == 0 || t.lsmCount == 0 || !t.lsmName.ok {
		return out, nil // a kernel without security modules
	}
	n, err := g.r.u32(t.lsmCount)
	if err != nil {
		return out, err
	}
	const maxLSMs = 64 // MAX_LSM_COUNT is of about 15
	if n > maxLSMs {
		return out, fmt.Errorf("%w: %d modules", ErrTorn, n)
	}
	for i := range n {
		id, err := g.r.ptr(t.lsmIDs + hypervisor.VirtAddr(8*i))
		if err == nil {
			err = g.r.check(t.lsmIDs, id, 8)
		}
		if err != nil {
			return out, err
		}
		at, err := g.r.ptr(id + hypervisor.VirtAddr(t.lsmName.off))
		if err != nil {
			return out, err
		}
		name, err := g.r.cstring(at, nameMax)
		if err != nil {
			return out, err
		}
		out = append(out, name)
	}
	return out, nil
}

// lockdown returns the level of kernel_lockdown(7): "none", "integrity" or
// "confidentiality"; empty for a kernel without it.
func (g *Guest) lockdown(t *infoTable) (string, error) {
	if t.lockedDown == 0 || t.integrity == 0 || t.confidentiality <= t.integrity {
		return "", nil
	}
	v, err := g.r.u64(t.lockedDown)
	if err != nil {
		return "", err
	}
	// It is the greatest reason (an enum, of 4 bytes) until 6.17, and since then
	// a bitmap of all reasons.
	all := func(n uint64) uint64 { return 1<<n - 1 }
	switch {
	case v&all(t.confidentiality) == all(t.confidentiality), uint32(v) == uint32(t.confidentiality):
		return "confidentiality", nil
	case v&all(t.integrity) == all(t.integrity), uint32(v) == uint32(t.integrity):
		return "integrity", nil
	case uint32(v) == 0:
		return "none", nil
	}
	return "", fmt.Errorf("%w: lockdown %#x", ErrTorn, v)
}

// cgroupVersion returns which control groups are mounted: "v1", "v2", "hybrid" for
// both, and empty for none.
func (g *Guest) cgroupVersion(t *infoTable) (string, error) {
	if t.cgroupRoots == 0 || t.cgroupV2 == 0 {
		return "", nil
	}
	roots, err := g.r.u32(t.cgroupRoots) // hierarchies, that of version 2 always among them
	if err != nil {
		return "", err
	}
	var seen [1]byte
	if err := g.r.full(seen[:], t.cgroupV2); err != nil {
		return "", err
	}
	return map[[2]bool]string{
		{false, true}: "v2", {true, false}: "v1", {true, true}: "hybrid",
	}[[2]bool{roots > 1, seen[0] != 0}], nil
}

// osRelease returns what /etc/os-release calls the system, when the guest has
// that file in its page cache.
func (g *Guest) osRelease(ctx context.Context) (name, version string) {
	const most = 16 << 10
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		// That the guest has not read it lately, or has none, is no gap.
		text, _, err := g.ReadCached(ctx, path, most)
		if err != nil {
			continue
		}
		if name, version = parseOSRelease(string(text)); name != "" {
			return name, version
		}
	}
	return "", ""
}

// parseOSRelease returns PRETTY_NAME (or NAME) and VERSION_ID of an
// os-release(5) file.
func parseOSRelease(text string) (name, version string) {
	value := map[string]string{}
	for line := range strings.Lines(text) {
		key, v, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") {
			value[key] = unquoteShell(v)
		}
	}
	name = value["PRETTY_NAME"]
	if name == "" {
		name = value["NAME"]
	}
	return name, value["VERSION_ID"]
}

// unquoteShell undoes the quotes that os-release(5) allows.
func unquoteShell(s string) string {
	if n := len(s); n >= 2 && s[0] == s[n-1] && (s[0] == '"' || s[0] == '\'') {
		quote := s[0]
		s = s[1 : n-1]
		if quote == '\'' {
			return s
		}
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
