package linux

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

const (
	// maxFDs bounds one table of files: sysctl fs.nr_open is 1048576 unless
	// raised (fs/file.c).
	maxFDs = 1 << 22
	// fdWords is how many words of a table's bitmaps are read in one go.
	fdWords = 32
)

// fdFields is where the facts of a process's table of open files lie.
type fdFields struct {
	files                        field // in task_struct
	fdt                          field // in files_struct
	max, array, openFDs, onClose field // in struct fdtable
	tableSpan                    span
}

func (f *fdFields) facts() []fact {
	return []fact{
		{&f.files, 8, must, []string{"task_struct.files"}},
		{&f.fdt, 8, must, []string{"files_struct.fdt"}},
		{&f.max, 4, must, []string{"fdtable.max_fds"}},
		{&f.array, 8, must, []string{"fdtable.fd"}},
		{&f.openFDs, 8, must, []string{"fdtable.open_fds"}},
		{&f.onClose, 8, want, []string{"fdtable.close_on_exec"}},
	}
}

func (f *fdFields) symbols() []symbol { return nil }

func (f *fdFields) finish(types) { f.tableSpan = spanOf(f.max, f.array, f.openFDs, f.onClose) }

// fdWalk walks tables of open files, one after the other.
type fdWalk struct {
	r            *reader
	f            *fdFields
	table        []byte
	lost         error // the first slot of the table that cannot be believed
	open, onExec [fdWords * 8]byte
	slots        [64 * 8]byte
}

func (g *Guest) newFDWalk(cov *introspect.Coverage) (*fdWalk, error) {
	f, err := tableOf[fdFields](g, cov)
	if err != nil {
		return nil, err
	}
	return &fdWalk{r: &g.r, f: f}, nil
}

// walkFDs calls fn for each open file of the task whose task_struct lies at
// task, in ascending order of fd: file is where its struct file lies. fn
// returning false ends the walk.
//
// A task without files, a kernel thread of its own kind or one that has
// exited, is no error. An error that wraps profile.ErrNoType says that this
// kernel's types do not tell where files are.
func (g *Guest) walkFDs(ctx context.Context, task hypervisor.VirtAddr, fn func(fd int, file hypervisor.VirtAddr, closeOnExec bool) bool) error {
	w, err := g.newFDWalk(nil)
	if err != nil {
		return err
	}
	table, err := w.tableOf(task)
	if err != nil || table == 0 {
		return err
	}
	return w.walk(ctx, table, fn)
}

// tableOf returns the files_struct of the task at task, 0 when it has none.
func (w *fdWalk) tableOf(task hypervisor.VirtAddr) (hypervisor.VirtAddr, error) {
	if err := w.r.check(task, task, 8); err != nil {
		return 0, err
	}
	files, err := w.r.ptr(task + hypervisor.VirtAddr(w.f.files.off))
	if err != nil || files == 0 {
		return 0, err
	}
	return files, w.r.check(task, files, 8)
}

// walk walks the files_struct at files. A slot that cannot be believed does not
// end the walk, but is its error.
func (w *fdWalk) walk(ctx context.Context, files hypervisor.VirtAddr, fn func(fd int, file hypervisor.VirtAddr, closeOnExec bool) bool) error {
	w.lost = nil
	at, err := w.r.ptr(files + hypervisor.VirtAddr(w.f.fdt.off))
	if err != nil {
		return fmt.Errorf("table of files: %w", err)
	}
	if err := w.r.check(files, at, 8); err != nil {
		return fmt.Errorf("table of files: %w", err)
	}
	o, buf, err := w.r.object(w.table, at, w.f.tableSpan)
	w.table = buf
	if err != nil {
		return fmt.Errorf("table of files: %w", err)
	}
	limit := o.uint(w.f.max)
	array, open, onExec := o.ptr(w.f.array), o.ptr(w.f.openFDs), o.ptr(w.f.onClose)
	if limit > maxFDs || limit%64 != 0 {
		return fmt.Errorf("table of files: %w: %d slots", ErrTorn, limit)
	}
	for _, p := range []hypervisor.VirtAddr{array, open} {
		if err := w.r.check(at, p, 8); err != nil {
			return fmt.Errorf("table of files: %w", err)
		}
	}
	if w.f.onClose.ok {
		if err := w.r.check(at, onExec, 8); err != nil {
			return fmt.Errorf("table of files: %w", err)
		}
	}
	for first := uint64(0); first < limit; first += fdWords * 64 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		n := min(fdWords, (limit-first)/64) * 8
		if err := w.r.full(w.open[:n], open+hypervisor.VirtAddr(first/8)); err != nil {
			return fmt.Errorf("bitmap of open files: %w", err)
		}
		if w.f.onClose.ok {
			if err := w.r.full(w.onExec[:n], onExec+hypervisor.VirtAddr(first/8)); err != nil {
				return fmt.Errorf("bitmap of files that close on exec: %w", err)
			}
		}
		for i := uint64(0); i < n; i += 8 {
			more, err := w.word(array, first+i*8, binary.LittleEndian.Uint64(w.open[i:]), binary.LittleEndian.Uint64(w.onExec[i:]), fn)
			if err != nil || !more {
				return cmp.Or(err, w.lost)
			}
		}
	}
	return w.lost
}

