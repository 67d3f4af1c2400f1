package linux

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// details fills in what a task points to. It keeps what tasks share, so it is
// for one listing, and for one goroutine.
type details struct {
	g        *Guest
	ctx      context.Context
	cov      *introspect.Coverage
	live     bool
	boot     time.Time // zero: not known
	buf      []byte
	paths    *paths
	cgroups  *cgroups
	tgids    map[hypervisor.VirtAddr]int32
	creds    map[hypervisor.VirtAddr]identity
	proxies  map[hypervisor.VirtAddr]Namespaces
	inums    map[hypervisor.VirtAddr]uint32
	programs map[hypervisor.VirtAddr]program // by mm
	text     int                             // bytes of arguments that may still be kept
}

// identity is what a cred says.
type identity struct {
	uid, gid, euid, egid int
	userNS               uint32
}

// program is what a process runs.
type program struct {
	exe  string
	args []string
}

// maxArgsText bounds the arguments of all processes of one listing together.
const maxArgsText = 64 << 20

func (g *Guest) newDetails(ctx context.Context, cov *introspect.Coverage) *details {
	d := &details{
		g: g, ctx: ctx, cov: cov, live: hypervisor.IsLive(g.mem),
		paths: newPaths(&g.r, &g.lay.fs), cgroups: newCgroups(&g.r, &g.lay.cgroup),
		tgids: map[hypervisor.VirtAddr]int32{}, creds: map[hypervisor.VirtAddr]identity{},
		proxies: map[hypervisor.VirtAddr]Namespaces{}, inums: map[hypervisor.VirtAddr]uint32{},
		programs: map[hypervisor.VirtAddr]program{}, text: maxArgsText,
	}
	boot, err := g.bootTime()
	if err != nil {
		cov.Add("boot time", g.sym.timekeeper, err)
	}
	d.boot = boot
	for _, m := range g.lay.missing {
		cov.Add("layout", 0, fmt.Errorf("this kernel's types have no %s", m))
	}
	for _, err := range g.lay.problems {
		cov.Add("layout", 0, err)
	}
	return d
}

// process makes t a Process. ok is false when the task is there no more. On a
// live guest, what failed is tried again on the task as it is then.
func (d *details) process(s *taskScan, t task) (p Process, ok bool) {
	rounds := 1
	if d.live {
		rounds = liveRounds
	}
	var probs []problem
	for range rounds {
		probs = probs[:0]
		p = d.fill(s, &t, func(what string, at hypervisor.VirtAddr, err error) {
			probs = append(probs, problem{what, at, err})
		})
		if len(probs) == 0 || d.ctx.Err() != nil {
			break
		}
		if !d.live {
			break
		}
		now, err := s.read(&d.g.r, &d.g.lay.task, t.addr)
		if err != nil || !now.sameAs(&t) {
			return p, false
		}
		// Forget what was kept of it: it may be what was torn.
		delete(d.programs, p.mm)
		delete(d.creds, t.cred)
		delete(d.proxies, t.nsproxy)
		t = now
	}
	for _, pr := range probs {
		d.cov.Add(fmt.Sprintf("%s of pid %d", pr.what, p.PID), pr.at, pr.err)
	}
	return p, true
}

func (d *details) fill(s *taskScan, t *task, bad func(what string, at hypervisor.VirtAddr, err error)) Process {
	p := Process{
		PID: int(t.pid), TGID: int(t.tgid), Comm: cString(t.comm[:]), State: t.letter(),
		UID: NoID, GID: NoID, EUID: NoID, EGID: NoID,
		// A task with memory of its own is no kernel thread, whatever it says
		// (one that borrows a process's for a moment may be told as such).
		Kernel: t.flags&pfKthread != 0 && t.mm == 0, KernelAddress: t.addr,
	}
	if !d.boot.IsZero() && d.g.lay.task.startBoottime.ok && t.startBoottime < uint64(maxUptime) {
		p.StartTime = d.boot.Add(time.Duration(t.startBoottime))
	}
	var err error
	if p.PPID, err = d.parent(t); err != nil {
		bad("parent", t.realParent, err)
	}
	id, err := d.identity(t.cred)
	if err != nil {
		bad("credentials", t.cred, err)
	}
	p.UID, p.GID, p.EUID, p.EGID = id.uid, id.gid, id.euid, id.egid
	if p.Namespaces, err = d.namespaces(t); err != nil {
		bad("namespaces", t.nsproxy, err)
	}
	p.Namespaces.User = id.userNS
	cg := d.cgroups.of(d.ctx, t.cgroups)
	if cg.err != nil {
		bad("control group", t.cgroups, cg.err)
	}
	p.Cgroup, p.Container, p.ContainerRuntime, p.Pod = cg.path, cg.container.ID, cg.container.Runtime, cg.container.Pod
	if p.Kernel {
		return p
	}
	if p.mm, err = d.g.mmOfTask(d.ctx, s, t); err != nil {
		bad("threads", t.signal, err)
	}
	if p.mm == 0 {
		return p
	}
	img, errs := d.program(p.mm)
	for _, e := range errs {
		bad(e.what, e.at, e.err)
	}
	p.Exe, p.Args = img.exe, img.args
	return p
}

