package linux

import (
	"fmt"

	"github.com/vantage-vmi/vantage/hypervisor"
	"github.com/vantage-vmi/vantage/introspect"
)

// maxSockFiles bounds the open files of all processes that one look meets: a
// file that many have open is met once for each.
const maxSockFiles = 4 << 20

// sockOwner is a process that has a socket open.
type sockOwner struct{ pid, fd int32 }

// sockOwners are who has which sockets open.
type sockOwners struct {
	sockets map[hypervisor.VirtAddr]hypervisor.VirtAddr // struct file → struct socket, 0: it is none
	of      map[hypervisor.VirtAddr][]sockOwner         // struct socket → processes
	names   map[int32]string
	left    int
}

func newSockOwners() sockOwners {
	return sockOwners{
		sockets: map[hypervisor.VirtAddr]hypervisor.VirtAddr{}, of: map[hypervisor.VirtAddr][]sockOwner{},
		names: map[int32]string{}, left: maxSockFiles,
	}
}

// allFiles walks the tables of open files of all processes.
func (w *sockWalk) allFiles(cov *introspect.Coverage) error {
	tasks, err := w.g.processTasks(w.ctx, cov)
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if err != nil {
		w.bad("open files", 0, err)
		return nil
	}
	fds, err := w.g.newFDWalk(cov)
	if err != nil {
		w.bad("open files", 0, err)
		return nil
	}
	s := taskScan{left: threadSteps(maxThreads(w.g.mem))}
	for _, t := range tasks {
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		if t.flags&pfKthread != 0 && t.mm == 0 {
			continue // it has the files of the first process, if any
		}
		err := w.filesOf(&s, fds, t)
		if w.ctx.Err() != nil {
			return w.ctx.Err()
		}
		if err != nil && !w.gone(&s, t) {
			w.bad(fmt.Sprintf("open files of pid %d", t.pid), t.addr, err)
		}
		if w.owners.left < 0 {
			w.bad("open files", 0, fmt.Errorf("%w: %d", ErrLimit, maxSockFiles))
			return nil
		}
	}
	return nil
}

// gone reports whether t, of a guest that runs, is not there any more.
func (w *sockWalk) gone(s *taskScan, t task) bool {
	if !w.live {
		return false
	}
	now, err := s.read(&w.g.r, &w.g.lay.task, t.addr)
	return err != nil || !now.sameAs(&t) || now.exitState != 0
}

func (w *sockWalk) filesOf(s *taskScan, fds *fdWalk, t task) error {
	living, err := w.g.livingTask(w.ctx, s, t)
	if err != nil {
		return err
	}
	table, err := fds.tableOf(living.addr)
	if err != nil || table == 0 {
		return err
	}
	var first error
	err = fds.walk(w.ctx, table, func(fd int, file hypervisor.VirtAddr, _ bool) bool {
		if w.owners.left--; w.owners.left < 0 {
			return false
		}
		socket, ok := w.owners.sockets[file]
		if !ok {
			var err error
			if socket, err = w.socketOf(file); err != nil && first == nil {
				first = fmt.Errorf("file %d: %w", fd, err)
			}
			w.owners.sockets[file] = socket
		}
		if socket != 0 {
			w.own(socket, t, int32(fd))
		}
		return true
	})
	if err == nil {
		err = first
	}
	return err
}

// own notes that t has socket open. A process's lowest number of it comes first.
func (w *sockWalk) own(socket hypervisor.VirtAddr, t task, fd int32) {
	of := w.owners.of[socket]
	if n := len(of); n > 0 && of[n-1].pid == t.tgid {
		return
	}
	w.owners.of[socket] = append(of, sockOwner{pid: t.tgid, fd: fd})
	if _, ok := w.owners.names[t.tgid]; !ok {
		w.owners.names[t.tgid] = cString(t.comm[:])
	}
}

// socketOf returns the struct socket of the struct file at addr, 0 when it is
// no socket, and keeps the socket.
func (w *sockWalk) socketOf(addr hypervisor.VirtAddr) (hypervisor.VirtAddr, error) {
	f := w.f
	if !f.filePrivate.ok || !f.socketSK.ok || !f.socketFile.ok {
		return 0, nil
	}
	o, buf, err := w.g.r.object(w.buf, addr, f.fileSpan)
	w.buf = buf
	if err != nil {
		return 0, err
	}
	socket := o.ptr(f.filePrivate)
	ops := f.sym.fileOps != 0 && f.fileOps.ok
	if ops && o.ptr(f.fileOps) != f.sym.fileOps {
		return 0, nil
	}
	if err := w.g.r.check(addr, socket, 8); err != nil {
		if ops {
			return 0, err
		}
		return 0, nil // private_data is whatever its driver likes
	}
	if o, w.buf, err = w.g.r.object(w.buf, socket, f.socketSpan); err != nil {
		if ops {
			return 0, err
		}
		return 0, nil
	}
	if o.ptr(f.socketFile) != addr {
		if ops {
			return 0, &PointerError{Where: socket, Value: o.ptr(f.socketFile), Err: fmt.Errorf("%w: a socket of another file", ErrTorn)}
		}
		return 0, nil
	}
	return socket, w.openSocket(socket, o.ptr(f.socketSK), o.uint(f.socketIno))
}

// openSocket keeps the sock of a struct socket that a process has open.
func (w *sockWalk) openSocket(socket, addr hypervisor.VirtAddr, ino uint64) error {
	if addr == 0 {
		return nil // it is being closed
	}
	s, ok := w.socks[addr]
	if !ok {
		if err := w.g.r.check(socket, addr, 8); err != nil {
			return err
		}
		if w.left--; w.left < 0 {
			return fmt.Errorf("%w: too many sockets", ErrLimit)
		}
		o, buf, err := w.g.r.object(w.buf, addr, w.f.commonSpan)
		w.buf = buf
		if err != nil {
			return err
		}
		s = &sock{addr: addr}
		s.common(w.f, o)
		w.keep(s)
	}
	s.files, s.ino = true, ino
	return nil
}
