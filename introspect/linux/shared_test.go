package linux

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vantage-vmi/vantage/hypervisor"
)

// countingReader counts the reads of a guest's structures.
type countingReader struct {
	virtReader
	n int
}

func (c *countingReader) ReadVirt(p []byte, va hypervisor.VirtAddr) (int, error) {
	c.n++
	return c.virtReader.ReadVirt(p, va)
}

// Thousands of processes of one pid share one list of threads, and the first
// thread of each has ended: no listing walks it once for each.
func TestSharedThreadLists(t *testing.T) {
	f := newFake(t, 2)
	const count = 2000
	signal := f.object("signal_struct")
	head := f.member(signal, "signal_struct.thread_head")
	f.append(head, 0)
	for range count {
		task := f.object("task_struct")
		f.set(task, "task_struct.pid", 77)
		f.set(task, "task_struct.tgid", 77)
		f.set(task, "task_struct.exit_state", 32)
		f.set(task, "task_struct.group_leader", uint64(task))
		f.set(task, "task_struct.signal", uint64(signal))
		f.append(head, f.member(task, "task_struct.thread_node"))
		f.append(f.member(f.initTask, "task_struct.tasks"), f.member(task, "task_struct.tasks"))
	}
	reads := &countingReader{virtReader: f.guest.r.virtReader}
	f.guest.r.virtReader = reads
	for _, threads := range []bool{false, true} {
		reads.n = 0
		l, err := f.guest.Processes(t.Context(), ProcessOptions{Threads: threads})
		if err != nil {
			t.Fatal(err)
		}
		if len(l.Processes) != count+2 || l.Coverage.Complete() {
			t.Errorf("%d processes, complete %v", len(l.Processes), l.Coverage.Complete())
		}
		if most := 50 * count; reads.n > most {
			t.Errorf("threads %v: %d reads, want %d at most", threads, reads.n, most)
		}
	}
}

// A process whose memory only a broken list of threads leads to is told.
func TestLostThreads(t *testing.T) {
	f := newFake(t, 3)
	p := f.processes[1]
	f.set(p.task, "task_struct.exit_state", 32)
	f.set(p.task, "task_struct.mm", 0)
	f.put64(f.member(p.signal, "signal_struct.thread_head"), 0x1234)
	l, err := f.guest.Processes(t.Context(), ProcessOptions{})
	if err != nil || l.Coverage.Complete() {
		t.Errorf("complete %v, %v", l.Coverage.Complete(), err)
	}
}

// A process that says it is a kernel thread keeps its memory.
func TestFalseKernelThread(t *testing.T) {
	f := newFake(t, 2)
	p := f.processes[1]
	b := f.ram.b[f.member(p.task, "task_struct.flags")-fakeBase:]
	binary.LittleEndian.PutUint32(b, pfKthread)
	l, err := f.guest.Processes(t.Context(), ProcessOptions{})
	if err != nil || len(l.Processes) != 2 {
		t.Fatalf("%+v, %v", l, err)
	}
	if got := l.Processes[1]; got.Kernel || !got.HasMemory() || got.Exe == "" {
		t.Errorf("%+v", got)
	}
	if _, err := f.guest.ProcessSpace(l.Processes[1]); errors.Is(err, ErrNoMemory) {
		t.Error(err)
	}
}
