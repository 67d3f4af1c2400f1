package linux

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
	"github.com/vantage-vmi/vantage/introspect/paging"
)

// linkBase is the address that the kernel is linked for: __START_KERNEL_map
// and the default CONFIG_PHYSICAL_START (arch/x86/include/asm/page_types.h).
const linkBase hypervisor.VirtAddr = 0xffff_ffff_8100_0000

// maxCommandLine bounds the kernel's command line: COMMAND_LINE_SIZE is 2048,
// and a boot configuration may add 32 KiB.
const maxCommandLine = 64 << 10

// Info is what is known of the guest as a whole.
type Info struct {
	OS       string `json:"os"`      // "linux"
	Release  string `json:"release"` // as uname -r
	Version  string `json:"version"` // as uname -v
	Banner   string `json:"banner"`  // as /proc/version
	BuildID  string `json:"build_id"`
	Arch     string `json:"arch"` // as uname -m
	Hostname string `json:"hostname"`
	Domain   string `json:"domain"` // of NIS; "(none)" mostly
	// CommandLine is that of the boot, as /proc/cmdline.
	CommandLine string `json:"command_line"`
	// BootTime is by the guest's own clock; zero where not known.
	BootTime time.Time `json:"boot_time,omitzero"`
	// KASLROffset is by how much the kernel's virtual address differs from
	// the one it was linked for; 0 without KASLR.
	KASLROffset     uint64              `json:"kaslr_offset"`
	VirtBase        hypervisor.VirtAddr `json:"virt_base"`
	PhysBase        hypervisor.PhysAddr `json:"phys_base"`
	PageTableLevels int                 `json:"page_table_levels"`
	CPUs            int                 `json:"cpus"` // online; 0: not known
	CPUModel        string              `json:"cpu_model"`
	MemoryBytes     uint64              `json:"memory_bytes"` // of the VM
	// OSName and OSVersion are PRETTY_NAME and VERSION_ID of os-release(5), when
	// the guest has that file in its page cache.
	OSName    string `json:"os_name"`
	OSVersion string `json:"os_version"`
	// Clock is the guest's time of day, in UTC, and Uptime how long it is up,
	// suspended time included: both as of its timekeeper's last update, which in
	// an idle guest may be some seconds ago.
	Clock        time.Time     `json:"clock,omitzero"`
	Uptime       time.Duration `json:"-"`             // in JSON: uptime_seconds
	LoadAverages [3]float64    `json:"load_averages"` // of 1, 5 and 15 minutes
	Memory       MemoryUse     `json:"memory"`
	Taint        Taint         `json:"taint"`
	LSMs         []string      `json:"lsms"` // security modules that are on, in their order
	// Lockdown is the level of kernel_lockdown(7): "none", "integrity",
	// "confidentiality"; empty for a kernel without it.
	Lockdown string `json:"lockdown"`
	// CgroupVersion says which control groups are mounted: "v1", "v2", "hybrid"
	// for both; empty for none.
	CgroupVersion string               `json:"cgroup_version"`
	Coverage      *introspect.Coverage `json:"-"`
}

// MarshalJSON writes i with its strings made valid: see the package comment.
func (i Info) MarshalJSON() ([]byte, error) {
	type plain Info
	q := struct {
		plain
		UptimeSeconds float64 `json:"uptime_seconds"`
	}{plain(i), i.Uptime.Seconds()}
	for _, s := range []*string{
		&q.Release, &q.Version, &q.Banner, &q.BuildID, &q.Arch, &q.Hostname, &q.Domain, &q.CommandLine, &q.CPUModel,
		&q.OSName, &q.OSVersion,
	} {
		*s = jsonText(*s)
	}
	q.LSMs = make([]string, len(i.LSMs))
	for n, s := range i.LSMs {
		q.LSMs[n] = jsonText(s)
	}
	return json.Marshal(q)
}

// Info reads what is known of the guest as a whole. What could not be read is
// empty, and told in the Coverage; an error comes only from ctx.
func (g *Guest) Info(ctx context.Context) (Info, error) {
	if err := ctx.Err(); err != nil {
		return Info{}, err
	}
	g.rounds() // a new look
	k := g.kernel
	cov := &introspect.Coverage{}
	i := Info{
		OS: "linux", Release: k.Release, Banner: k.Banner, BuildID: k.BuildID,
		KASLROffset: uint64(k.VirtBase - linkBase), VirtBase: k.VirtBase, PhysBase: k.PhysBase,
		PageTableLevels: levels(k.Root.Mode), MemoryBytes: hypervisor.TotalSize(g.mem.Ranges()),
		Coverage: cov,
	}
	var err error
	if i.BootTime, err = g.bootTime(); err != nil {
		cov.Add("boot time", g.sym.timekeeper, err)
	}
	if err := g.utsname(&i); err != nil {
		cov.Add("host name", g.sym.initUTSNS, err)
	}
	if i.CommandLine, err = g.commandLine(); err != nil {
		cov.Add("command line", g.sym.commandLine, err)
	}
	if i.CPUs, err = g.onlineCPUs(); err != nil {
		cov.Add("number of CPUs", g.sym.onlineCPUs, err)
	}
	g.state(ctx, &i)
	return i, ctx.Err()
}

func levels(m paging.Mode) int {
	switch m {
	case paging.Mode4Level:
		return 4
	case paging.Mode5Level:
		return 5
	case paging.ModePAE:
		return 3
	}
	return 2
}

// utsname reads the first UTS namespace.
func (g *Guest) utsname(i *Info) error {
	f := &g.lay.uts
	if g.sym.initUTSNS == 0 {
		return errNoSymbol("init_uts_ns")
	}
	o, _, err := g.r.object(nil, g.sym.initUTSNS, f.span)
	if err != nil {
		return err
	}
	i.Hostname, i.Domain = cString(o.bytes(f.nodename)), cString(o.bytes(f.domainname))
	i.Arch, i.Version = cString(o.bytes(f.machine)), cString(o.bytes(f.version))
	return nil
}

func (g *Guest) commandLine() (string, error) {
	if g.sym.commandLine == 0 {
		return "", errNoSymbol("saved_command_line")
	}
	at, err := g.r.ptr(g.sym.commandLine)
	if err != nil {
		return "", err
	}
	return g.r.cstring(at, maxCommandLine)
}

// maxCPUs is the most that a kernel of x86 can have (CONFIG_NR_CPUS).
const maxCPUs = 8192

func (g *Guest) onlineCPUs() (int, error) {
	if g.sym.onlineCPUs == 0 {
		return 0, errNoSymbol("__num_online_cpus")
	}
	n, err := g.r.u32(g.sym.onlineCPUs)
	if err == nil && (n == 0 || n > maxCPUs) {
		return 0, fmt.Errorf("%w: %d CPUs", ErrTorn, n)
	}
	return int(n), err
}
