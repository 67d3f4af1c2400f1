package linux

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// types is where members of the kernel's types lie: *profile.Types.
type types interface {
	Field(path string) (profile.Field, error)
	Size(typeName string) (uint64, error)
	EnumValue(enum, name string) (int64, error)
}

// field is where a fact lies in its structure. A field that this kernel has
// not is not ok, and reads as 0.
type field struct {
	off, size uint64
	ok        bool
}

// span is the part of a structure that is read in one go: [lo, hi).
type span struct{ lo, hi uint64 }

// spanOf returns the least span that holds all of fs that are there.
func spanOf(fs ...field) span {
	s := span{lo: ^uint64(0)}
	for _, f := range fs {
		if f.ok {
			s.lo, s.hi = min(s.lo, f.off), max(s.hi, f.off+f.size)
		}
	}
	if s.hi == 0 {
		return span{}
	}
	return s
}

// Bounds on what the guest's type information may say: a structure's facts lie
// within maxOffset of its start (task_struct, the largest, takes up to about
// 16 KiB), a field that is copied is no larger than maxField.
const (
	maxOffset = 64 << 10
	maxField  = 4 << 10
)

// need says what a fact's absence means.
type need uint8

const (
	must need = iota // without it there is no list of processes
	want             // told in the coverage of what would show it
	may              // kernels without it exist, and have no such fact
)

// fact is one line of the table of where facts are found: a field, its size in
// bytes (0: the member's own), and the members that it was ever found in, the
// newest name first. The first that the kernel has is taken.
type fact struct {
	to   *field
	size uint64
	need need
	from []string
}

// layout is where everything lies in one kernel.
type layout struct {
	task     taskFields
	pid      pidFields
	xa       xaFields
	cred     credFields
	mm       mmFields
	vma      vmaFields
	maple    mapleFields
	fs       fsFields
	cgroup   cgroupFields
	ns       nsFields
	module   moduleFields
	uts      utsFields
	clock    clockFields
	missing  []string // facts of need want that this kernel has not
	problems []error  // members that are there but cannot be believed
}

type taskFields struct {
	tasks, pid, tgid, comm, flags, state, exitState         field
	realParent, groupLeader, threadNode, signal, threadPID  field
	realCred, mm, nsproxy, cgroups, startBoottime, pidLinks field
	span                                                    span
	threadHead                                              field // in signal_struct
	linkSize                                                uint64
	typePID, typeTGID                                       uint64
}

type pidFields struct {
	level, tasks, numbers, nr, ns field // nr and ns in struct upid
	upidSize                      uint64
	span                          span
	idrHead, idrBase              field // in struct pid_namespace
}

type credFields struct {
	uid, gid, euid, egid, userNS field
	span                         span
}

type nsFields struct {
	// In struct nsproxy.
	uts, ipc, mnt, net, cgroup, time field
	span                             span
	// Of ns_common.inum, in each kind of namespace.
	utsInum, ipcInum, mntInum, netInum, cgroupInum, timeInum, pidInum, userInum field
}

type utsFields struct {
	sysname, nodename, release, version, machine, domainname field
	span                                                     span
}

// newLayout looks every fact up. It returns an error that wraps
// profile.ErrNoType when one of need must is missing.
func newLayout(t types) (*layout, error) {
	l := &layout{}
	if err := l.fill(t, l.facts()); err != nil {
		return nil, err
	}
	l.task.linkSize = 16
	l.task.typePID, l.task.typeTGID = 0, 1
	for name, to := range map[string]*uint64{"PIDTYPE_PID": &l.task.typePID, "PIDTYPE_TGID": &l.task.typeTGID} {
		if v, err := t.EnumValue("pid_type", name); err == nil && v >= 0 && v < 8 {
			*to = uint64(v)
		}
	}
	l.pid.upidSize = 16
	if n, err := t.Size("upid"); err == nil && n >= 16 && n <= 256 {
		l.pid.upidSize = n
	}
	l.xa.slotLen = l.xa.slots.size / 8
	l.maple.finish(t)
	l.module.finish(t)
	l.clock.finish(t)
	l.fs.finish()
	l.spans()
	return l, nil
}

