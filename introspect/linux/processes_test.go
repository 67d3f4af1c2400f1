package linux

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

func listProcesses(t *testing.T, f *fake, opt ProcessOptions) ProcessList {
	t.Helper()
	l, err := f.guest.Processes(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func pids(l ProcessList, keep func(Process) bool) []int {
	out := []int{}
	for _, p := range l.Processes {
		if keep == nil || keep(p) {
			out = append(out, p.PID)
		}
	}
	return out
}

func isHidden(p Process) bool { return p.Hidden }

func wantPIDs(t *testing.T, what string, got []int, want ...int) {
	t.Helper()
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%s: pids %v, want %v", what, got, want)
	}
}

func TestProcessFields(t *testing.T) {
	f := newFake(t, 3)
	l := listProcesses(t, f, ProcessOptions{})
	if !l.Coverage.Complete() {
		t.Errorf("coverage: %v", l.Coverage.Problems())
	}
	wantPIDs(t, "all", pids(l, nil), 1, 2, 3)
	wantPIDs(t, "hidden", pids(l, isHidden))
	got, err := json.Marshal(l.Processes[1])
	if err != nil {
		t.Fatal(err)
	}
	want := `{"pid":2,"ppid":1,"tgid":2,"uid":1002,"gid":7,"euid":0,"egid":0,"comm":"proc-2","exe":"/usr/bin-2",` +
		`"args":["prog","--flag","a\\xffb","","last"],"start_time":"2023-11-14T22:13:22Z","state":"S","kernel":false,` +
		`"cgroup":"/system.slice/docker-0123456789abcdef.scope","container":"0123456789abcdef","container_runtime":"docker","pod":"",` +
		`"namespaces":{"mnt":102,"pid":4026531836,"net":103,"uts":100,"ipc":101,"user":200,"cgroup":104,"time":105},` +
		`"kernel_address":"` + l.Processes[1].KernelAddress.String() + `","hidden":false,"seen_in":["tasks","pid_index","cgroup"]}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if args := l.Processes[1].Args; args[2] != "a\xffb" {
		t.Errorf("argument %q: the guest's bytes are not kept", args[2])
	}
}

// A guest that breaks its own structures gets a partial result that says so.
func TestProcessesOfALiar(t *testing.T) {
	tasks := func(f *fake, i int) hypervisor.VirtAddr {
		return f.member(f.processes[i-1].task, "task_struct.tasks")
	}
	tests := []struct {
		name         string
		lie          func(f *fake)
		all, hidden  []int
		complete     bool
		problem      error
		withoutTasks []int // those that the list of processes has not
	}{
		{
			name: "unlinked", all: []int{1, 2, 3, 4, 5}, hidden: []int{3}, complete: true, withoutTasks: []int{3},
			lie: func(f *fake) { f.unlink(tasks(f, 3)) },
		},
		{
			name: "missing from the pid index", all: []int{1, 2, 3, 4, 5}, hidden: []int{3}, complete: true,
			lie: func(f *fake) { f.put64(f.member(f.root, "xa_node.slots")+24, 0) },
		},
		{
			name: "cycle", all: []int{1, 2, 3, 4, 5}, problem: ErrCycle,
			lie: func(f *fake) { f.put64(tasks(f, 4), uint64(tasks(f, 2))) },
		},
		{
			name: "cycle and unlinked", all: []int{1, 2, 3, 4, 5}, hidden: []int{3}, withoutTasks: []int{3}, problem: ErrCycle,
			lie: func(f *fake) { f.unlink(tasks(f, 3)); f.put64(tasks(f, 4), uint64(tasks(f, 2))) },
		},
		{
			name: "wild pointer", all: []int{1, 2, 3, 4, 5}, problem: ErrWild,
			lie: func(f *fake) { f.put64(tasks(f, 2), 0x4141414141414141) },
		},
		{
			name: "misaligned pointer", all: []int{1, 2, 3, 4, 5}, problem: ErrWild,
			lie: func(f *fake) { f.put64(tasks(f, 2), uint64(tasks(f, 3))+1) },
		},
		{
			name: "pointer to nowhere", all: []int{1, 2, 3, 4, 5},
			lie: func(f *fake) { f.put64(tasks(f, 2), 0xffff_c900_0000_1000) },
		},
		{
			name: "pointer to something else", all: []int{1, 2, 3, 4, 5},
			lie: func(f *fake) { f.put64(tasks(f, 2), uint64(fakeBase)+0x30000) },
		},
		{
			name: "both ways broken", all: []int{1, 2, 3, 4, 5}, withoutTasks: []int{3}, problem: ErrWild,
			lie: func(f *fake) { f.put64(tasks(f, 2), 8); f.put64(tasks(f, 4)+8, 8) },
		},
		{
			name: "unlinked in one direction", all: []int{1, 2, 3, 4, 5}, hidden: []int{3}, withoutTasks: []int{3}, problem: ErrTorn,
			lie: func(f *fake) { f.put64(tasks(f, 2), uint64(tasks(f, 4))) },
		},
		{
			name: "no pid index", all: []int{1, 2, 3, 4, 5}, problem: ErrWild,
			lie: func(f *fake) { f.set(f.initPIDNS, "pid_namespace.idr.idr_rt.xa_head", 0x4142) },
		},
		{
			name: "empty pid index", all: []int{1, 2, 3, 4, 5}, hidden: []int{1, 2, 3, 4, 5}, complete: true,
			lie: func(f *fake) { f.set(f.initPIDNS, "pid_namespace.idr.idr_rt.xa_head", 0) },
		},
		{
			name: "pid index points to itself", all: []int{1, 2, 3, 4, 5}, problem: ErrTorn,
			lie: func(f *fake) { f.put64(f.member(f.root, "xa_node.slots"), uint64(f.root)|2) },
		},
		{
			name: "pid at another number", all: []int{1, 2, 3, 4, 5}, problem: ErrTorn,
			lie: func(f *fake) {
				f.put64(f.member(f.root, "xa_node.slots")+8*9, uint64(f.processes[2].pid))
			},
		},
		{
			name: "list of one that points to itself", all: []int{1, 2, 3, 4, 5}, hidden: []int{1, 2, 3, 4, 5}, withoutTasks: []int{1, 2, 3, 4, 5}, complete: true,
			lie: func(f *fake) {
				head := f.member(f.initTask, "task_struct.tasks")
				f.put64(head, uint64(head))
				f.put64(head+8, uint64(head))
			},
		},
		{
			name: "group leader that is none", all: []int{1, 2, 3, 4, 5}, problem: ErrTorn,
			lie: func(f *fake) { f.set(f.processes[2].task, "task_struct.group_leader", 8) },
		},
		{
			name: "pointers of a task", all: []int{1, 2, 3, 4, 5}, problem: ErrWild,
			lie: func(f *fake) {
				for _, m := range []string{"mm", "real_cred", "nsproxy", "cgroups", "real_parent", "thread_pid"} {
					f.set(f.processes[2].task, "task_struct."+m, 0xdead_beef)
				}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake(t, 5)
			tt.lie(f)
			l := listProcesses(t, f, ProcessOptions{})
			wantPIDs(t, "all", pids(l, nil), tt.all...)
			wantPIDs(t, "hidden", pids(l, isHidden), tt.hidden...)
			wantPIDs(t, "not in the list", pids(l, func(p Process) bool { return !slices.Contains(p.SeenIn, ViewTasks) }), tt.withoutTasks...)
			if l.Coverage.Complete() != tt.complete {
				t.Errorf("complete: %v, want %v: %v", l.Coverage.Complete(), tt.complete, l.Coverage.Problems())
			}
			if tt.problem != nil && !slices.ContainsFunc(l.Coverage.Problems(), func(p introspect.Problem) bool {
				return strings.Contains(p.Err, tt.problem.Error())
			}) {
				t.Errorf("problems %v do not tell of %q", l.Coverage.Problems(), tt.problem)
			}
			// The same lies must not break what else there is.
			for _, p := range l.Processes {
				if _, _, err := f.guest.VMAs(t.Context(), p); err != nil && !errors.Is(err, ErrWild) {
					t.Errorf("VMAs of %d: %v", p.PID, err)
				}
			}
		})
	}
}

func TestProcessesEmpty(t *testing.T) {
	f := newFake(t, 0)
	l, err := f.guest.Processes(t.Context(), ProcessOptions{})
	if !errors.Is(err, ErrNoProcesses) || len(l.Processes) != 0 {
		t.Errorf("%d processes, %v", len(l.Processes), err)
	}
}

func TestProcessesCancelled(t *testing.T) {
	f := newFake(t, 5)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.guest.Processes(ctx, ProcessOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestThreads(t *testing.T) {
	f := newFake(t, 3)
	// Three more threads of pid 2: 10 and 11 in both views, 12 in the index only.
	leader := f.processes[1]
	for tid := 10; tid <= 12; tid++ {
		f.process(tid)
		th := f.processes[len(f.processes)-1]
		f.unlink(f.member(th.task, "task_struct.tasks"))
		f.set(th.task, "task_struct.tgid", 2)
		f.set(th.task, "task_struct.group_leader", uint64(leader.task))
		f.set(th.task, "task_struct.signal", uint64(leader.signal))
		f.put64(f.member(th.pid, "pid.tasks")+8, 0)
		if tid < 12 {
			f.append(f.member(leader.signal, "signal_struct.thread_head"), f.member(th.task, "task_struct.thread_node"))
		}
	}
	l := listProcesses(t, f, ProcessOptions{})
	wantPIDs(t, "processes", pids(l, nil), 1, 2, 3)
	l = listProcesses(t, f, ProcessOptions{Threads: true})
	wantPIDs(t, "threads", pids(l, nil), 1, 2, 3, 10, 11, 12)
	wantPIDs(t, "hidden threads", pids(l, isHidden), 12)
	for _, p := range l.Processes {
		if p.PID >= 10 && p.TGID != 2 {
			t.Errorf("thread %d is of process %d", p.PID, p.TGID)
		}
	}
	if !l.Coverage.Complete() {
		t.Errorf("coverage: %v", l.Coverage.Problems())
	}
	// Threads of a hidden process are not hidden themselves where its own list has them.
	f.unlink(f.member(leader.task, "task_struct.tasks"))
	wantPIDs(t, "hidden", pids(listProcesses(t, f, ProcessOptions{Threads: true}), isHidden), 2, 12)
}

// A live guest whose processes come and go during the walks.
func TestLiveGuest(t *testing.T) {
	f := newFake(t, 5)
	live := &churn{fake: f, ram: f.ram}
	f.guest.mem = live
	l := listProcesses(t, f, ProcessOptions{})
	wantPIDs(t, "hidden", pids(l, isHidden))
	live.steady = true
	live.undo()
	f.unlink(f.member(f.processes[2].task, "task_struct.tasks"))
	l = listProcesses(t, f, ProcessOptions{})
	wantPIDs(t, "hidden", pids(l, isHidden), 3)
}

// churn is a live guest: each look at its ranges (which each walk does) takes
// one of the processes out of one view, and puts the last one back.
type churn struct {
	*ram
	fake   *fake
	steady bool
	looks  int
	undo   func()
}

func (c *churn) IsLive() bool { return true }

func (c *churn) Ranges() []hypervisor.Range {
	if !c.steady {
		if c.undo != nil {
			c.undo()
		}
		slot := c.fake.member(c.fake.root, "xa_node.slots") + hypervisor.VirtAddr(8*(c.looks%5+1))
		was := c.fake.u64(slot)
		c.fake.put64(slot, 0)
		c.undo = func() { c.fake.put64(slot, was) }
		c.looks++
	}
	return c.ram.Ranges()
}

func TestInfo(t *testing.T) {
	f := newFake(t, 1)
	i, err := f.guest.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Hostname != "fakehost" || i.CommandLine != "quiet splash" || i.PageTableLevels != 4 || i.KASLROffset != 0 {
		t.Errorf("info: %+v", i)
	}
	if want := time.Date(2023, 11, 14, 22, 13, 20, 0, time.UTC); !i.BootTime.Equal(want) {
		t.Errorf("boot time %v, want %v", i.BootTime, want)
	}
}
