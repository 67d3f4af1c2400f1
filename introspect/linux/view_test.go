package linux

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect/linux/profile"
)

// viewFake is a fake guest with one CPU, whose run queue has no one.
func viewFake(t testing.TB, n int) (f *fake, rq hypervisor.VirtAddr) {
	t.Helper()
	f = newFake(t, n)
	rq = f.object("rq")
	f.append(f.member(rq, "rq.cfs_tasks"), 0)
	idle := f.object("task_struct")
	f.set(rq, "rq.curr", uint64(idle))
	f.set(rq, "rq.idle", uint64(idle))
	offsets, count := f.alloc(8, 8), f.alloc(8, 8)
	f.put64(count, 1)
	// The CPU's own queue lies beside the one that is linked into the image.
	symbols := map[string]hypervisor.VirtAddr{"runqueues": rq - 0x100, "__per_cpu_offset": offsets, "nr_cpu_ids": count}
	f.put64(offsets, 0x100)
	f.guest.symbol = func(name string) (hypervisor.VirtAddr, error) {
		if a, ok := symbols[name]; ok {
			return a, nil
		}
		return 0, fmt.Errorf("%s: %w", name, profile.ErrNoSymbol)
	}
	return f, rq
}

// viewUnlist takes a process out of the list and the index.
func viewUnlist(f *fake, p fakeProcess) {
	f.unlink(f.member(p.task, "task_struct.tasks"))
	slots := f.member(f.root, "xa_node.slots")
	for i := range hypervisor.VirtAddr(64) {
		if f.u64(slots+8*i) == uint64(p.pid) {
			f.put64(slots+8*i, 0)
		}
	}
}

// Each place on a CPU shows a process that is nowhere else.
func TestRunQueues(t *testing.T) {
	for name, queue := range map[string]func(f *fake, rq, task hypervisor.VirtAddr){
		"runs": func(f *fake, rq, task hypervisor.VirtAddr) { f.set(rq, "rq.curr", uint64(task)) },
		"waits": func(f *fake, rq, task hypervisor.VirtAddr) {
			f.append(f.member(rq, "rq.cfs_tasks"), f.member(task, "task_struct.se.group_node"))
		},
		"real time": func(f *fake, rq, task hypervisor.VirtAddr) {
			f.put64(f.member(rq, "rq.rt.active.bitmap")+8, 1<<(70-64))
			head := f.member(rq, "rq.rt.active.queue") + 16*70
			f.append(head, 0)
			f.append(head, f.member(task, "task_struct.rt.run_list"))
		},
		"deadline": func(f *fake, rq, task hypervisor.VirtAddr) {
			// Behind a server of the queue's own, which is no task.
			server := f.member(rq, "rq.rt.active.queue")
			f.put64(f.member(rq, "rq.dl.root.rb_root.rb_node"), uint64(server))
			f.put64(server+8, uint64(f.member(task, "task_struct.dl.rb_node")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, rq := viewFake(t, 3)
			p := f.processes[1]
			viewUnlist(f, p)
			f.unlink(f.member(p.task, "task_struct.cg_list"))
			if l := listProcesses(t, f, ProcessOptions{}); len(l.Processes) != 2 || !l.Coverage.Complete() {
				t.Fatalf("%d processes", len(l.Processes))
			}
			queue(f, rq, p.task)
			for _, threads := range []bool{false, true} {
				l := listProcesses(t, f, ProcessOptions{Threads: threads})
				if len(l.Processes) != 3 || !l.Coverage.Complete() {
					t.Fatalf("threads %v: %d processes, %v", threads, len(l.Processes), l.Coverage.Problems())
				}
				got := l.Processes[1]
				if !got.Hidden || got.Comm != "proc-2" || !slices.Equal(got.SeenIn, []View{ViewRunQueue}) {
					t.Errorf("threads %v: %+v", threads, got)
				}
			}
			// One that has ended leaves its CPU last: nobody hides it.
			f.set(p.task, "task_struct.exit_state", exitDead)
			f.set(p.task, "task_struct.mm", 0)
			if l := listProcesses(t, f, ProcessOptions{}); len(l.Processes) != 2 {
				t.Errorf("one that has ended is listed: %+v", l.Processes)
			}
		})
	}
}

// What is missing from the sets of control groups is marked, but for who has just
// been forked or has ended.
func TestMissingFromSets(t *testing.T) {
	hidden := func(f *fake) []int {
		return pids(listProcesses(t, f, ProcessOptions{}), func(p Process) bool { return p.Hidden })
	}
	f, _ := viewFake(t, 3)
	p := f.processes[1]
	f.unlink(f.member(p.task, "task_struct.cg_list"))
	wantPIDs(t, "hidden", hidden(f), 2)
	f.set(p.task, "task_struct.__state", taskNew)
	wantPIDs(t, "forked", hidden(f))
	f.set(p.task, "task_struct.__state", 1)
	f.set(p.task, "task_struct.exit_state", 0x20)
	wantPIDs(t, "ended", hidden(f))

	f, _ = viewFake(t, 3)
	p = f.processes[1]
	viewUnlist(f, p)
	wantPIDs(t, "in its set only", hidden(f), 2)
	// A set that leads nowhere is told, and makes no one hidden.
	f.put64(f.member(f.css, "css_set.tasks"), 0x1230)
	f.put64(f.member(f.css, "css_set.tasks")+8, 0x1230)
	l := listProcesses(t, f, ProcessOptions{})
	wantPIDs(t, "broken set", pids(l, func(p Process) bool { return p.Hidden }))
	if l.Coverage.Complete() {
		t.Error("a broken list is not told")
	}
}

// A thread shows the process that leads it.
func TestLeaderOfThread(t *testing.T) {
	f, rq := viewFake(t, 3)
	p := f.processes[1]
	viewUnlist(f, p)
	f.unlink(f.member(p.task, "task_struct.cg_list"))
	thread := f.object("task_struct")
	f.set(thread, "task_struct.pid", 30)
	f.set(thread, "task_struct.tgid", 2)
	f.set(thread, "task_struct.group_leader", uint64(p.task))
	f.set(rq, "rq.curr", uint64(thread))
	l := listProcesses(t, f, ProcessOptions{})
	if len(l.Processes) != 3 || !l.Processes[1].Hidden || !slices.Equal(l.Processes[1].SeenIn, []View{ViewThreads}) {
		t.Errorf("%+v", l.Processes)
	}
	f.set(p.task, "task_struct.tgid", 9) // it is not its leader
	if l := listProcesses(t, f, ProcessOptions{}); len(l.Processes) != 2 || l.Coverage.Complete() {
		t.Errorf("%+v, %v", l.Processes, l.Coverage.Problems())
	}
}

// Run queues that lie end soon, and are told.
func TestRunQueuesOfALiar(t *testing.T) {
	for name, lie := range map[string]func(f *fake, rq hypervisor.VirtAddr){
		"wild": func(f *fake, rq hypervisor.VirtAddr) { f.put64(f.member(rq, "rq.cfs_tasks"), 0x1238) },
		"curr": func(f *fake, rq hypervisor.VirtAddr) { f.set(rq, "rq.curr", 0x1238) },
		"cycle": func(f *fake, rq hypervisor.VirtAddr) {
			root := f.alloc(24, 8)
			f.put64(root+8, uint64(root))
			f.put64(f.member(rq, "rq.dl.root.rb_root.rb_node"), uint64(root))
		},
		"CPUs": func(f *fake, _ hypervisor.VirtAddr) {
			a, _ := f.guest.symbol("nr_cpu_ids")
			f.put64(a, 1<<20)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, rq := viewFake(t, 3)
			lie(f, rq)
			l, err := f.guest.Processes(t.Context(), ProcessOptions{})
			if err != nil || len(l.Processes) != 3 || l.Coverage.Complete() {
				t.Errorf("%d processes, complete %v, %v", len(l.Processes), l.Coverage.Complete(), err)
			}
			if slices.ContainsFunc(l.Processes, func(p Process) bool { return p.Hidden }) {
				t.Errorf("%+v", l.Processes)
			}
		})
	}
}