// facts is the table. What it knows of versions is only in its comments.
func (l *layout) facts() []fact {
	t, p, c, m := &l.task, &l.pid, &l.cred, &l.mm
	n, u := &l.ns, &l.uts
	facts := []fact{
		{&t.tasks, 16, must, []string{"task_struct.tasks"}},
		{&t.pid, 4, must, []string{"task_struct.pid"}},
		{&t.tgid, 4, must, []string{"task_struct.tgid"}},
		{&t.comm, 16, must, []string{"task_struct.comm"}},
		{&t.flags, 4, want, []string{"task_struct.flags"}},
		{&t.state, 0, want, []string{"task_struct.__state", "task_struct.state"}}, // renamed in 5.14
		{&t.exitState, 4, want, []string{"task_struct.exit_state"}},
		{&t.realParent, 8, want, []string{"task_struct.real_parent"}},
		{&t.groupLeader, 8, want, []string{"task_struct.group_leader"}},
		{&t.threadNode, 16, want, []string{"task_struct.thread_node"}},
		{&t.signal, 8, want, []string{"task_struct.signal"}},
		{&t.threadHead, 16, want, []string{"signal_struct.thread_head"}},
		{&t.threadPID, 8, want, []string{"task_struct.thread_pid"}},
		{&t.pidLinks, 0, want, []string{"task_struct.pid_links"}},
		{&t.realCred, 8, want, []string{"task_struct.real_cred"}},
		{&t.mm, 8, want, []string{"task_struct.mm"}},
		{&t.nsproxy, 8, want, []string{"task_struct.nsproxy"}},
		{&t.cgroups, 8, may, []string{"task_struct.cgroups"}},                                              // CONFIG_CGROUPS
		{&t.startBoottime, 8, want, []string{"task_struct.start_boottime", "task_struct.real_start_time"}}, // renamed in 5.5

		{&p.level, 4, want, []string{"pid.level"}},
		{&p.tasks, 0, want, []string{"pid.tasks"}},
		{&p.numbers, 0, want, []string{"pid.numbers"}},
		{&p.nr, 4, want, []string{"upid.nr"}},
		{&p.ns, 8, want, []string{"upid.ns"}},
		{&p.idrHead, 8, want, []string{"pid_namespace.idr.idr_rt.xa_head"}},
		{&p.idrBase, 4, want, []string{"pid_namespace.idr.idr_base"}},
		{&l.xa.shift, 1, want, []string{"xa_node.shift"}},
		{&l.xa.offset, 1, want, []string{"xa_node.offset"}},
		{&l.xa.slots, 0, want, []string{"xa_node.slots"}},

		{&c.uid, 4, want, []string{"cred.uid"}},
		{&c.gid, 4, want, []string{"cred.gid"}},
		{&c.euid, 4, want, []string{"cred.euid"}},
		{&c.egid, 4, want, []string{"cred.egid"}},
		{&c.userNS, 8, want, []string{"cred.user_ns"}},

		{&n.uts, 8, want, []string{"nsproxy.uts_ns"}},
		{&n.ipc, 8, want, []string{"nsproxy.ipc_ns"}},
		{&n.mnt, 8, want, []string{"nsproxy.mnt_ns"}},
		{&n.net, 8, want, []string{"nsproxy.net_ns"}},
		{&n.cgroup, 8, may, []string{"nsproxy.cgroup_ns"}},
		{&n.time, 8, may, []string{"nsproxy.time_ns"}}, // since 5.6
		{&n.utsInum, 4, want, []string{"uts_namespace.ns.inum"}},
		{&n.ipcInum, 4, want, []string{"ipc_namespace.ns.inum"}},
		{&n.mntInum, 4, want, []string{"mnt_namespace.ns.inum"}},
		{&n.netInum, 4, want, []string{"net.ns.inum"}},
		{&n.cgroupInum, 4, may, []string{"cgroup_namespace.ns.inum"}},
		{&n.timeInum, 4, may, []string{"time_namespace.ns.inum"}},
		{&n.pidInum, 4, want, []string{"pid_namespace.ns.inum"}},
		{&n.userInum, 4, want, []string{"user_namespace.ns.inum"}},

		{&u.sysname, 65, may, []string{"uts_namespace.name.sysname"}},
		{&u.nodename, 65, want, []string{"uts_namespace.name.nodename"}},
		{&u.release, 65, want, []string{"uts_namespace.name.release"}},
		{&u.version, 65, want, []string{"uts_namespace.name.version"}},
		{&u.machine, 65, want, []string{"uts_namespace.name.machine"}},
		{&u.domainname, 65, want, []string{"uts_namespace.name.domainname"}},

		{&m.pgd, 8, want, []string{"mm_struct.pgd"}},
		{&m.exeFile, 8, want, []string{"mm_struct.exe_file"}},
		{&m.argStart, 8, want, []string{"mm_struct.arg_start"}},
		{&m.argEnd, 8, want, []string{"mm_struct.arg_end"}},
		{&m.envEnd, 8, want, []string{"mm_struct.env_end"}},
		{&m.startBrk, 8, want, []string{"mm_struct.start_brk"}},
		{&m.brk, 8, want, []string{"mm_struct.brk"}},
		{&m.startStack, 8, want, []string{"mm_struct.start_stack"}},
		{&m.vdso, 8, may, []string{"mm_struct.context.vdso"}},
		{&m.mapRoot, 8, may, []string{"mm_struct.mm_mt.ma_root"}}, // since 6.1
		{&m.mapList, 8, may, []string{"mm_struct.mmap"}},          // until 6.0
	}
	facts = append(facts, l.vma.facts()...)
	facts = append(facts, l.maple.facts()...)
	facts = append(facts, l.fs.facts()...)
	facts = append(facts, l.cgroup.facts()...)
	facts = append(facts, l.module.facts()...)
	return append(facts, l.clock.facts()...)
}

