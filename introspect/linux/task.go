package linux

import (
	"errors"
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// maxPID is the largest pid that a kernel gives out (include/linux/threads.h:
// PID_MAX_LIMIT), and so how many tasks there can be.
const maxPID = 4 << 20

// pfKthread marks a kernel thread (include/linux/sched.h: PF_KTHREAD).
const pfKthread = 0x0020_0000

// task is what a listing needs of a task_struct.
type task struct {
	addr                            hypervisor.VirtAddr
	pid, tgid                       int32
	comm                            [16]byte
	flags, exitState                uint32
	state                           uint64
	startBoottime                   uint64 // ns since boot, suspended time included
	mm, cred, nsproxy, cgroups      hypervisor.VirtAddr
	realParent, groupLeader, signal hypervisor.VirtAddr
	threadPID                       hypervisor.VirtAddr
	tasks, threadNode               links
}

// sameAs reports whether t and u are one task at two moments.
func (t *task) sameAs(u *task) bool {
	return t.addr == u.addr && t.pid == u.pid && t.startBoottime == u.startBoottime
}

// taskScan reads task_structs, one after the other.
type taskScan struct {
	buf  []byte
	left int // entries of lists of threads that may still be met
}

var errNotATask = errors.New("not a task_struct")

// read reads the task_struct at addr. It returns an error when what lies there
// cannot be one.
func (s *taskScan) read(r *reader, f *taskFields, addr hypervisor.VirtAddr) (task, error) {
	if err := r.check(addr, addr, 8); err != nil {
		return task{}, err
	}
	o, buf, err := r.object(s.buf, addr, f.span)
	s.buf = buf
	if err != nil {
		return task{}, err
	}
	t := task{
		addr: addr, pid: o.int32(f.pid), tgid: o.int32(f.tgid),
		flags: uint32(o.uint(f.flags)), exitState: uint32(o.uint(f.exitState)), state: o.uint(f.state),
		startBoottime: o.uint(f.startBoottime),
		mm:            o.ptr(f.mm), cred: o.ptr(f.realCred), nsproxy: o.ptr(f.nsproxy), cgroups: o.ptr(f.cgroups),
		realParent: o.ptr(f.realParent), groupLeader: o.ptr(f.groupLeader), signal: o.ptr(f.signal),
		threadPID: o.ptr(f.threadPID),
		tasks:     o.links(f.tasks), threadNode: o.links(f.threadNode),
	}
	copy(t.comm[:], o.bytes(f.comm))
	if t.pid < 0 || t.pid > maxPID || t.tgid < 0 || t.tgid > maxPID {
		return t, fmt.Errorf("%w: %w: pid %d, tgid %d", ErrTorn, errNotATask, t.pid, t.tgid)
	}
	return t, nil
}

// coherent returns why t contradicts itself. A task that its neighbours in a
// list know may still be one: a guest that lies, or that is in the middle of
// something, is no reason to leave a process out.
func (t *task) coherent(r *reader, f *taskFields) error {
	if f.groupLeader.ok && (r.check(t.addr, t.groupLeader, 8) != nil || (t.pid == t.tgid) != (t.groupLeader == t.addr)) {
		return fmt.Errorf("%w: pid %d, tgid %d, group leader %#x", ErrTorn, t.pid, t.tgid, uint64(t.groupLeader))
	}
	return nil
}

// State bits (include/linux/sched.h) and the letters that fs/proc/array.c
// prints for them.
const (
	taskReport       = 0x7f // TASK_REPORT, exit states included
	taskIdle         = 0x402
	taskRTLockWait   = 0x1000
	taskFrozen       = 0x8000
	taskStateLetters = "RSDTtXZP"
)

// letter returns the state as ps prints it.
func (t *task) letter() string {
	s := t.state
	if s&taskIdle == taskIdle {
		return "I"
	}
	if s&(taskRTLockWait|taskFrozen) != 0 && s&taskReport == 0 {
		return "D"
	}
	s = (s | uint64(t.exitState)) & taskReport
	n := 0
	for ; s != 0; s >>= 1 {
		n++
	}
	return taskStateLetters[n : n+1]
}