func TestViewIdle(t *testing.T) {
	traps := bytes.Repeat([]byte{0xcc}, 64)
	with := func(code ...byte) []byte { return append(slices.Clone(traps), code...) }
	for _, c := range []struct {
		page []byte
		want bool
	}{
		{traps, true}, {make([]byte, 64), true}, {with(0xff, 0xe0, 0xcc), true}, {with(0x41, 0xff, 0xe7), true},
		{with(0x90), false}, {with(0xc3), false}, {with(0xff), false}, {with(0xff, 0xd0), false}, {with(0x41), false}, {with(0x41, 0xcc), false},
	} {
		if got := viewIdle(c.page); got != c.want {
			t.Errorf("%x: %v", c.page[len(traps)-2:], got)
		}
	}
}

// An area is found in a tree, and a tree that leads to itself ends.
func TestViewArea(t *testing.T) {
	f := newFake(t, 1)
	fields := &viewCodeFacts{
		areaStart: field{off: 0, size: 8, ok: true}, areaEnd: field{off: 8, size: 8, ok: true}, areaNode: field{off: 16, size: 24, ok: true},
		areaVM: field{off: 40, size: 8, ok: true}, vmCaller: field{off: 8, size: 8, ok: true},
		rbRight: field{off: 8, size: 8, ok: true}, rbLeft: field{off: 16, size: 8, ok: true}, areaSpan: span{0, 48},
	}
	area := func(start, end uint64) hypervisor.VirtAddr {
		a := f.alloc(48, 8)
		f.put64(a, start)
		f.put64(a+8, end)
		return a
	}
	root, left := area(0x5000, 0x6000), area(0x1000, 0x3000)
	vm := f.alloc(16, 8)
	f.put64(vm+8, 0x77)
	f.put64(left+40, uint64(vm))
	f.put64(root+16+16, uint64(left+16))
	f.put64(root+16+8, uint64(root+16)) // to itself
	roots := []hypervisor.VirtAddr{0, root + 16}
	if a, ok := f.guest.viewAreaOf(fields, roots, 0x2fff); !ok || a != (viewArea{0x1000, 0x3000, 0x77}) {
		t.Errorf("%+v, %v", a, ok)
	}
	for _, va := range []hypervisor.VirtAddr{0x3000, 0xfff, 0x9000} {
		if a, ok := f.guest.viewAreaOf(fields, roots, va); ok {
			t.Errorf("%#x: %+v", uint64(va), a)
		}
	}
	fields.areaNodes, fields.areaNodeCount, fields.busyRoot, fields.nodeSize = f.alloc(8, 8), f.alloc(8, 8), field{off: 0, size: 8, ok: true}, 64
	f.put64(fields.areaNodeCount, 1<<30)
	if _, err := f.guest.viewAreaRoots(fields); !errors.Is(err, ErrTorn) {
		t.Errorf("a billion trees: %v", err)
	}
}