// fill looks facts up in t.
func (l *layout) fill(t types, facts []fact) error {
	lost, missing, problems := lookUpFacts(t, facts)
	l.missing, l.problems = missing, problems
	if len(lost) > 0 {
		return fmt.Errorf("layout of processes: %w: %q", profile.ErrNoType, lost)
	}
	if !l.mm.mapRoot.ok && !l.mm.mapList.ok {
		l.missing = append(l.missing, "mm_struct.mm_mt")
	}
	slices.Sort(l.missing)
	return nil
}

func findFact(t types, f fact) (field, error) {
	last := fmt.Errorf("%w: %q", profile.ErrNoType, f.from)
	for _, path := range f.from {
		got, err := t.Field(path)
		if err != nil {
			if !errors.Is(err, profile.ErrNoType) {
				last = fmt.Errorf("layout of %s: %w", path, err)
			}
			continue
		}
		size := got.Size
		if f.size != 0 {
			if got.Size < f.size && got.Len != 0 || got.Len == 0 && got.Size != f.size {
				last = fmt.Errorf("layout of %s: %d bytes, want %d: %w", path, got.Size, f.size, ErrTorn)
				continue
			}
			size = f.size
		}
		if got.Offset > maxOffset || size > maxField || got.BitSize != 0 {
			last = fmt.Errorf("layout of %s: offset %d, size %d: %w", path, got.Offset, size, ErrTorn)
			continue
		}
		return field{off: got.Offset, size: size, ok: true}, nil
	}
	return field{}, last
}

// spans sets what is read of each structure.
func (l *layout) spans() {
	t := &l.task
	t.span = spanOf(t.tasks, t.pid, t.tgid, t.comm, t.flags, t.state, t.exitState, t.realParent, t.groupLeader,
		t.threadNode, t.signal, t.threadPID, t.realCred, t.mm, t.nsproxy, t.cgroups, t.startBoottime)
	l.pid.span = spanOf(l.pid.level, l.pid.tasks)
	l.xa.span = spanOf(l.xa.shift, l.xa.offset, l.xa.slots)
	l.cred.span = spanOf(l.cred.uid, l.cred.gid, l.cred.euid, l.cred.egid, l.cred.userNS)
	n, u := &l.ns, &l.uts
	n.span = spanOf(n.uts, n.ipc, n.mnt, n.net, n.cgroup, n.time)
	u.span = spanOf(u.sysname, u.nodename, u.release, u.version, u.machine, u.domainname)
	l.mm.spans()
	l.vma.spans()
	l.fs.spans()
	l.cgroup.spans()
	l.module.spans()
}