// parent returns the process that t's real_parent belongs to.
func (d *details) parent(t *task) (int, error) {
	f := &d.g.lay.task
	if !f.realParent.ok || t.realParent == 0 {
		return 0, nil
	}
	if tgid, ok := d.tgids[t.realParent]; ok {
		return int(tgid), nil
	}
	if err := d.g.r.check(t.addr, t.realParent, 8); err != nil {
		return 0, err
	}
	tgid, err := d.g.r.u32(t.realParent + hypervisor.VirtAddr(f.tgid.off))
	if err != nil {
		return 0, err
	}
	if tgid > maxPID {
		return 0, fmt.Errorf("%w: tgid %d", ErrTorn, int32(tgid))
	}
	d.tgids[t.realParent] = int32(tgid)
	return int(tgid), nil
}

func (d *details) identity(cred hypervisor.VirtAddr) (identity, error) {
	if id, ok := d.creds[cred]; ok {
		return id, nil
	}
	none := identity{uid: NoID, gid: NoID, euid: NoID, egid: NoID}
	if !d.g.lay.task.realCred.ok {
		return none, nil // told as a missing member
	}
	if err := d.g.r.check(cred, cred, 8); err != nil {
		return none, err
	}
	f := &d.g.lay.cred
	o, buf, err := d.g.r.object(d.buf, cred, f.span)
	d.buf = buf
	if err != nil {
		return none, err
	}
	number := func(x field) int {
		if !x.ok {
			return NoID
		}
		return int(int64(o.uint(x)))
	}
	id := identity{uid: number(f.uid), gid: number(f.gid), euid: number(f.euid), egid: number(f.egid)}
	if ns := o.ptr(f.userNS); ns != 0 {
		id.userNS, err = d.inum(ns, d.g.lay.ns.userInum)
	}
	if err == nil {
		d.creds[cred] = id
	}
	return id, err
}

// inum returns the inode number of the namespace at ns, whose number is at f.
func (d *details) inum(ns hypervisor.VirtAddr, f field) (uint32, error) {
	if ns == 0 || !f.ok {
		return 0, nil
	}
	at := ns + hypervisor.VirtAddr(f.off)
	if n, ok := d.inums[at]; ok {
		return n, nil
	}
	if err := d.g.r.check(ns, ns, 8); err != nil {
		return 0, err
	}
	n, err := d.g.r.u32(at)
	if err == nil {
		d.inums[at] = n
	}
	return n, err
}

// namespaces returns t's namespaces but for the user namespace, which its
// credentials have. A task that is about to end has none.
func (d *details) namespaces(t *task) (Namespaces, error) {
	var ns Namespaces
	var errs []error
	if t.nsproxy != 0 {
		var err error
		if ns, err = d.proxy(t.nsproxy); err != nil {
			errs = append(errs, err)
		}
	}
	if t.threadPID != 0 {
		n, err := d.pidNamespace(t.threadPID)
		ns.PID = n
		if err != nil {
			errs = append(errs, err)
		}
	}
	return ns, errors.Join(errs...)
}

func (d *details) proxy(addr hypervisor.VirtAddr) (Namespaces, error) {
	if ns, ok := d.proxies[addr]; ok {
		return ns, nil
	}
	var ns Namespaces
	if err := d.g.r.check(addr, addr, 8); err != nil {
		return ns, err
	}
	f := &d.g.lay.ns
	o, buf, err := d.g.r.object(d.buf, addr, f.span)
	d.buf = buf
	if err != nil {
		return ns, err
	}
	var errs []error
	for _, k := range [...]struct {
		to       *uint32
		at, inum field
	}{
		{&ns.UTS, f.uts, f.utsInum},
		{&ns.IPC, f.ipc, f.ipcInum},
		{&ns.Mnt, f.mnt, f.mntInum},
		{&ns.Net, f.net, f.netInum},
		{&ns.Cgroup, f.cgroup, f.cgroupInum},
		{&ns.Time, f.time, f.timeInum},
	} {
		if *k.to, err = d.inum(o.ptr(k.at), k.inum); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		d.proxies[addr] = ns
	}
	return ns, errors.Join(errs...)
}

// maxPIDLevels: PID namespaces nest 32 deep (include/linux/pid_namespace.h:
// MAX_PID_NS_LEVEL).
const maxPIDLevels = 32

// pidNamespace returns the innermost PID namespace of the struct pid at addr.
func (d *details) pidNamespace(addr hypervisor.VirtAddr) (uint32, error) {
	f := &d.g.lay.pid
	if !f.level.ok || !f.numbers.ok || !f.ns.ok {
		return 0, nil
	}
	if err := d.g.r.check(addr, addr, 8); err != nil {
		return 0, err
	}
	level, err := d.g.r.u32(addr + hypervisor.VirtAddr(f.level.off))
	if err != nil {
		return 0, err
	}
	if level > maxPIDLevels {
		return 0, fmt.Errorf("%w: level %d", ErrTorn, level)
	}
	ns, err := d.g.r.ptr(addr + hypervisor.VirtAddr(f.numbers.off+uint64(level)*d.g.lay.pid.upidSize+f.ns.off))
	if err != nil {
		return 0, err
	}
	return d.inum(ns, d.g.lay.ns.pidInum)
}
