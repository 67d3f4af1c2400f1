package linux

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// maxOpenFiles bounds a listing by the guest's memory. The kernel itself lets a
// tenth of it be taken by open files, at 1 KiB for each (fs.file-max), but one
// may be open under many numbers.
func maxOpenFiles(mem hypervisor.Memory) int {
	const (
		perFile = 2 << 10
		least   = 64 << 10
		most    = 1 << 20
	)
	return int(min(max(hypervisor.TotalSize(mem.Ranges())/perFile, least), most))
}

// Files lists the files that the guest's processes have open, and the programs
// that they run. Threads have the files of their process.
//
// The list is partial when ctx ends, which is then the error. With
// FileOptions.PID, an error that wraps ErrGone means that there is no such
// process. An error that wraps profile.ErrNoType means that this kernel's type
// information does not tell where files are.
func (g *Guest) Files(ctx context.Context, opt FileOptions) (FileList, error) {
	list := FileList{Files: []File{}, Coverage: &introspect.Coverage{}}
	if err := g.files(ctx, opt, &list); err != nil {
		return list, fmt.Errorf("list files: %w", err)
	}
	return list, nil
}

func (g *Guest) files(ctx context.Context, opt FileOptions, list *FileList) error {
	w, err := g.newFilesWalk(ctx, list.Coverage)
	if err != nil {
		return err
	}
	tasks, err := g.processTasks(ctx, list.Coverage)
	if err != nil {
		return err
	}
	slices.SortFunc(tasks, func(a, b task) int {
		return cmp.Or(cmp.Compare(a.pid, b.pid), cmp.Compare(a.tgid, b.tgid), cmp.Compare(a.addr, b.addr))
	})
	if opt.PID == 0 {
		const perTask = 8 // of a server that does not do much
		list.Files = make([]File, 0, perTask*len(tasks))
	}
	found := false
	for i := range tasks {
		if i%ctxEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if opt.PID != 0 && int(tasks[i].pid) != opt.PID {
			continue
		}
		found = true
		list.Files = w.process(list.Files, tasks[i])
		if len(list.Files) >= w.limit {
			list.Coverage.Add("files", 0, fmt.Errorf("%w: %d files", ErrLimit, w.limit))
			break
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if !found && opt.PID != 0 {
		return fmt.Errorf("process %d: %w", opt.PID, ErrGone)
	}
	return nil
}

// filesWalk lists the files of processes, one after the other.
type filesWalk struct {
	g    *Guest
	ctx  context.Context
	cov  *introspect.Coverage
	fds  *fdWalk
	look *fileLook
	scan taskScan
	// limit is how many files are listed at most.
	limit int
}

func (g *Guest) newFilesWalk(ctx context.Context, cov *introspect.Coverage) (*filesWalk, error) {
	f, err := tableOf[fileFields](g, cov)
	if err != nil {
		return nil, err
	}
	fds, err := g.newFDWalk(cov)
	if err != nil {
		return nil, err
	}
	w := &filesWalk{g: g, ctx: ctx, cov: cov, fds: fds, look: g.newFileLook(f), limit: maxOpenFiles(g.mem)}
	w.scan.left = threadSteps(maxThreads(g.mem))
	return w, nil
}

// process appends the files of t to list. On a live guest, what failed is tried
// again on the process as it is then; a process that has gone has no files.
func (w *filesWalk) process(list []File, t task) []File {
	rounds := 1
	if hypervisor.IsLive(w.g.mem) {
		rounds = liveRounds
	}
	from := len(list)
	var probs []problem
	for round := range rounds {
		if round > 0 {
			w.look.forget()
			now, err := w.scan.read(&w.g.r, &w.g.lay.task, t.addr)
			if err != nil || !now.sameAs(&t) {
				return list[:from]
			}
			t = now
		}
		list, probs = w.try(list[:from], t)
		if len(probs) == 0 || w.ctx.Err() != nil {
			return list
		}
	}
	for _, p := range probs {
		w.cov.Add(fmt.Sprintf("%s of pid %d", p.what, t.pid), p.at, p.err)
	}
	return list
}

// try appends the files of t to list.
func (w *filesWalk) try(list []File, t task) ([]File, []problem) {
	var probs []problem
	bad := func(what string, at hypervisor.VirtAddr, err error) {
		if len(probs) < introspect.MaxProblems {
			probs = append(probs, problem{what, at, err})
		}
	}
	living, err := w.g.livingTask(w.ctx, &w.scan, t)
	if err != nil {
		bad("threads", t.addr, err)
	}
	comm := cString(t.comm[:])
	add := func(role FileRole, fd int, at hypervisor.VirtAddr, onExec bool) bool {
		f, err := w.look.file(at)
		f.PID, f.Comm, f.Role, f.FD = int(t.pid), comm, role, fd
		if onExec {
			f.Flags |= oCloexec
		}
		if err != nil {
			bad(fmt.Sprintf("%s %d", role, fd), at, err)
		}
		list = append(list, f)
		return len(list) < w.limit && (len(list)%ctxEvery != 0 || w.ctx.Err() == nil)
	}
	if exe, err := w.program(living.mm); err != nil {
		bad("exe", living.mm, err)
	} else if exe != 0 && !add(RoleProgram, -1, exe, false) {
		return list, probs
	}
	table, err := w.fds.tableOf(living.addr)
	if err == nil && table != 0 {
		err = w.fds.walk(w.ctx, table, func(fd int, at hypervisor.VirtAddr, onExec bool) bool {
			return add(RoleOpen, fd, at, onExec)
		})
	}
	if err != nil {
		bad("files", living.addr, err)
	}
	return list, probs
}

// program returns the struct file of the program that runs in mm, 0 when there
// is none.
func (w *filesWalk) program(mm hypervisor.VirtAddr) (hypervisor.VirtAddr, error) {
	exe := w.g.lay.mm.exeFile
	if mm == 0 || !exe.ok {
		return 0, nil
	}
	if err := w.g.r.check(mm, mm, 8); err != nil {
		return 0, err
	}
	file, err := w.g.r.ptr(mm + hypervisor.VirtAddr(exe.off))
	if err != nil || file == 0 {
		return 0, err
	}
	return file, w.g.r.check(mm, file, 8)
}