// word visits the files whose bits are set in one word of the bitmap: only the
// slots from the first to the last of them are read.
func (w *fdWalk) word(array hypervisor.VirtAddr, base, open, onExec uint64, fn func(fd int, file hypervisor.VirtAddr, closeOnExec bool) bool) (more bool, err error) {
	if open == 0 {
		return true, nil
	}
	lo, hi := bits.TrailingZeros64(open), 64-bits.LeadingZeros64(open)
	slots := w.slots[:(hi-lo)*8]
	if err := w.r.full(slots, array+hypervisor.VirtAddr((base+uint64(lo))*8)); err != nil {
		return false, fmt.Errorf("files %d to %d: %w", base+uint64(lo), base+uint64(hi)-1, err)
	}
	for i := lo; i < hi; i++ {
		if open>>i&1 == 0 {
			continue
		}
		file := hypervisor.VirtAddr(binary.LittleEndian.Uint64(slots[(i-lo)*8:]))
		if file == 0 {
			continue // the number is taken, but its file is not there yet
		}
		fd := int(base) + i
		if err := w.r.check(array, file, 8); err != nil {
			if w.lost == nil {
				w.lost = fmt.Errorf("file %d: %w", fd, err)
			}
			continue
		}
		if !fn(fd, file, onExec>>i&1 != 0) {
			return false, nil
		}
	}
	return true, nil
}

// processTasks returns a task for each process that either view has, without
// what a Process tells of it: far cheaper than Processes for what needs no more
// than pid, name and kernel address. The task is the process's first thread or,
// when that has ended before the others, what is left of it: see livingTask.
func (g *Guest) processTasks(ctx context.Context, cov *introspect.Coverage) ([]task, error) {
	var s taskScan
	l, err := g.looks(ctx, &s, false)
	for _, v := range []*record{l.list, l.index} {
		if v == nil {
			continue
		}
		for _, p := range v.problems {
			cov.Add(p.what, p.at, p.err)
		}
	}
	if err != nil {
		return nil, err
	}
	tasks := make([]task, 0, len(l.tasks))
	for i := range l.tasks {
		tasks = append(tasks, l.tasks[i].task)
	}
	if len(tasks) == 0 {
		return nil, ErrNoProcesses
	}
	return tasks, nil
}

// livingTask returns t or, when it is the first thread of a process and has
// ended before the others, one of those: it has the files and the memory that t
// has no more. s is shared by all processes of a look and bounds it: s.left
// must be set (threadSteps). t is returned when no thread lives.
func (g *Guest) livingTask(ctx context.Context, s *taskScan, t task) (task, error) {
	if t.exitState == 0 || t.pid != t.tgid || t.signal == 0 {
		return t, nil
	}
	v := record{threads: true}
	if err := g.threadsOf(ctx, s, &v, t, map[hypervisor.VirtAddr]struct{}{}); err != nil {
		return t, err
	}
	for i := range v.tasks {
		if v.tasks[i].exitState == 0 {
			return v.tasks[i], nil
		}
	}
	return t, nil
}
