package linux

// coreTable is where the facts of an ELF core lie that a listing of processes
// does not need.
type coreTable struct {
	stack, onCPU, cpu           field // in task_struct
	fsBase, gsBase              field // in task_struct.thread
	es, ds, fsIndex, gsIndex    field
	pending, blocked            field // sets of signals
	taskSpan                    span
	auxv                        field // in mm_struct
	regsSize                    uint64
	regsIP, regsCS, regsSS      field // in struct pt_regs
	regsFlags, regsSP, regsOrig field
}

func (c *coreTable) facts() []fact {
	return []fact{
		{&c.stack, 8, want, []string{"task_struct.stack"}},
		{&c.onCPU, 0, want, []string{"task_struct.on_cpu"}},
		{&c.cpu, 4, want, []string{"task_struct.thread_info.cpu", "task_struct.cpu"}}, // moved in 5.16
		{&c.fsBase, 8, want, []string{"task_struct.thread.fsbase"}},
		{&c.gsBase, 8, want, []string{"task_struct.thread.gsbase"}},
		{&c.es, 2, may, []string{"task_struct.thread.es"}},
		{&c.ds, 2, may, []string{"task_struct.thread.ds"}},
		{&c.fsIndex, 2, may, []string{"task_struct.thread.fsindex"}},
		{&c.gsIndex, 2, may, []string{"task_struct.thread.gsindex"}},
		{&c.pending, 8, may, []string{"task_struct.pending.signal"}},
		{&c.blocked, 8, may, []string{"task_struct.blocked"}},
		{&c.auxv, 0, want, []string{"mm_struct.saved_auxv"}},
		{&c.regsIP, 8, want, []string{"pt_regs.ip"}},
		{&c.regsCS, 0, want, []string{"pt_regs.cs"}},
		{&c.regsSS, 0, want, []string{"pt_regs.ss"}},
		{&c.regsFlags, 8, want, []string{"pt_regs.flags"}},
		{&c.regsSP, 8, want, []string{"pt_regs.sp"}},
		{&c.regsOrig, 8, want, []string{"pt_regs.orig_ax"}},
	}
}

func (c *coreTable) symbols() []symbol { return nil }

func (c *coreTable) finish(t types) {
	c.taskSpan = spanOf(c.stack, c.onCPU, c.cpu, c.fsBase, c.gsBase, c.es, c.ds, c.fsIndex, c.gsIndex, c.pending, c.blocked)
	c.regsSize = 0
	// ptRegsLen is what user_regs_struct begins with; a kernel with another
	// layout has no registers that are told.
	if n, err := t.Size("pt_regs"); err == nil && n == ptRegsLen && c.regsIP.off == 128 && c.regsSP.off == 152 && c.regsOrig.off == 120 {
		c.regsSize = n
	}
}
