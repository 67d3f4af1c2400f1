package linux

import "github.com/vantage-vmi/vantage/hypervisor"

// Bounds of what other records of tasks may hold.
const (
	viewMaxCPUs    = 8192    // NR_CPUS, as CONFIG_MAXSMP has it
	viewMaxSets    = 1 << 16 // css_sets
	viewHashSize   = 128     // css_set_table: 1 << CSS_SET_HASH_BITS (kernel/cgroup/cgroup.c)
	viewRTPrios    = 100     // MAX_RT_PRIO (include/linux/sched/prio.h)
	viewMaxQueued  = 1 << 16 // tasks that wait on one CPU
	viewDeadlines  = 1 << 12 // of them, those with deadlines
	viewListTries  = 3       // of one list of a live guest
	taskNew        = 0x800   // TASK_NEW: forked, and not yet everywhere
	exitDead       = 0x10    // EXIT_DEAD: on its way out of all records
	viewListHeads  = 3       // lists of tasks in a css_set
	viewPointerLen = 8
)

// viewFacts is where the kernel's records of tasks other than its list and its
// index lie.
type viewFacts struct {
	// In task_struct: its place in each record.
	cgNode, cfsNode, rtNode, dlNode, scxNode field
	// In struct css_set: its lists of tasks, and its own place in the table.
	setTasks, setMoving, setDying, setHash field
	setSpan                                span
	// In struct rq.
	rqCurr, rqIdle, rqCFS, rqRTBits, rqRT, rqDL, rqSCX field
	rqSpan                                             span
	rqSize                                             uint64
	rbRight, rbLeft                                    field
	runqueues, perCPU, cpuCount                        hypervisor.VirtAddr
	setTable, setsUnused                               hypervisor.VirtAddr
}

// All are of need may: a kernel without one has a view less.
func (f *viewFacts) facts() []fact {
	return []fact{
		{&f.cgNode, 16, may, []string{"task_struct.cg_list"}},
		{&f.setTasks, 16, may, []string{"css_set.tasks"}},
		{&f.setMoving, 16, may, []string{"css_set.mg_tasks"}},
		{&f.setDying, 16, may, []string{"css_set.dying_tasks"}}, // since 5.2
		{&f.setHash, 16, may, []string{"css_set.hlist"}},

		{&f.cfsNode, 16, may, []string{"task_struct.se.group_node"}},
		{&f.rtNode, 16, may, []string{"task_struct.rt.run_list"}},
		{&f.dlNode, 0, may, []string{"task_struct.dl.rb_node"}},
		{&f.scxNode, 16, may, []string{"task_struct.scx.runnable_node"}}, // since 6.12
		{&f.rqCurr, 8, may, []string{"rq.curr"}},
		{&f.rqIdle, 8, may, []string{"rq.idle"}},
		{&f.rqCFS, 16, may, []string{"rq.cfs_tasks"}}, // CONFIG_SMP
		{&f.rqRTBits, 16, may, []string{"rq.rt.active.bitmap"}},
		{&f.rqRT, 0, may, []string{"rq.rt.active.queue"}},
		{&f.rqDL, 8, may, []string{"rq.dl.root.rb_root.rb_node"}},
		{&f.rqSCX, 16, may, []string{"rq.scx.runnable_list"}},
		{&f.rbRight, 8, may, []string{"rb_node.rb_right"}},
		{&f.rbLeft, 8, may, []string{"rb_node.rb_left"}},
	}
}

func (f *viewFacts) symbols() []symbol {
	return []symbol{
		{&f.runqueues, may, []string{"runqueues"}},
		{&f.perCPU, may, []string{"__per_cpu_offset"}},
		{&f.cpuCount, may, []string{"nr_cpu_ids"}},
		{&f.setTable, may, []string{"css_set_table"}},
		{&f.setsUnused, may, []string{"use_task_css_set_links"}}, // until 5.4: 0 while no one needs the lists
	}
}

func (f *viewFacts) finish(t types) {
	f.setSpan = spanOf(f.setTasks, f.setMoving, f.setDying)
	f.rqSpan = spanOf(f.rqCurr, f.rqIdle, f.rqRTBits, f.rqDL)
	if n, err := t.Size("rq"); err == nil {
		f.rqSize = min(n, maxOffset)
	}
	if f.rqRT.size < viewRTPrios*16 {
		f.rqRT.ok = false
	}
}

// hasSets reports whether tasks can be found by their control groups.
func (f *viewFacts) hasSets() bool { return f.cgNode.ok && f.setTasks.ok && f.setMoving.ok }

// hasQueues reports whether tasks can be found by the CPU that runs them.
func (f *viewFacts) hasQueues() bool {
	return f.runqueues != 0 && f.perCPU != 0 && f.cpuCount != 0 && f.rqCurr.ok
}
